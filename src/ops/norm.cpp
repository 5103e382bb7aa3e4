#include "ops/norm.h"

namespace reft {

constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, float, NormKind)> rms_norm_kernel{
    "rms_norm"};
constinit Kernel<void(Tensor&, Tensor&, const Tensor&, const Tensor&, float, NormKind)>
    add_rms_norm_kernel{"add_rms_norm"};
constinit Kernel<void(Tensor&, const Tensor&)> add_into_kernel{"add_into"};

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

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps, NormKind kind) {
  check_weight("rms_norm", x, weight);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() > 0) rms_norm_kernel(x.device(), y, x, weight, eps, kind);
  return y;
}

Tensor add_rms_norm(Tensor& residual, const Tensor& x, const Tensor& weight, float eps,
                    NormKind kind) {
  check_weight("add_rms_norm", residual, weight);
  check_pair("add_rms_norm", residual, x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() > 0) add_rms_norm_kernel(x.device(), y, residual, x, weight, eps, kind);
  return y;
}

void add_into(Tensor& a, const Tensor& b) {
  check_pair("add_into", a, b);
  check(is_float(a.dtype()), "add_into: float tensors wanted, got {}", a);
  if (a.numel() > 0) add_into_kernel(a.device(), a, b);
}

}  // namespace reft
