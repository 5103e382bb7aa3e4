#include "ops/linear.h"

namespace reft {

constinit Kernel<void(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias)>
    linear_kernel{"linear"};

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias) {
  check(x.dims() == 2 && x.size(1) == weight.in_features, "linear: x is {}, the weight is [{}, {}]",
        x.str(), weight.out_features, weight.in_features);
  check(!bias.defined() || (bias.dims() == 1 && bias.size(0) == weight.out_features),
        "linear: bias is {}, the weight has {} rows", bias.str(), weight.out_features);
  Tensor y = Tensor::empty({x.size(0), weight.out_features}, x.dtype(), x.device());
  if (y.numel() > 0) linear_kernel(x.device(), y, x, weight, bias);
  return y;
}

}  // namespace reft
