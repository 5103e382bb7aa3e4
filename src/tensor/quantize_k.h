// Quantisers that search for the scales of GGUF's super-blocks.
#pragma once

#include <cstdint>

namespace reft {

// 256 values to a Q4_K block (144 bytes): x ≈ d · s · q − dmin · m in groups of 32, q of 4 bits, s
// and m of 6. As in ggml, scales minimise Σ w (x − x̂)² with w = |x| + sqrt(mean x²) in the group,
// so that large weights are kept better. Values that are not finite count as 0.
void quantize_q4_k(const float* values, uint8_t* block);

}  // namespace reft
