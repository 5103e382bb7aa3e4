// Sampling on the device: one call per step for all sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "ops/kernel.h"
#include "tensor/tensor.h"

namespace reft {

// One row of logits to sample from. Order of effects, as in vLLM: allowed/banned ids, logit_bias
// and min_tokens mask, penalties, temperature, min_p, top_k, top_p, draw.
struct SampleRow {
  float temperature = 1.0f;  // below 1e-5: greedy
  int32_t top_k = 0;         // 0 or −1: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;      // the draw is a function of (seed, position, logits) alone
  uint64_t position = 0;  // number of tokens generated so far
  // One more output token, which output_ids lacks because the host does not know it yet: row
  // `pending` of the step before. −1: none.
  int32_t pending = -1;
  // Borrowed until the call returns; null when not used.
  const std::vector<int32_t>* prompt_ids = nullptr;  // for repetition_penalty
  const std::vector<int32_t>* output_ids = nullptr;  // for all penalties
  const std::vector<std::pair<int32_t, float>>* bias = nullptr;
  const std::vector<int32_t>* allowed_ids = nullptr;  // all others are masked
  const std::vector<int32_t>* banned_ids = nullptr;
  int32_t num_logprobs = -1;  // −1: none; 0: the sampled token's; n: also the n most likely
};

struct SampleResult {
  int32_t token = 0;
  float logprob = 0;  // of the token, log-softmax of the unmodified logits (vLLM's raw_logprobs)
  int32_t rank = 0;   // 1: the most likely
  std::vector<std::pair<int32_t, float>> top;  // most likely first
};

// Results that a device may still be working on. What they were made of is borrowed no longer.
class PendingSamples {
 public:
  virtual ~PendingSamples() = default;
  // Whether wait() returns at once.
  virtual bool ready() const = 0;
  // The results of all rows; to be called once. Throws Error when the device failed.
  virtual std::vector<SampleResult> wait() = 0;
};
using PendingSamplesPtr = std::unique_ptr<PendingSamples>;

// Of a device that is done when its op returns.
class ReadySamples final : public PendingSamples {
 public:
  explicit ReadySamples(std::vector<SampleResult> results) : results_(std::move(results)) {}
  bool ready() const override { return true; }
  std::vector<SampleResult> wait() override { return std::move(results_); }

 private:
  std::vector<SampleResult> results_;
};

// logits: [R, V] float32, may be modified; one SampleRow per row of logits. tokens: [R] int32 on
// the same device, gets the ids, in order with the other ops of the device. previous: the tokens of
// the step before, on the device, for rows with a pending one; it must not overlap tokens.
//
// Ties go to the lowest id, in every filter too: top_k keeps exactly k ids. The draw is the inverse
// of the cumulative distribution in the order of ids, at philox_uniform(seed, position). NaN counts
// as −inf, +inf as the largest finite number; ids outside [0, V) are ignored; ids of `bias` are
// distinct; a row whose ids are all masked gives the lowest id of allowed_ids, else 0. `top` leaves
// out ids whose logit is −inf. Weights exp((x − top) / temperature) are fp32, sums of them fp64:
// devices may differ where a draw or the end of top_p falls within some 1e-7 of the total mass of
// the next id. No rows: ready when the device has done what was queued before. Throws Error when
// shapes do not match.
PendingSamplesPtr start_sample(Tensor& tokens, Tensor& logits, const std::vector<SampleRow>& rows,
                               const Tensor& previous = {});
extern Kernel<PendingSamplesPtr(Tensor& tokens, Tensor& logits, const std::vector<SampleRow>& rows,
                                const Tensor& previous)>
    sample_kernel;
// The same, waited for.
std::vector<SampleResult> sample(Tensor& logits, const std::vector<SampleRow>& rows);

// Prompt logprobs: for row r of logits, the log-softmax value and rank of targets[r], and the `top`
// most likely ids. Throws Error when a target is outside [0, V).
PendingSamplesPtr start_score(const Tensor& logits, const std::vector<int32_t>& targets,
                              int32_t top);
extern Kernel<PendingSamplesPtr(const Tensor& logits, const std::vector<int32_t>& targets,
                                int32_t top)>
    score_kernel;
std::vector<SampleResult> score(const Tensor& logits, const std::vector<int32_t>& targets,
                                int32_t top);

}  // namespace reft
