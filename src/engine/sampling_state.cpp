#include "engine/sampling_state.h"

#include <algorithm>

#include "text/tokenizer.h"

namespace reft {
namespace {

std::vector<int32_t> sorted_unique(std::vector<int32_t> ids) {
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

bool contains(const std::vector<int32_t>& sorted, int32_t id) {
  return std::ranges::binary_search(sorted, id);
}

// Token sequences of a bad word as it appears at the start of a text and, when that is another
// sequence of the same length with another first token, after a space. Source:
// SamplingParams.update_from_tokenizer of vLLM.
std::vector<std::vector<int32_t>> encode_bad_word(const std::string& word,
                                                  const Tokenizer& tokenizer) {
  const EncodeOptions plain{.add_special_tokens = false};
  const size_t first = word.find_first_not_of(' ');
  const std::string stripped = first == std::string::npos ? word : word.substr(first);
  std::vector<std::vector<int32_t>> sequences;
  sequences.push_back(tokenizer.encode(stripped, plain));
  std::vector<int32_t> spaced = tokenizer.encode(" " + stripped, plain);
  const std::vector<int32_t>& bare = sequences[0];
  if (!spaced.empty() && !bare.empty() && spaced[0] != bare[0] && spaced.size() == bare.size()) {
    sequences.push_back(std::move(spaced));
  }
  std::erase_if(sequences, [](const auto& ids) { return ids.empty(); });
  return sequences;
}

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

SamplingSetup::SamplingSetup(SamplingParams sampling, std::vector<int32_t> prompt_ids,
                             const std::vector<int32_t>& eos, const Tokenizer* tokenizer,
                             int64_t max_model_len)
    : params(std::move(sampling)), prompt(std::move(prompt_ids)) {
  if (!params.ignore_eos) eos_ids = sorted_unique(eos);
  stop_ids = sorted_unique(params.stop_token_ids);
  if (params.min_tokens > 0) {
    masked_early = sorted_unique(eos);  // with ignore_eos too, as in vLLM
    masked_early.insert(masked_early.end(), stop_ids.begin(), stop_ids.end());
  }
  for (const std::string& word : params.bad_words) {
    if (tokenizer == nullptr) throw RequestError("bad_words need a tokenizer", "bad_words");
    for (std::vector<int32_t>& ids : encode_bad_word(word, *tokenizer)) {
      if (ids.size() == 1) {
        banned.push_back(ids[0]);
      } else {
        bad_sequences.push_back(std::move(ids));
      }
    }
  }
  banned = sorted_unique(std::move(banned));
  bias.assign(params.logit_bias.begin(), params.logit_bias.end());
  allowed = sorted_unique(params.allowed_token_ids);
  if (!allowed.empty() &&
      std::ranges::all_of(allowed, [&](int32_t id) { return contains(banned, id); })) {
    throw RequestError("allowed_token_ids leaves no token: bad_words ban all of them",
                       "allowed_token_ids");
  }
  const int64_t room = max_model_len - static_cast<int64_t>(prompt.size());
  max_tokens = std::min(params.max_tokens.value_or(room), room);
}

SampleRow SamplingState::row() {
  const SamplingParams& p = setup_->params;
  SampleRow row;
  row.temperature = p.temperature;
  row.top_k = p.top_k;
  row.top_p = p.top_p;
  row.min_p = p.min_p;
  row.repetition_penalty = p.repetition_penalty;
  row.presence_penalty = p.presence_penalty;
  row.frequency_penalty = p.frequency_penalty;
  row.seed = seed_;
  const int64_t position = static_cast<int64_t>(outputs_.size()) + num_pending_;
  row.position = static_cast<uint64_t>(position);
  if (num_pending_ > 0) row.pending = pending_row_;
  row.num_logprobs = p.logprobs.value_or(-1);
  if (p.repetition_penalty != 1) row.prompt_ids = &setup_->prompt;
  if (p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0)
    row.output_ids = &outputs_;
  if (!setup_->bias.empty()) row.bias = &setup_->bias;
  if (!setup_->allowed.empty()) row.allowed_ids = &setup_->allowed;

  const bool early = position < p.min_tokens;
  if (!early && setup_->bad_sequences.empty()) {
    if (!setup_->banned.empty()) row.banned_ids = &setup_->banned;
    return row;
  }
  banned_now_ = setup_->banned;
  if (early)
    banned_now_.insert(banned_now_.end(), setup_->masked_early.begin(), setup_->masked_early.end());
  for (const std::vector<int32_t>& bad : setup_->bad_sequences) {
    const size_t head = bad.size() - 1;
    if (outputs_.size() >= head &&
        std::equal(bad.begin(), bad.end() - 1, outputs_.end() - static_cast<int64_t>(head))) {
      banned_now_.push_back(bad.back());
    }
  }
  if (!banned_now_.empty()) row.banned_ids = &banned_now_;
  return row;
}

FinishReason SamplingState::accept(int32_t token, int32_t* stop_id) {
  outputs_.push_back(token);
  const auto count = static_cast<int64_t>(outputs_.size());
  FinishReason reason = FinishReason::kNone;
  if (count >= setup_->params.min_tokens) {
    if (contains(setup_->eos_ids, token)) {
      reason = FinishReason::kStop;
    } else if (contains(setup_->stop_ids, token)) {
      reason = FinishReason::kStop;
      *stop_id = token;
    }
  }
  if (reason == FinishReason::kNone && count >= setup_->max_tokens) reason = FinishReason::kLength;
  ended_ = reason != FinishReason::kNone;
  return reason;
}

uint64_t output_seed(const SamplingParams& params, uint64_t engine_seed, uint64_t request_number,
                     int32_t index) {
  if (params.seed) return *params.seed + static_cast<uint64_t>(index);
  return mix(mix(engine_seed) ^ mix(request_number * 0x10001 + static_cast<uint64_t>(index)));
}

}  // namespace reft
