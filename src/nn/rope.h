// Rotary position embeddings: the tables of every scaling rule in use. Follows modeling_rope_utils.
#pragma once

#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace reft {

enum class RopeType {
  kDefault,   // inv_freq[i] = theta^(-2i/R)
  kLinear,    // inv_freq / factor
  kDynamic,   // NTK: theta grows with the length, once it is above original_max_position
  kLlama3,    // low frequencies / factor, high ones kept, the middle blended
  kYarn,      // blend by rotations over original_max_position, and an attention factor
  kLongRope,  // inv_freq / short_factors or long_factors
  kFactors,   // inv_freq / short_factors (GGUF's rope_freqs tensor)
};

struct RopeParameters {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  int64_t rotary_dim = 0;  // R: the first R dims of a head are rotated
  double factor = 1.0;
  int64_t original_max_position = 0;
  double attention_factor = 0.0;  // on cos and sin (yarn, longrope); 0: the type's own rule
  double mscale = 0.0;  // yarn: both set, attention factor = m(mscale) / m(mscale_all_dim)
  double mscale_all_dim = 0.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  bool truncate = true;  // yarn: round the corrected range to whole dims
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  std::vector<float> short_factors;  // [R/2]
  std::vector<float> long_factors;
};

// [positions, R] float32: cos of R/2 angles, then their sin, times the attention factor.
// `positions` is the longest sequence that will be served: dynamic scaling and longrope choose by
// it. All arithmetic is in float32 in transformers' order, so that far positions agree with it.
Tensor rope_table(const RopeParameters& parameters, int64_t positions);

// The R/2 frequencies, and the factor on cos and sin.
struct RopeFrequencies {
  std::vector<float> inv_freq;
  float attention_factor = 1.0f;
};
RopeFrequencies rope_frequencies(const RopeParameters& parameters, int64_t positions);

}  // namespace reft
