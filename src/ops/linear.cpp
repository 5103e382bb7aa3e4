#include "ops/linear.h"

namespace reft {

constinit Kernel<void(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias)>
    linear_kernel{"linear"};

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias, DType out_dtype) {
  check(out_dtype == x.dtype() || out_dtype == DType::kF32, "linear: a result of {} from x {}",
        dtype_name(out_dtype), x);
  check(x.dims() == 2 && x.size(1) == weight.in_features, "linear: x is {}, the weight is [{}, {}]",
        x, weight.out_features, weight.in_features);
  check(!bias.defined() || (bias.dims() == 1 && bias.size(0) == weight.out_features),
        "linear: bias is {}, the weight has {} rows", bias, weight.out_features);
  Tensor y = Tensor::empty({x.size(0), weight.out_features}, out_dtype, x.device());
  if (y.numel() > 0) linear_kernel(x.device(), y, x, weight, bias);
  return y;
}

}  // namespace reft
