// What sampling needs to know of a sequence beyond the logits: the tokens so far, constraints, when
// to end.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "engine/request.h"
#include "ops/sampling.h"

namespace reft {

class Tokenizer;

// The parts of a request that its n outputs share. Immutable.
struct SamplingSetup {
  SamplingParams params;
  std::vector<int32_t> prompt;
  std::vector<int32_t> eos_ids;       // sorted; empty with ignore_eos
  std::vector<int32_t> stop_ids;      // sorted
  std::vector<int32_t> masked_early;  // eos_ids and stop_ids: impossible before min_tokens
  std::vector<int32_t> banned;        // always impossible: bad words of one token
  std::vector<std::vector<int32_t>> bad_sequences;  // bad words of several tokens
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<int32_t> allowed;  // sorted, unique; empty: all
  int64_t max_tokens = 0;        // output tokens, clipped to the context

  // `params` were validated. Throws RequestError: bad_words without a tokenizer; allowed_token_ids
  // that are all banned.
  SamplingSetup(SamplingParams params, std::vector<int32_t> prompt, const std::vector<int32_t>& eos,
                const Tokenizer* tokenizer, int64_t max_model_len);
};

// One output's state. Owned by the compute thread from the first step on.
class SamplingState {
 public:
  SamplingState(std::shared_ptr<const SamplingSetup> setup, uint64_t seed)
      : setup_(std::move(setup)), seed_(seed) {}

  // How to sample the next token, the one after the pending one where there is one; borrows from
  // this object until the next call.
  SampleRow row();
  // A step that was queued samples a token, into row `row` of the step's; then, that its outcome is
  // there (or will not come). In between the token is pending: only the device knows it.
  void expect(int32_t row) {
    pending_row_ = row;
    ++num_pending_;
  }
  void settle() { --num_pending_; }
  bool has_pending() const { return num_pending_ > 0; }
  int32_t pending_row() const { return pending_row_; }
  // Whether row() must know all tokens: bad words of several tokens end with the last one.
  bool needs_last_token() const { return !setup_->bad_sequences.empty(); }
  // Takes note of a sampled token. Returns why the output ends with it, kNone if it goes on;
  // `stop_id` is set when a token of stop_token_ids is the reason.
  FinishReason accept(int32_t token, int32_t* stop_id);

  bool ended() const { return ended_; }
  int32_t last_token() const { return outputs_.back(); }
  const std::vector<int32_t>& outputs() const { return outputs_; }

 private:
  std::shared_ptr<const SamplingSetup> setup_;
  uint64_t seed_;
  std::vector<int32_t> outputs_;
  std::vector<int32_t> banned_now_;
  int32_t pending_row_ = -1;
  int32_t num_pending_ = 0;
  bool ended_ = false;
};

// The seed of output `index` of a request: seed + index, or one drawn from the engine's seed and a
// running number.
uint64_t output_seed(const SamplingParams& params, uint64_t engine_seed, uint64_t request_number,
                     int32_t index);

}  // namespace reft
