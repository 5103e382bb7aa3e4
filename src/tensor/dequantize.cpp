#include "tensor/dequantize.h"

#include <cstring>

#include "base/check.h"
#include "tensor/float_types.h"

namespace reft {
namespace {

template <class T>
void expand(const void* in, float* out, int64_t n) {
  const T* values = static_cast<const T*>(in);
  for (int64_t i = 0; i < n; ++i) out[i] = to_float(values[i]);
}
template <class T>
void narrow(const float* in, void* out, int64_t n) {
  T* values = static_cast<T*>(out);
  for (int64_t i = 0; i < n; ++i) values[i] = from_float<T>(in[i]);
}

}  // namespace

void dequantize_row(DType dtype, const void* blocks, float* out, int64_t elems) {
  switch (dtype) {
    case DType::kF32: return expand<float>(blocks, out, elems);
    case DType::kF16: return expand<f16>(blocks, out, elems);
    case DType::kBF16: return expand<bf16>(blocks, out, elems);
    default: fail("{} cannot be expanded to float", dtype_name(dtype));
  }
}

void quantize_row(DType dtype, const float* values, void* blocks, int64_t elems) {
  switch (dtype) {
    case DType::kF32: return narrow<float>(values, blocks, elems);
    case DType::kF16: return narrow<f16>(values, blocks, elems);
    case DType::kBF16: return narrow<bf16>(values, blocks, elems);
    default: fail("values cannot be quantised to {}", dtype_name(dtype));
  }
}

}  // namespace reft
