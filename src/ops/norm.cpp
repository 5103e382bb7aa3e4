#include "ops/norm.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, float, NormKind)> rms_norm_kernel{
    "rms_norm"};
constinit Kernel<void(Tensor&, Tensor&, const Tensor&, const Tensor&, float, NormKind)>
    add_rms_norm_kernel{"add_rms_norm"};
constinit Kernel<void(Tensor&, const Tensor&)> add_into_kernel{"add_into"};
constinit Kernel<void(const GradientSlot&, const GradientSlot&, const Tensor&, const Tensor&,
                      const Tensor&, float, NormKind)>
    rms_norm_backward_kernel{"rms_norm_backward"};
constinit Kernel<void(const GradientSlot&, const GradientSlot&, const GradientSlot&, const Tensor&,
                      const Tensor&, const Tensor&, const Tensor&, float, NormKind)>
    add_rms_norm_backward_kernel{"add_rms_norm_backward"};

namespace {

void check_weight(const char* op, const Tensor& x, const Tensor& weight) {
  check(x.dims() == 2 && is_float(x.dtype()) && (x.size(1) == 0 || x.stride(1) == 1),
        "{}: x must be [T, D] with packed rows, got {}", op, x);
  if (!weight.defined()) return;
  check(weight.dtype() == DType::kF32 && weight.shape() == Shape{x.size(1)} &&
            weight.is_contiguous() && weight.device() == x.device(),
        "{}: weight must be float32 [{}] beside x, got {} for x {}", op, x.size(1), weight, x);
}

void check_pair(const char* op, const Tensor& a, const Tensor& b) {
  check(a.shape() == b.shape() && a.dtype() == b.dtype() && a.device() == b.device() &&
            a.is_contiguous() && b.is_contiguous(),
        "{}: both tensors must be contiguous and of one shape, dtype and device, got {} and {}", op,
        a, b);
}

// Both addends get the gradient of the sum: what came along the residual stream, plus the norm's.
void add_rms_norm_backward(Tape::Gradients& g, const Tensor& sum, const Tensor& weight, float eps,
                           NormKind kind) {
  const Tensor &dy = g.output(0), &dsum = g.output(1);
  if (dy.defined() && add_rms_norm_backward_kernel.has(sum.device().type)) {
    const GradientSlot dresidual = g.input(0), dx = g.input(1), dweight = g.input(2);
    add_rms_norm_backward_kernel(sum.device(), dresidual, dx, dweight, dy, dsum, sum, weight, eps,
                                 kind);
    return;
  }
  Tensor total = dsum;
  if (dy.defined()) {
    GradientSlot of_norm;
    if (g.wants(0) || g.wants(1)) {
      of_norm.tensor = Tensor::empty(sum.shape(), sum.dtype(), sum.device());
      of_norm.accumulate = dsum.defined();
      if (dsum.defined()) of_norm.tensor.copy_from(dsum);
    }
    rms_norm_backward_kernel(sum.device(), of_norm, g.input(2), dy, sum, weight, eps, kind);
    total = of_norm.tensor;
  }
  if (const GradientSlot dx = g.input(0)) add_gradient(dx, total);
  if (const GradientSlot dx = g.input(1)) add_gradient(dx, total);
}

Tensor copy_of(const Tensor& x) {
  Tensor copy = Tensor::empty(x.shape(), x.dtype(), x.device());
  copy.copy_from(x);
  return copy;
}

}  // namespace

void add_gradient(const GradientSlot& to, const Tensor& gradient) {
  Tensor sum = to.tensor;
  if (to.accumulate) {
    add_into(sum, gradient);
  } else {
    sum.copy_from(gradient);
  }
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps, NormKind kind) {
  check_weight("rms_norm", x, weight);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() > 0) rms_norm_kernel(x.device(), y, x, weight, eps, kind);
  if (Tape* tape = Tape::recording({&x, &weight})) {
    tape->record("rms_norm", {x, weight}, {y}, [=](Tape::Gradients& g) {
      rms_norm_backward_kernel(x.device(), g.input(0), g.input(1), g.output(), x, weight, eps,
                               kind);
    });
  }
  return y;
}

Tensor add_rms_norm(Tensor& residual, const Tensor& x, const Tensor& weight, float eps,
                    NormKind kind) {
  check_weight("add_rms_norm", residual, weight);
  check_pair("add_rms_norm", residual, x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  const Tensor before = residual;
  if (Tape::current() != nullptr) residual = copy_of(residual);
  if (y.numel() > 0) add_rms_norm_kernel(x.device(), y, residual, x, weight, eps, kind);
  if (Tape* tape = Tape::recording({&before, &x, &weight})) {
    tape->record("add_rms_norm", {before, x, weight}, {y, residual},
                 [sum = residual, weight, eps, kind](Tape::Gradients& g) {
                   add_rms_norm_backward(g, sum, weight, eps, kind);
                 });
  }
  return y;
}

void add_into(Tensor& a, const Tensor& b) {
  check_pair("add_into", a, b);
  check(is_float(a.dtype()), "add_into: float tensors wanted, got {}", a);
  const Tensor before = a;
  if (Tape::current() != nullptr) a = copy_of(a);
  if (a.numel() > 0) add_into_kernel(a.device(), a, b);
  if (Tape* tape = Tape::recording({&before, &b})) {
    tape->record("add_into", {before, b}, {a}, [](Tape::Gradients& g) {
      for (size_t i = 0; i < 2; ++i) {
        if (const GradientSlot dx = g.input(i)) add_gradient(dx, g.output());
      }
    });
  }
}

}  // namespace reft
