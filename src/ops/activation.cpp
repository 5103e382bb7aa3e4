#include "ops/activation.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Tensor&, const Tensor&, Activation)> gated_activation_kernel{
    "gated_activation"};
constinit Kernel<void(Tensor&, float)> soft_cap_kernel{"soft_cap"};
constinit Kernel<void(const GradientSlot&, const Tensor&, const Tensor&, Activation)>
    gated_activation_backward_kernel{"gated_activation_backward"};
constinit Kernel<void(const GradientSlot&, const Tensor&, const Tensor&, float)>
    soft_cap_backward_kernel{"soft_cap_backward"};

Activation parse_activation(std::string_view name) {
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGeluErf;
  if (name == "relu") return Activation::kRelu;
  fail("unknown activation '{}' (known: silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu)",
       name);
}

Tensor gated_activation(const Tensor& gate_up, Activation activation) {
  check(gate_up.dims() == 2 && gate_up.size(1) % 2 == 0 && is_float(gate_up.dtype()) &&
            (gate_up.size(1) == 0 || gate_up.stride(1) == 1),
        "gated_activation: gate_up must be [T, 2F] with packed rows, got {}", gate_up);
  Tensor y =
      Tensor::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.dtype(), gate_up.device());
  if (y.numel() > 0) gated_activation_kernel(gate_up.device(), y, gate_up, activation);
  if (Tape* tape = Tape::recording({&gate_up})) {
    tape->record("gated_activation", {gate_up}, {y}, [=](Tape::Gradients& g) {
      gated_activation_backward_kernel(gate_up.device(), g.input(0), g.output(), gate_up,
                                       activation);
    });
  }
  return y;
}

void soft_cap_(Tensor& x, float cap) {
  check(is_float(x.dtype()) && x.is_contiguous(),
        "soft_cap_: a contiguous float tensor wanted, got {}", x);
  check(cap > 0, "soft_cap_: the cap must be positive, got {}", cap);
  const Tensor before = x;
  if (Tape::current() != nullptr) {
    x = Tensor::empty(x.shape(), x.dtype(), x.device());
    x.copy_from(before);
  }
  if (x.numel() > 0) soft_cap_kernel(x.device(), x, cap);
  if (Tape* tape = Tape::recording({&before})) {
    tape->record("soft_cap", {before}, {x}, [y = x, cap](Tape::Gradients& g) {
      soft_cap_backward_kernel(y.device(), g.input(0), g.output(), y, cap);
    });
  }
}

}  // namespace reft
