// Update steps of the optimizers, in place, and the norm of the gradients. A parameter is `value`:
// contiguous float32 or bfloat16; `master` holds its float32 copy (value bfloat16) or is undefined;
// `grad` is float32 of the same shape. With a master the value is its copy rounded to nearest;
// a bfloat16 value without one is rounded stochastically, as bfloat16 states are. Results do not
// depend on the number of threads. Every front throws Error naming op and tensors at fault.
#pragma once

#include <span>

#include "ops/kernel.h"
#include "tensor/tensor.h"

namespace reft {

// Names the random numbers that one update of one parameter draws: the same step gives the same
// bits, so a resumed run goes on exactly. `stream` tells steps and parameters apart.
struct RoundingRng {
  uint64_t seed = 0;
  uint64_t stream = 0;
};

struct AdamWArgs {
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0;  // decoupled: value *= 1 − learning_rate weight_decay
  int64_t step = 1;         // counts from 1
  double grad_scale = 1;    // the gradient is multiplied by it first (clipping)
  RoundingRng rng;
};

// g = grad grad_scale; m += (1 − β1)(g − m); v = β2 v + (1 − β2) g²; p decays;
// p −= lr / (1 − β1^step) · m / (sqrt(v / (1 − β2^step)) + eps). m, v: both float32 or both
// bfloat16, shape of value. Follows torch.optim.AdamW.
void adamw(Tensor& value, Tensor& master, Tensor& m, Tensor& v, const Tensor& grad,
           const AdamWArgs& args);
extern Kernel<void(Tensor& value, Tensor& master, Tensor& m, Tensor& v, const Tensor& grad,
                   const AdamWArgs& args)>
    adamw_kernel;

// Adam's moments in 8 bits: blocks of kAdam8Block neighbours of the flattened parameter share a
// float32 scale, their largest magnitude. m = scale · sign(c) (c / 127)², c int8; v = scale ·
// (c / 255)⁴, c uint8. The codes are denser towards zero, where most moments lie. Values between
// two codes are rounded stochastically, so that the stored moments are right on average and slow
// averages still move; a v above 0 never becomes 0. Ours; the blocks are those of Dettmers et al.,
// "8-bit Optimizers via Block-wise Quantization" (2021).
inline constexpr int64_t kAdam8Block = 256;
struct Adam8State {
  Tensor m, v;              // int8, uint8, shape of the parameter
  Tensor m_scale, v_scale;  // float32 [ceil(numel / kAdam8Block)]

  static Adam8State zeros(const Tensor& value);
};

// As `adamw`, with the moments in 8 bits.
void adamw_8bit(Tensor& value, Tensor& master, Adam8State& state, const Tensor& grad,
                const AdamWArgs& args);
extern Kernel<void(Tensor& value, Tensor& master, Adam8State& state, const Tensor& grad,
                   const AdamWArgs& args)>
    adamw_8bit_kernel;

struct SgdArgs {
  double learning_rate = 0;
  double momentum = 0;
  double weight_decay = 0;  // added to the gradient: g += weight_decay p
  double grad_scale = 1;
  RoundingRng rng;
};

// g = grad grad_scale + weight_decay p; b = momentum b + g; p −= lr b. `buffer` float32 of the
// shape of value, zeros before the first step; undefined without momentum (then b = g). Follows
// torch.optim.SGD.
void sgd(Tensor& value, Tensor& master, Tensor& buffer, const Tensor& grad, const SgdArgs& args);
extern Kernel<void(Tensor& value, Tensor& master, Tensor& buffer, const Tensor& grad,
                   const SgdArgs& args)>
    sgd_kernel;

struct MuonArgs {
  double learning_rate = 0;
  double momentum = 0.95;
  double weight_decay = 0;  // decoupled
  double grad_scale = 1;
  RoundingRng rng;
};

// For a matrix [M, N]. g = grad grad_scale; b += (1 − momentum)(g − b); u = orthogonalize(g +
// momentum (b − g)); p decays; p −= 0.2 sqrt(max(M, N)) lr u, which gives u the size of an AdamW
// step, so that one learning rate and weight decay serve both. `buffer` float32, zeros before the
// first step. Follows torch.optim.Muon with adjust_lr_fn="match_rms_adamw" (Moonlight,
// arXiv:2502.16982).
void muon(Tensor& value, Tensor& master, Tensor& buffer, const Tensor& grad, const MuonArgs& args);
// The parts that are kernels: u = g + momentum (b − g) after b's update …
extern Kernel<void(Tensor& update, Tensor& buffer, const Tensor& grad, double momentum,
                   double grad_scale)>
    muon_momentum_kernel;
// … p = decay p − rate u.
extern Kernel<void(Tensor& value, Tensor& master, const Tensor& update, double rate, double decay,
                   const RoundingRng& rng)>
    apply_update_kernel;

// x / |x|, then five times x = a x + (b A + c A²) x with A = x xᵀ and (a, b, c) = (3.4445, −4.775,
// 2.0315): nearly the closest matrix with orthonormal rows (or columns, whichever are fewer);
// singular values end in about [0.7, 1.2]. x: [M, N] float32, in place. Source: Keller Jordan,
// "Muon: An optimizer for hidden layers in neural networks".
void orthogonalize(Tensor& x);
extern Kernel<void(Tensor& x)> orthogonalize_kernel;

// sqrt of the sum of squares over all tensors (float32, contiguous, one device), in float64 and in
// a fixed order. Not finite exactly when some element is not. Waits for the device.
double global_norm(std::span<const Tensor> tensors);
// sums: float64 [number of tensors], on the tensors' device.
extern Kernel<void(Tensor& sums, std::span<const Tensor> tensors)> square_sums_kernel;

// What gradients of norm `norm` are multiplied by so that it is at most `max_norm` (0: no limit).
// Follows torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)).
double clip_scale(double norm, double max_norm);

}  // namespace reft
