// RMS normalisation.
#pragma once

#include "ops/kernel.h"
#include "tensor/gradient.h"
#include "tensor/tensor.h"

namespace reft {

// How the weight enters. kPlain: y = cast(x̂) * w (Llama, Qwen). kFloat: y = cast(x̂ * w) in fp32
// (GPT-OSS). kOnePlus: y = cast(x̂ * (1 + w)) in fp32 (Gemma, Qwen3-Next). In fp32 the first two
// agree.
enum class NormKind { kPlain, kFloat, kOnePlus };

// x̂ = x / sqrt(mean(x²) + eps), over the last dimension. x: [T, D] (rows may be strided); weight:
// [D] float32 or undefined (then y = x̂). Returns [T, D]. Follows LlamaRMSNorm / Gemma2RMSNorm.
Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps, NormKind kind = NormKind::kPlain);
extern Kernel<void(Tensor& y, const Tensor& x, const Tensor& weight, float eps, NormKind kind)>
    rms_norm_kernel;
// With s = 1 / sqrt(mean(x²) + eps) and g = dy (w, or 1 + w): dx = s (g − x̂ mean(g x̂)), and
// dweight = Σ over t of dy x̂. Either slot may be empty; x may have strided rows.
extern Kernel<void(const GradientSlot& dx, const GradientSlot& dweight, const Tensor& dy,
                   const Tensor& x, const Tensor& weight, float eps, NormKind kind)>
    rms_norm_backward_kernel;

// residual += x, returns rms_norm(residual). Both [T, D], contiguous. In place; while a tape is the
// thread's, `residual` becomes a new tensor.
Tensor add_rms_norm(Tensor& residual, const Tensor& x, const Tensor& weight, float eps,
                    NormKind kind = NormKind::kPlain);
extern Kernel<void(Tensor& y, Tensor& residual, const Tensor& x, const Tensor& weight, float eps,
                   NormKind kind)>
    add_rms_norm_kernel;
// dresidual and dx both get dsum (undefined: 0), what comes along the residual stream, plus the
// norm's gradient of `sum`, the residual after the addition. Where a backend has none, it is
// composed of rms_norm_backward and additions.
extern Kernel<void(const GradientSlot& dresidual, const GradientSlot& dx,
                   const GradientSlot& dweight, const Tensor& dy, const Tensor& dsum,
                   const Tensor& sum, const Tensor& weight, float eps, NormKind kind)>
    add_rms_norm_backward_kernel;

// a += b, element by element. Same shape, contiguous. In place; while a tape is the thread's, `a`
// becomes a new tensor.
void add_into(Tensor& a, const Tensor& b);
extern Kernel<void(Tensor& a, const Tensor& b)> add_into_kernel;

// Adds `gradient` to the slot, or puts it there. Same shape and dtype, contiguous.
void add_gradient(const GradientSlot& to, const Tensor& gradient);

}  // namespace reft
