#include "engine/request.h"

#include <cmath>

namespace reft {
namespace {

template <class... Args>
void require(bool ok, const char* param, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) throw RequestError(fmt::format(format, std::forward<Args>(args)...), param);
}

void require_range(float value, float low, float high, const char* param) {
  // Negated so that NaN fails.
  require(!(!(value >= low) || !(value <= high)), param,
          "{} must be between {:g} and {:g}, got {:g}", param, low, high, value);
}

void require_ids(const std::vector<int32_t>& ids, int64_t vocab_size, const char* param) {
  for (int32_t id : ids) {
    require(id >= 0 && id < vocab_size, param,
            "{} contains token id {}, outside the vocabulary of {} ids", param, id, vocab_size);
  }
}

void require_logprobs(const std::optional<int32_t>& count, const char* param) {
  if (!count) return;
  require(*count >= 0 && *count <= kMaxLogprobs, param, "{} must be between 0 and {}, got {}",
          param, kMaxLogprobs, *count);
}

}  // namespace

void SamplingParams::validate(int64_t vocab_size) const {
  require(n >= 1 && n <= kMaxOutputsPerRequest, "n", "n must be between 1 and {}, got {}",
          kMaxOutputsPerRequest, n);
  require(std::isfinite(temperature) && temperature >= 0, "temperature",
          "temperature must be at least 0, got {:g}", temperature);
  require(top_p > 0 && top_p <= 1, "top_p", "top_p must be in (0, 1], got {:g}", top_p);
  require(top_k >= -1, "top_k", "top_k must be -1 or 0 (off) or at least 1, got {}", top_k);
  require_range(min_p, 0, 1, "min_p");
  require(std::isfinite(repetition_penalty) && repetition_penalty > 0, "repetition_penalty",
          "repetition_penalty must be greater than 0, got {:g}", repetition_penalty);
  require_range(presence_penalty, -2, 2, "presence_penalty");
  require_range(frequency_penalty, -2, 2, "frequency_penalty");
  for (const std::string& s : stop)
    require(!s.empty(), "stop", "stop must not contain an empty string");
  require_ids(stop_token_ids, vocab_size, "stop_token_ids");
  if (max_tokens) {
    require(*max_tokens >= 1, "max_tokens", "max_tokens must be at least 1, got {}", *max_tokens);
  }
  require(min_tokens >= 0, "min_tokens", "min_tokens must be at least 0, got {}", min_tokens);
  if (max_tokens) {
    require(min_tokens <= *max_tokens, "min_tokens",
            "min_tokens ({}) must not be greater than max_tokens ({})", min_tokens, *max_tokens);
  }
  require_logprobs(logprobs, "logprobs");
  require_logprobs(prompt_logprobs, "prompt_logprobs");
  for (const auto& [id, bias] : logit_bias) {
    require(id >= 0 && id < vocab_size, "logit_bias",
            "logit_bias contains token id {}, outside the vocabulary of {} ids", id, vocab_size);
    require(bias >= -100 && bias <= 100, "logit_bias",
            "logit_bias of token id {} must be between -100 and 100, got {:g}", id, bias);
  }
  require_ids(allowed_token_ids, vocab_size, "allowed_token_ids");
  for (const std::string& s : bad_words)
    require(!s.empty(), "bad_words", "bad_words must not contain an empty string");
}

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return "";
}

}  // namespace reft
