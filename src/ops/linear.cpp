#include "ops/linear.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias)>
    linear_kernel{"linear"};
constinit Kernel<bool(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                      Activation activation)>
    gated_linear_kernel{"gated_linear"};

namespace {

void check_linear(const Tensor& x, const Weight& weight, const Tensor& bias) {
  check(x.dims() == 2 && x.size(1) == weight.in_features, "linear: x is {}, the weight is [{}, {}]",
        x, weight.out_features, weight.in_features);
  check(!bias.defined() || (bias.dims() == 1 && bias.size(0) == weight.out_features),
        "linear: bias is {}, the weight has {} rows", bias, weight.out_features);
}

}  // namespace

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias, DType out_dtype) {
  check(out_dtype == x.dtype() || out_dtype == DType::kF32, "linear: a result of {} from x {}",
        dtype_name(out_dtype), x);
  check_linear(x, weight, bias);
  Tensor y = Tensor::empty({x.size(0), weight.out_features}, out_dtype, x.device());
  if (y.numel() > 0) linear_kernel(x.device(), y, x, weight, bias);
  return y;
}

Tensor gated_linear(const Tensor& x, const Weight& weight, const Tensor& bias,
                    Activation activation) {
  const Device device = x.device();
  if (x.size(0) > 0 && gated_linear_kernel.has(device.type) && Tape::current() == nullptr) {
    check_linear(x, weight, bias);
    check(weight.out_features % 2 == 0, "gated_linear: {} rows are not gate and up",
          weight.out_features);
    Tensor y = Tensor::empty({x.size(0), weight.out_features / 2}, x.dtype(), device);
    if (gated_linear_kernel(device, y, x, weight, bias, activation)) return y;
  }
  return gated_activation(linear(x, weight, bias), activation);
}

}  // namespace reft
