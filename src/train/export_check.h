// How far two models are apart in what they predict.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/tensor.h"
#include "train/export.h"

namespace reft {

// Logits [T, V] of all positions of a sequence, by the model at `path` in float32.
Tensor probe_logits(const std::string& path, const std::vector<int32_t>& ids);
// KL(softmax a ‖ softmax b) in nats; both of `size` logits.
double kl_divergence(const float* a, const float* b, int64_t size);

// Both in float32, over the same few sequences of token ids; they must have one vocabulary.
ExportDifference compare_models(const std::string& source, const std::string& written, bool quiet);

}  // namespace reft
