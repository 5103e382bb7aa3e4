// Sampling on the device: one call per step for all sequences.
#pragma once

#include <cstdint>
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

// logits: [R, V] float32, modified in place; one SampleRow per row of logits. Ties go to the lowest
// id, in every filter too: top_k keeps exactly k ids. The draw is the inverse of the cumulative
// distribution in the order of ids, at philox_uniform(seed, position). NaN counts as −inf, +inf as
// the largest finite number; ids outside [0, V) are ignored; a row whose ids are all masked gives
// the lowest id of allowed_ids, else 0. `top` leaves out ids whose logit is −inf. Throws Error when
// shapes do not match.
std::vector<SampleResult> sample(Tensor& logits, const std::vector<SampleRow>& rows);
extern Kernel<void(std::vector<SampleResult>& out, Tensor& logits,
                   const std::vector<SampleRow>& rows)>
    sample_kernel;

// Prompt logprobs: for row r of logits, the log-softmax value and rank of targets[r], and the `top`
// most likely ids. Throws Error when a target is outside [0, V).
std::vector<SampleResult> score(const Tensor& logits, const std::vector<int32_t>& targets,
                                int32_t top);
extern Kernel<void(std::vector<SampleResult>& out, const Tensor& logits,
                   const std::vector<int32_t>& targets, int32_t top)>
    score_kernel;

}  // namespace reft
