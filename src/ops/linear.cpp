#include "ops/linear.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias)>
    linear_kernel{"linear"};
constinit Kernel<bool(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                      Activation activation)>
    gated_linear_kernel{"gated_linear"};
constinit Kernel<void(const GradientSlot& dx, const Tensor& dy, const Weight& weight)>
    linear_input_backward_kernel{"linear_input_backward"};
constinit Kernel<void(const GradientSlot& dw, const Tensor& dy, const Tensor& x, DType weight)>
    linear_weight_backward_kernel{"linear_weight_backward"};
constinit Kernel<void(const GradientSlot& sums, const Tensor& dy)> column_sums_kernel{
    "column_sums"};

namespace {

void check_linear(const Tensor& x, const Weight& weight, const Tensor& bias) {
  check(x.dims() == 2 && x.size(1) == weight.in_features, "linear: x is {}, the weight is [{}, {}]",
        x, weight.out_features, weight.in_features);
  check(!bias.defined() || (bias.dims() == 1 && bias.size(0) == weight.out_features),
        "linear: bias is {}, the weight has {} rows", bias, weight.out_features);
}

void record_linear(Tape& tape, const Tensor& y, const Tensor& x, const Weight& weight,
                   const Tensor& bias) {
  // x is needed, and kept, for the gradient of the weight only.
  const Tensor operand = tape.needs_gradient(weight.data) ? x : Tensor();
  tape.record("linear", {x, weight.data, bias}, {y}, [operand, weight](Tape::Gradients& g) {
    const Tensor& dy = g.output();
    const Device device = dy.device();
    if (const GradientSlot dx = g.input(0)) linear_input_backward_kernel(device, dx, dy, weight);
    if (const GradientSlot dw = g.input(1))
      linear_weight_backward_kernel(device, dw, dy, operand, weight.dtype);
    if (const GradientSlot db = g.input(2)) column_sums_kernel(device, db, dy);
  });
}

}  // namespace

void linear_into(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias) {
  check(y.dtype() == x.dtype() || y.dtype() == DType::kF32, "linear: a result of {} from x {}",
        dtype_name(y.dtype()), x);
  check_linear(x, weight, bias);
  check(y.dims() == 2 && y.size(0) == x.size(0) && y.size(1) == weight.out_features,
        "linear: the result is {}, not [{}, {}]", y, x.size(0), weight.out_features);
  if (y.numel() > 0) linear_kernel(x.device(), y, x, weight, bias);
  if (Tape* tape = Tape::recording({&x, &weight.data, &bias}))
    record_linear(*tape, y, x, weight, bias);
}

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias, DType out_dtype) {
  check(x.dims() == 2, "linear: x is {}, not [T, K]", x);
  Tensor y = Tensor::empty({x.size(0), weight.out_features}, out_dtype, x.device());
  linear_into(y, x, weight, bias);
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
