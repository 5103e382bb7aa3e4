// What goes into the engine and what comes out.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/check.h"

namespace reft {

// A request that cannot be served, and whose fault it is: becomes an HTTP 4xx.
class RequestError : public Error {
 public:
  RequestError(const std::string& message, std::string param, int status = 400,
               std::string code = "")
      : Error(message), param_(std::move(param)), status_(status), code_(std::move(code)) {}
  const std::string& param() const { return param_; }  // name of the request field; may be empty
  int status() const { return status_; }
  const std::string& code() const { return code_; }

 private:
  std::string param_;
  int status_;
  std::string code_;
};

// Limits of one request.
inline constexpr int32_t kMaxOutputsPerRequest = 16384;  // n
inline constexpr int32_t kMaxLogprobs = 20;              // alternatives per token

// Names, defaults and meaning as vLLM's SamplingParams. Output i of n draws with seed + i.
struct SamplingParams {
  int32_t n = 1;
  float temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0 or −1: all
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::optional<uint64_t> seed;  // absent: random
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  std::optional<int64_t> max_tokens;  // absent: as many as the context holds
  int64_t min_tokens = 0;
  std::optional<int32_t> logprobs;         // alternatives per output token; 0: only the sampled one
  std::optional<int32_t> prompt_logprobs;  // alternatives per prompt token
  std::map<int32_t, float> logit_bias;
  std::vector<int32_t> allowed_token_ids;  // empty: all
  std::vector<std::string> bad_words;      // token sequences that are never completed
  bool skip_special_tokens = true;

  // Throws RequestError naming the field. `vocab_size` bounds the ids.
  void validate(int64_t vocab_size) const;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
  int32_t rank = 0;  // 1: the most likely
};

// One output token (or prompt token) with its alternatives: the chosen one first, then the others
// among the most likely ones, most likely first (the chosen one is not repeated).
using TokenLogprobs = std::vector<TokenLogprob>;

enum class FinishReason { kNone, kStop, kLength, kAbort, kError };
const char* finish_reason_name(
    FinishReason reason);  // "stop", "length", "abort", "error"; "" for kNone

// What happened to one of the n outputs of a request since the last update.
struct GenerationUpdate {
  int32_t index = 0;                    // 0 … n−1
  std::string text;                     // whole characters only; stop strings already cut
  std::vector<int32_t> token_ids;       // new tokens
  std::vector<TokenLogprobs> logprobs;  // one per new token, when asked for
  FinishReason finish_reason = FinishReason::kNone;
  std::variant<std::monostate, int32_t, std::string>
      stop_reason;    // the stop token id or stop string
  std::string error;  // for kError
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;  // of the prompt, found in the prefix cache
  int64_t num_output_tokens = 0;  // of this output so far
  // In the first update of a request that asked for prompt_logprobs: one per prompt token, the
  // first empty.
  std::vector<TokenLogprobs> prompt_logprobs;
};

struct GenerationRequest {
  std::string id;  // unique among running requests; a second one with the same id is refused
  std::vector<int32_t> prompt;
  SamplingParams params;
  int64_t priority = 0;    // with the priority policy: lower runs first
  std::string cache_salt;  // prefixes are only shared among equal salts
  std::string adapter;     // name of a loaded adapter (Engine::load_adapter); empty: none
  // Called from the engine's output thread, in order, the last with a finish_reason for each index.
  // Must not block or call back into the engine (abort excepted).
  std::function<void(GenerationUpdate&&)> on_update;
};

}  // namespace reft
