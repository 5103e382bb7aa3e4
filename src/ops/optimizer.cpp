#include "ops/optimizer.h"

#include <algorithm>
#include <cmath>

namespace reft {

constinit Kernel<void(Tensor&, Tensor&, Tensor&, Tensor&, const Tensor&, const AdamWArgs&)>
    adamw_kernel{"adamw"};
constinit Kernel<void(Tensor&, Tensor&, Adam8State&, const Tensor&, const AdamWArgs&)>
    adamw_8bit_kernel{"adamw_8bit"};
constinit Kernel<void(Tensor&, Tensor&, Tensor&, const Tensor&, const SgdArgs&)> sgd_kernel{"sgd"};
constinit Kernel<void(Tensor&, Tensor&, const Tensor&, double, double)> muon_momentum_kernel{
    "muon_momentum"};
constinit Kernel<void(Tensor&, Tensor&, const Tensor&, double, double, const RoundingRng&)>
    apply_update_kernel{"apply_update"};
constinit Kernel<void(Tensor&)> orthogonalize_kernel{"orthogonalize"};
constinit Kernel<void(Tensor&, std::span<const Tensor>)> square_sums_kernel{"square_sums"};

namespace {

void check_parameter(const char* op, const Tensor& value, const Tensor& master,
                     const Tensor& grad) {
  check(value.defined() && (value.dtype() == DType::kF32 || value.dtype() == DType::kBF16) &&
            value.is_contiguous(),
        "{}: a parameter must be contiguous float32 or bfloat16, got {}", op, value);
  check(grad.defined() && grad.dtype() == DType::kF32 && grad.shape() == value.shape() &&
            grad.is_contiguous() && grad.device() == value.device(),
        "{}: the gradient must be contiguous float32 {} beside the parameter, got {}", op,
        value.shape(), grad);
  if (!master.defined()) return;
  check(value.dtype() == DType::kBF16, "{}: a {} parameter needs no float32 master", op,
        dtype_name(value.dtype()));
  check(master.dtype() == DType::kF32 && master.shape() == value.shape() &&
            master.is_contiguous() && master.device() == value.device(),
        "{}: the master must be contiguous float32 {} beside the parameter, got {}", op,
        value.shape(), master);
}

void check_state(const char* op, const char* what, const Tensor& state, const Tensor& value,
                 DType dtype, const Shape& shape) {
  check(state.defined() && state.dtype() == dtype && state.shape() == shape &&
            state.is_contiguous() && state.device() == value.device(),
        "{}: {} must be contiguous {} {} beside the parameter, got {}", op, what, dtype_name(dtype),
        shape, state);
}

}  // namespace

void adamw(Tensor& value, Tensor& master, Tensor& m, Tensor& v, const Tensor& grad,
           const AdamWArgs& args) {
  check_parameter("adamw", value, master, grad);
  const DType dtype = m.dtype() == DType::kBF16 ? DType::kBF16 : DType::kF32;
  check_state("adamw", "m", m, value, dtype, value.shape());
  check_state("adamw", "v", v, value, dtype, value.shape());
  check(args.step >= 1, "adamw: steps count from 1, got {}", args.step);
  if (value.numel() > 0) adamw_kernel(value.device(), value, master, m, v, grad, args);
}

Adam8State Adam8State::zeros(const Tensor& value) {
  const Shape blocks = {(value.numel() + kAdam8Block - 1) / kAdam8Block};
  return {Tensor::zeros(value.shape(), DType::kI8, value.device()),
          Tensor::zeros(value.shape(), DType::kU8, value.device()),
          Tensor::zeros(blocks, DType::kF32, value.device()),
          Tensor::zeros(blocks, DType::kF32, value.device())};
}

void adamw_8bit(Tensor& value, Tensor& master, Adam8State& state, const Tensor& grad,
                const AdamWArgs& args) {
  check_parameter("adamw_8bit", value, master, grad);
  const Shape blocks = {(value.numel() + kAdam8Block - 1) / kAdam8Block};
  check_state("adamw_8bit", "m", state.m, value, DType::kI8, value.shape());
  check_state("adamw_8bit", "v", state.v, value, DType::kU8, value.shape());
  check_state("adamw_8bit", "m_scale", state.m_scale, value, DType::kF32, blocks);
  check_state("adamw_8bit", "v_scale", state.v_scale, value, DType::kF32, blocks);
  check(args.step >= 1, "adamw_8bit: steps count from 1, got {}", args.step);
  if (value.numel() > 0) adamw_8bit_kernel(value.device(), value, master, state, grad, args);
}

void sgd(Tensor& value, Tensor& master, Tensor& buffer, const Tensor& grad, const SgdArgs& args) {
  check_parameter("sgd", value, master, grad);
  if (buffer.defined() || args.momentum != 0) {
    check_state("sgd", "the buffer", buffer, value, DType::kF32, value.shape());
  }
  if (value.numel() > 0) sgd_kernel(value.device(), value, master, buffer, grad, args);
}

void muon(Tensor& value, Tensor& master, Tensor& buffer, const Tensor& grad, const MuonArgs& args) {
  check_parameter("muon", value, master, grad);
  check(value.dims() == 2, "muon: a matrix is wanted, got {}", value);
  check_state("muon", "the buffer", buffer, value, DType::kF32, value.shape());
  if (value.numel() == 0) return;
  Tensor update = Tensor::empty(value.shape(), DType::kF32, value.device());
  muon_momentum_kernel(value.device(), update, buffer, grad, args.momentum, args.grad_scale);
  orthogonalize(update);
  const double size = 0.2 * std::sqrt(static_cast<double>(std::max(value.size(0), value.size(1))));
  apply_update_kernel(value.device(), value, master, update, size * args.learning_rate,
                      1 - args.learning_rate * args.weight_decay, args.rng);
}

void orthogonalize(Tensor& x) {
  check(x.defined() && x.dims() == 2 && x.dtype() == DType::kF32 && x.is_contiguous(),
        "orthogonalize: a contiguous float32 matrix is wanted, got {}", x);
  if (x.numel() > 0) orthogonalize_kernel(x.device(), x);
}

double global_norm(std::span<const Tensor> tensors) {
  if (tensors.empty()) return 0;
  const Device device = tensors.front().device();
  for (const Tensor& t : tensors) {
    check(t.defined() && t.dtype() == DType::kF32 && t.is_contiguous() && t.device() == device,
          "global_norm: contiguous float32 tensors on {} wanted, got {}", device, t);
  }
  Tensor sums = Tensor::empty({static_cast<int64_t>(tensors.size())}, DType::kF64, device);
  square_sums_kernel(device, sums, tensors);
  const Tensor host = sums.to(kCpuDevice);
  const auto* values = reinterpret_cast<const double*>(host.raw());
  double sum = 0;
  for (int64_t i = 0; i < host.numel(); ++i) sum += values[i];
  return std::sqrt(sum);
}

double clip_scale(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace reft
