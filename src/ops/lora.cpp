#include "ops/lora.h"

#include "ops/linear.h"
#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Tensor&, const Tensor&, const Weight&)> linear_add_kernel{"linear_add"};
constinit Kernel<void(Tensor&, const Weight&)> squared_row_norms_kernel{"squared_row_norms"};
constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, float)>
    adapted_row_norms_kernel{"adapted_row_norms"};
constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&)>
    dora_kernel{"dora"};
constinit Kernel<void(const GradientSlot&, const GradientSlot&, const Tensor&, const Tensor&,
                      const Tensor&, const Tensor&)>
    dora_backward_kernel{"dora_backward"};

namespace {

bool is_vector(const Tensor& t, int64_t n) {
  return t.dims() == 1 && t.size(0) == n && t.dtype() == DType::kF32;
}

}  // namespace

void linear_add_into(Tensor& y, const Tensor& x, const Weight& weight) {
  check(weight.data.defined() && is_float(weight.data.dtype()),
        "linear_add: the weight must be plain, got {}", weight.data);
  check(x.dims() == 2 && x.size(1) == weight.in_features && x.dtype() == y.dtype(),
        "linear_add: x is {}, the weight is [{}, {}]", x, weight.out_features, weight.in_features);
  check(y.dims() == 2 && y.size(0) == x.size(0) && y.size(1) == weight.out_features,
        "linear_add: the result is {}, not [{}, {}]", y, x.size(0), weight.out_features);
  if (y.numel() > 0) linear_add_kernel(x.device(), y, x, weight);
  Tape* tape = Tape::recording({&x, &weight.data});
  if (tape == nullptr) return;
  const Tensor operand = tape->needs_gradient(weight.data) ? x : Tensor();
  tape->record("linear_add", {x, weight.data}, {y}, [operand, weight](Tape::Gradients& g) {
    const Tensor& dy = g.output();
    const Device device = dy.device();
    if (const GradientSlot dx = g.input(0)) linear_input_backward_kernel(device, dx, dy, weight);
    if (const GradientSlot dw = g.input(1))
      linear_weight_backward_kernel(device, dw, dy, operand, weight.dtype);
  });
}

Tensor squared_row_norms(const Weight& weight) {
  const Device device = weight.packed != nullptr ? kCpuDevice : weight.data.device();
  Tensor sums = Tensor::empty({weight.out_features}, DType::kF32, device);
  if (sums.numel() > 0) squared_row_norms_kernel(device, sums, weight);
  return sums;
}

Tensor adapted_row_norms(const Tensor& squared, const Tensor& projected, const Tensor& gram,
                         const Tensor& b, float scale) {
  const int64_t n = squared.numel(), r = b.size(1);
  check(is_vector(squared, n) && projected.shape() == Shape({r, n}) &&
            gram.shape() == Shape({r, r}) && b.shape() == Shape({n, r}),
        "adapted_row_norms: squared {}, projected {}, gram {}, b {}", squared, projected, gram, b);
  Tensor norms = Tensor::empty({n}, DType::kF32, squared.device());
  if (n > 0) adapted_row_norms_kernel(squared.device(), norms, squared, projected, gram, b, scale);
  return norms;
}

void dora_into(Tensor& y, const Tensor& u, const Tensor& magnitude, const Tensor& norms,
               const Tensor& bias) {
  check(y.dims() == 2 && y.shape() == u.shape() && y.dtype() == u.dtype(),
        "dora: u is {}, the result {}", u, y);
  const int64_t n = y.size(1);
  const bool scaled = magnitude.defined();
  check((!scaled || (is_vector(magnitude, n) && is_vector(norms, n))) &&
            (!bias.defined() || is_vector(bias, n)),
        "dora: magnitude {}, norms {} and bias {} for {} columns", magnitude, norms, bias, n);
  if (y.numel() > 0) dora_kernel(y.device(), y, u, magnitude, norms, bias);
  if (Tape* tape = Tape::recording({&u, &magnitude})) {
    tape->record("dora", {u, magnitude}, {y}, [=](Tape::Gradients& g) {
      const Tensor& dy = g.output();
      if (dy.numel() == 0) return;
      if (const GradientSlot du = g.input(0))
        dora_backward_kernel(u.device(), du, {}, dy, u, magnitude, norms);
      if (const GradientSlot dmagnitude = g.input(1))
        dora_backward_kernel(u.device(), {}, dmagnitude, dy, u, magnitude, norms);
    });
  }
}

}  // namespace reft
