// NEFTune: noise on the embeddings of a training batch. Source: Jain et al. (2023).
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace reft {

// embedded[t] += u · alpha / √(L · D), u uniform in [−1, 1), where L is the length of t's sequence.
// embedded: [T, D], changed in place; sequence_start: B + 1 rows. Draws are a function of (seed,
// pass, place).
void add_neftune_noise(Tensor& embedded, const std::vector<int32_t>& sequence_start, double alpha,
                       uint64_t seed, uint64_t pass);

}  // namespace reft
