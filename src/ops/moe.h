// Mixture of experts: which experts a token goes to, and products with the weights of those alone.
// Letters: T tokens, E experts, k of them for each token, P = T k rows: one for each token and
// expert, sorted by expert, so that an expert's rows are neighbours.
#pragma once

#include <memory>
#include <vector>

#include "ops/activation.h"
#include "ops/linear.h"

namespace reft {

enum class RouterScore : uint8_t {
  kSoftmax,        // softmax over all experts (Qwen3-MoE)
  kSoftmaxOfTopK,  // the best logits are chosen, softmax over those (GPT-OSS)
  kSigmoid,        // DeepSeek-V3
};

struct RouterOptions {
  int64_t top_k = 0;
  RouterScore score = RouterScore::kSoftmax;
  bool renormalize = false;  // a token's weights are divided by their sum (kSigmoid: + 1e-20)
  float scale = 1.0f;        // on the weights, after that
  // Experts lie in num_groups groups of neighbours; only the top_groups best may be chosen from. A
  // group is as good as its group_best best experts together.
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  int64_t group_best = 2;
};

// All on the device of the logits; the arrays are int32.
struct Routing {
  Tensor experts;         // [T, k], the best first
  Tensor weights;         // [T, k] float32
  Tensor offsets;         // [E + 1]: expert e has the rows [offsets[e], offsets[e + 1])
  Tensor pairs;           // [P]: row r is expert pairs[r] % k of token pairs[r] / k
  Tensor rows;            // [P]: the row of each pair; pairs[rows[p]] = p
  Tensor tiles;           // the backend's own
  int64_t tile_rows = 0;  // the backend's own
  int64_t num_experts = 0;

  int64_t num_tokens() const { return experts.size(0); }
  int64_t top_k() const { return experts.size(1); }
  int64_t num_rows() const { return num_tokens() * top_k(); }
};

// logits: [T, E] float32. `bias`: [E] float32 or undefined; added to the scores (kSigmoid) for the
// choice, not to the weights. The k experts with the largest scores are chosen, of equal ones the
// lowest; NaN counts as the smallest. Throws Error on shapes and options that do not fit. The
// weights have a gradient, the choice has none. Follows Qwen3MoeTopKRouter, GptOssTopKRouter and
// DeepseekV3TopkRouter.
Routing route(const Tensor& logits, const Tensor& bias, const RouterOptions& options);
// Fills what the front allocated (and tiles).
extern Kernel<void(Routing& routing, const Tensor& logits, const Tensor& bias,
                   const RouterOptions& options)>
    route_kernel;
// dweights: [T, k].
extern Kernel<void(const GradientSlot& dlogits, const Tensor& dweights, const Tensor& logits,
                   const Tensor& experts, const RouterOptions& options)>
    route_backward_kernel;

// E matrices [N, K] of one dtype or block format.
struct ExpertWeights {
  DType dtype = DType::kF32;
  int64_t num_experts = 0;
  int64_t out_features = 0;  // N
  int64_t in_features = 0;   // K
  // Plain: [E, N, K], or [E, K, N] where `transposed`. Undefined where only `packed` is kept.
  Tensor data;
  bool transposed = false;
  Tensor scales;  // the backend's, of formats that it keeps apart from their codes
  std::vector<std::shared_ptr<const PackedWeight>> packed;  // [E] the backend's, or empty

