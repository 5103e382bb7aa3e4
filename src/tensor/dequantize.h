// Block formats to float, the reference that every quantised kernel is tested against.
#pragma once

#include "tensor/dtype.h"

namespace reft {

// Expands `elems` elements (whole blocks) at `blocks` to floats. Any dtype that holds floats is
// accepted. Throws Error for integer types.
void dequantize_row(DType dtype, const void* blocks, float* out, int64_t elems);
// The inverse for float32, float16, bfloat16, float8_e4m3 (saturating), Q4_0, Q4_1, Q5_0, Q5_1,
// Q8_0 (round to nearest, ggml's reference quantisers' rule), Q4_K (quantize_k.h) and MXFP4. Throws
// Error for the rest.
void quantize_row(DType dtype, const float* values, void* blocks, int64_t elems);

}  // namespace reft
