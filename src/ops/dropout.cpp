#include "ops/dropout.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(const GradientSlot&, const Tensor&, const DropoutArgs&)> dropout_kernel{
    "dropout"};
constinit Kernel<void(Tensor&, const Tensor&, uint64_t, uint64_t)> add_uniform_noise_kernel{
    "add_uniform_noise"};

Tensor dropout(const Tensor& x, const DropoutArgs& args) {
  check(x.dims() == 2 && is_float(x.dtype()) && (x.size(1) == 0 || x.stride(1) == 1),
        "dropout: x must be [T, K] with packed rows, got {}", x);
  check(args.p >= 0 && args.p < 1, "dropout: p must be at least 0 and below 1, got {}", args.p);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() > 0) dropout_kernel(x.device(), {y, false}, x, args);
  if (Tape* tape = Tape::recording({&x})) {
    tape->record("dropout", {x}, {y}, [args](Tape::Gradients& g) {
      const Tensor& dy = g.output();
      if (dy.numel() > 0) dropout_kernel(dy.device(), g.input(0), dy, args);
    });
  }
  return y;
}

void add_uniform_noise(Tensor& x, const Tensor& row_scale, uint64_t seed, uint64_t stream) {
  check(x.dims() == 2 && is_float(x.dtype()) && x.is_contiguous(),
        "add_uniform_noise: x must be [T, D], got {}", x);
  check(row_scale.dims() == 1 && row_scale.size(0) == x.size(0) && row_scale.dtype() == DType::kF32,
        "add_uniform_noise: row_scale is {}, not float32 [{}]", row_scale, x.size(0));
  if (x.numel() > 0) add_uniform_noise_kernel(x.device(), x, row_scale, seed, stream);
}

}  // namespace reft