  bool defined() const { return num_experts > 0; }
  int64_t nbytes() const;
};

// Puts expert `e` in place for the products below: `matrix` [N, K] on the host, in
// weights.dtype. The first call makes room for all. Different experts may be placed by different
// threads once the first has been. `compute` as in prepare_weight.
void place_expert(ExpertWeights& weights, int64_t e, const Tensor& matrix, Device device,
                  DType compute);
extern Kernel<void(ExpertWeights& weights, int64_t e, const Tensor& matrix, Device device,
                   DType compute)>
    place_expert_kernel;

enum class ExpertInput : uint8_t {
  kTokens,  // [T, K]: row r is that of its token
  kRows,    // [P, K]: sorted by expert already
};

// y[r] = x[r] Wₑᵀ + bias[e], where e is the expert of row r. bias: [E, N] float32 or undefined.
// Returns [P, N] in x's dtype. Rounds as `linear` does. Throws Error on a shape mismatch. Follows
// Qwen3MoeExperts.
Tensor expert_linear(const Tensor& x, ExpertInput input, const Routing& routing,
                     const ExpertWeights& weights, const Tensor& bias = {});
// The same into y: [P, N], whose rows may be strided.
void expert_linear_into(Tensor& y, const Tensor& x, ExpertInput input, const Routing& routing,
                        const ExpertWeights& weights, const Tensor& bias);
extern Kernel<void(Tensor& y, const Tensor& x, ExpertInput input, const Routing& routing,
                   const ExpertWeights& weights, const Tensor& bias)>
    expert_linear_kernel;
// The parts of its gradient; dy: [P, N]. Weights of any format have an input gradient, plain ones
// one of their own, of the shape of weights.data.
extern Kernel<void(const GradientSlot& dx, const Tensor& dy, ExpertInput input,
                   const Routing& routing, const ExpertWeights& weights)>
    expert_input_backward_kernel;
extern Kernel<void(const GradientSlot& dw, const Tensor& dy, const Tensor& x, ExpertInput input,
                   const Routing& routing, const ExpertWeights& weights)>
    expert_weight_backward_kernel;
// dbias: [E, N].
extern Kernel<void(const GradientSlot& dbias, const Tensor& dy, const Routing& routing)>
    expert_bias_backward_kernel;

// gated_activation(expert_linear(x, kTokens, …)): the rows of each expert's matrix are gate | up.
// x: [T, K]. Returns [P, N / 2].
Tensor gated_expert_linear(const Tensor& x, const Routing& routing, const ExpertWeights& weights,
                           const Tensor& bias, Activation activation);
// One kernel for both, where a backend has one. Returns false, having done nothing, where it has
// none for the case.
extern Kernel<bool(Tensor& y, const Tensor& x, const Routing& routing, const ExpertWeights& weights,
                   const Tensor& bias, Activation activation)>
    gated_expert_linear_kernel;

// y[t] = Σ over j of weights[t, j] x[rows[t k + j]]. x: [P, D]. Returns [T, D] in x's dtype; sums
// in float32.
Tensor combine_experts(const Tensor& x, const Routing& routing);
extern Kernel<void(Tensor& y, const Tensor& x, const Routing& routing)> combine_experts_kernel;
// dx: [P, D]; dweights: [T, k]. Slots may be empty.
extern Kernel<void(const GradientSlot& dx, const GradientSlot& dweights, const Tensor& dy,
                   const Tensor& x, const Routing& routing)>
    combine_experts_backward_kernel;

// combine_experts(expert_linear(x, kRows, …)). x: [P, K]. Returns [T, N].
Tensor combined_expert_linear(const Tensor& x, const Routing& routing, const ExpertWeights& weights,
                              const Tensor& bias = {});
// As gated_expert_linear_kernel.
extern Kernel<bool(Tensor& y, const Tensor& x, const Routing& routing, const ExpertWeights& weights,
                   const Tensor& bias)>
    combined_expert_linear_kernel;

// y[t] = x[t] sigmoid(gate[t]). x: [T, D]; gate: [T, 1] float32. The gate of a shared expert
// (Qwen2-MoE, Qwen3-Next).
Tensor sigmoid_scale_rows(const Tensor& x, const Tensor& gate);
extern Kernel<void(Tensor& y, const Tensor& x, const Tensor& gate)> sigmoid_scale_rows_kernel;
extern Kernel<void(const GradientSlot& dx, const GradientSlot& dgate, const Tensor& dy,
                   const Tensor& x, const Tensor& gate)>
    sigmoid_scale_rows_backward_kernel;

// y[t] = x[t, 0], x[t, 2] … | x[t, 1], x[t, 3] …: gate and up from neighbours to halves (the layout
// that GPT-OSS is trained in). x: [T, 2F].
Tensor split_pairs(const Tensor& x);
extern Kernel<void(Tensor& y, const Tensor& x)> split_pairs_kernel;
extern Kernel<void(const GradientSlot& dx, const Tensor& dy)> split_pairs_backward_kernel;

}  // namespace reft
