#include "ops/moe.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Routing&, const Tensor&, const Tensor&, const RouterOptions&)> route_kernel{
    "route"};
constinit Kernel<void(const GradientSlot&, const Tensor&, const Tensor&, const Tensor&,
                      const RouterOptions&)>
    route_backward_kernel{"route_backward"};
constinit Kernel<void(ExpertWeights&, int64_t, const Tensor&, Device, DType)> place_expert_kernel{
    "place_expert"};
constinit Kernel<void(Tensor&, const Tensor&, ExpertInput, const Routing&, const ExpertWeights&,
                      const Tensor&)>
    expert_linear_kernel{"expert_linear"};
constinit Kernel<void(const GradientSlot&, const Tensor&, ExpertInput, const Routing&,
                      const ExpertWeights&)>
    expert_input_backward_kernel{"expert_input_backward"};
constinit Kernel<void(const GradientSlot&, const Tensor&, const Tensor&, ExpertInput,
                      const Routing&, const ExpertWeights&)>
    expert_weight_backward_kernel{"expert_weight_backward"};
constinit Kernel<void(const GradientSlot&, const Tensor&, const Routing&)>
    expert_bias_backward_kernel{"expert_bias_backward"};
constinit Kernel<bool(Tensor&, const Tensor&, const Routing&, const ExpertWeights&, const Tensor&,
                      Activation)>
    gated_expert_linear_kernel{"gated_expert_linear"};
constinit Kernel<void(Tensor&, const Tensor&, const Routing&)> combine_experts_kernel{
    "combine_experts"};
constinit Kernel<void(const GradientSlot&, const GradientSlot&, const Tensor&, const Tensor&,
                      const Routing&)>
    combine_experts_backward_kernel{"combine_experts_backward"};
constinit Kernel<bool(Tensor&, const Tensor&, const Routing&, const ExpertWeights&, const Tensor&)>
    combined_expert_linear_kernel{"combined_expert_linear"};
constinit Kernel<void(Tensor&, const Tensor&, const Tensor&)> sigmoid_scale_rows_kernel{
    "sigmoid_scale_rows"};
constinit Kernel<void(const GradientSlot&, const GradientSlot&, const Tensor&, const Tensor&,
                      const Tensor&)>
    sigmoid_scale_rows_backward_kernel{"sigmoid_scale_rows_backward"};
constinit Kernel<void(Tensor&, const Tensor&)> split_pairs_kernel{"split_pairs"};
constinit Kernel<void(const GradientSlot&, const Tensor&)> split_pairs_backward_kernel{
    "split_pairs_backward"};

namespace {

void check_router(const Tensor& logits, const Tensor& bias, const RouterOptions& o) {
  check(logits.dims() == 2 && logits.dtype() == DType::kF32 && logits.is_contiguous(),
        "route: logits must be [T, E] float32, got {}", logits);
  const int64_t experts = logits.size(1);
  check(o.top_k > 0 && o.top_k <= experts, "route: {} of {} experts for each token", o.top_k,
        experts);
  check(!bias.defined() || (bias.dims() == 1 && bias.size(0) == experts),
        "route: the bias is {}, not [{}]", bias, experts);
  check(!bias.defined() || o.score == RouterScore::kSigmoid,
        "route: a bias for the choice goes with sigmoid scores only");
  if (o.num_groups == 1) return;
  check(o.num_groups > 1 && experts % o.num_groups == 0, "route: {} experts in {} groups", experts,
        o.num_groups);
  const int64_t size = experts / o.num_groups;
  check(o.top_groups > 0 && o.top_groups <= o.num_groups && o.top_groups * size >= o.top_k,
        "route: {} of {} groups of {} experts do not give {}", o.top_groups, o.num_groups, size,
        o.top_k);
  check(o.group_best > 0 && o.group_best <= size, "route: the best {} of a group of {}",
        o.group_best, size);
}

void check_expert_linear(const Tensor& x, ExpertInput input, const Routing& routing,
                         const ExpertWeights& w, const Tensor& bias) {
  const int64_t rows = input == ExpertInput::kTokens ? routing.num_tokens() : routing.num_rows();
  check(x.dims() == 2 && x.size(0) == rows && x.size(1) == w.in_features,
        "expert_linear: x is {}, for {} rows and weights [{}, {}, {}]", x, rows, w.num_experts,
        w.out_features, w.in_features);
  check(w.num_experts == routing.num_experts, "expert_linear: {} experts, routed to {}",
        w.num_experts, routing.num_experts);
  check(!bias.defined() ||
            (bias.dims() == 2 && bias.size(0) == w.num_experts && bias.size(1) == w.out_features),
        "expert_linear: bias is {}, not [{}, {}]", bias, w.num_experts, w.out_features);
}

void check_rows(const char* op, const Tensor& x, const Routing& routing) {
  check(x.dims() == 2 && x.size(0) == routing.num_rows() && x.is_contiguous(),
        "{}: x is {}, not {} packed rows", op, x, routing.num_rows());
}

}  // namespace

int64_t ExpertWeights::nbytes() const {
  int64_t total = data.defined() ? data.nbytes() : 0;
  if (scales.defined()) total += scales.nbytes();
  for (const auto& p : packed) total += p == nullptr ? 0 : p->nbytes();
  return total;
}

Routing route(const Tensor& logits, const Tensor& bias, const RouterOptions& options) {
  check_router(logits, bias, options);
  const Device device = logits.device();
  const int64_t tokens = logits.size(0), rows = tokens * options.top_k;
  Routing routing{.experts = Tensor::empty({tokens, options.top_k}, DType::kI32, device),
                  .weights = Tensor::empty({tokens, options.top_k}, DType::kF32, device),
                  .offsets = Tensor::empty({logits.size(1) + 1}, DType::kI32, device),
                  .pairs = Tensor::empty({rows}, DType::kI32, device),
                  .rows = Tensor::empty({rows}, DType::kI32, device),
                  .tiles = {},
                  .num_experts = logits.size(1)};
  route_kernel(device, routing, logits, bias, options);
  if (Tape* tape = Tape::recording({&logits})) {
    tape->record("route", {logits}, {routing.weights},
                 [logits, experts = routing.experts, options](Tape::Gradients& g) {
                   route_backward_kernel(logits.device(), g.input(0), g.output(), logits, experts,
                                         options);
                 });
  }
  return routing;
}

void place_expert(ExpertWeights& weights, int64_t e, const Tensor& matrix, Device device,
                  DType compute) {
  check(e >= 0 && e < weights.num_experts, "place_expert: expert {} of {}", e, weights.num_experts);
  check(matrix.dims() == 2 && matrix.size(0) == weights.out_features &&
            matrix.size(1) == weights.in_features && matrix.dtype() == weights.dtype,
        "place_expert: {} is not {} [{}, {}]", matrix, dtype_name(weights.dtype),
        weights.out_features, weights.in_features);
  place_expert_kernel(device, weights, e, matrix, device, compute);
}

void expert_linear_into(Tensor& y, const Tensor& x, ExpertInput input, const Routing& routing,
                        const ExpertWeights& weights, const Tensor& bias) {
  check_expert_linear(x, input, routing, weights, bias);
  check(y.dims() == 2 && y.size(0) == routing.num_rows() && y.size(1) == weights.out_features &&
            y.dtype() == x.dtype(),
        "expert_linear: the result is {}, not {} [{}, {}]", y, dtype_name(x.dtype()),
        routing.num_rows(), weights.out_features);
  if (y.numel() > 0) expert_linear_kernel(x.device(), y, x, input, routing, weights, bias);
  Tape* tape = Tape::recording({&x, &weights.data, &bias});
  if (tape == nullptr) return;
  const Tensor operand = tape->needs_gradient(weights.data) ? x : Tensor();
  tape->record("expert_linear", {x, weights.data, bias}, {y},
               [operand, input, routing, weights](Tape::Gradients& g) {
                 const Tensor& dy = g.output();
                 const Device device = dy.device();
                 if (const GradientSlot dx = g.input(0))
                   expert_input_backward_kernel(device, dx, dy, input, routing, weights);
                 if (const GradientSlot dw = g.input(1))
                   expert_weight_backward_kernel(device, dw, dy, operand, input, routing, weights);
                 if (const GradientSlot db = g.input(2))
                   expert_bias_backward_kernel(device, db, dy, routing);
               });
}

Tensor expert_linear(const Tensor& x, ExpertInput input, const Routing& routing,
                     const ExpertWeights& weights, const Tensor& bias) {
  Tensor y = Tensor::empty({routing.num_rows(), weights.out_features}, x.dtype(), x.device());
  expert_linear_into(y, x, input, routing, weights, bias);
  return y;
}

Tensor gated_expert_linear(const Tensor& x, const Routing& routing, const ExpertWeights& weights,
                           const Tensor& bias, Activation activation) {
  const Device device = x.device();
  if (routing.num_rows() > 0 && gated_expert_linear_kernel.has(device.type) &&
      Tape::current() == nullptr) {
    check_expert_linear(x, ExpertInput::kTokens, routing, weights, bias);
    check(weights.out_features % 2 == 0, "gated_expert_linear: {} rows are not gate and up",
          weights.out_features);
    Tensor y = Tensor::empty({routing.num_rows(), weights.out_features / 2}, x.dtype(), device);
    if (gated_expert_linear_kernel(device, y, x, routing, weights, bias, activation)) return y;
  }
  return gated_activation(expert_linear(x, ExpertInput::kTokens, routing, weights, bias),
                          activation);
}

Tensor combine_experts(const Tensor& x, const Routing& routing) {
  check_rows("combine_experts", x, routing);
  Tensor y = Tensor::empty({routing.num_tokens(), x.size(1)}, x.dtype(), x.device());
  if (y.numel() > 0) combine_experts_kernel(x.device(), y, x, routing);
  if (Tape* tape = Tape::recording({&x, &routing.weights})) {
    tape->record("combine_experts", {x, routing.weights}, {y}, [x, routing](Tape::Gradients& g) {
      const GradientSlot dx = g.input(0);
      if (dx)
        combine_experts_backward_kernel(x.device(), dx, GradientSlot{}, g.output(), x, routing);
      if (const GradientSlot dweights = g.input(1))
        combine_experts_backward_kernel(x.device(), {}, dweights, g.output(), x, routing);
    });
  }
  return y;
}

Tensor combined_expert_linear(const Tensor& x, const Routing& routing, const ExpertWeights& weights,
                              const Tensor& bias) {
  const Device device = x.device();
  if (routing.num_rows() > 0 && combined_expert_linear_kernel.has(device.type) &&
      Tape::current() == nullptr) {
    check_expert_linear(x, ExpertInput::kRows, routing, weights, bias);
    Tensor y = Tensor::empty({routing.num_tokens(), weights.out_features}, x.dtype(), device);
    if (combined_expert_linear_kernel(device, y, x, routing, weights, bias)) return y;
  }
  return combine_experts(expert_linear(x, ExpertInput::kRows, routing, weights, bias), routing);
}

Tensor sigmoid_scale_rows(const Tensor& x, const Tensor& gate) {
  check(x.dims() == 2 && x.is_contiguous() && gate.dims() == 2 && gate.size(0) == x.size(0) &&
            gate.size(1) == 1 && gate.dtype() == DType::kF32,
        "sigmoid_scale_rows: x is {}, the gate {}", x, gate);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() > 0) sigmoid_scale_rows_kernel(x.device(), y, x, gate);
  if (Tape* tape = Tape::recording({&x, &gate})) {
    tape->record("sigmoid_scale_rows", {x, gate}, {y}, [x, gate](Tape::Gradients& g) {
      if (const GradientSlot dx = g.input(0))
        sigmoid_scale_rows_backward_kernel(x.device(), dx, {}, g.output(), x, gate);
      if (const GradientSlot dgate = g.input(1))
        sigmoid_scale_rows_backward_kernel(x.device(), {}, dgate, g.output(), x, gate);
    });
  }
  return y;
}

Tensor split_pairs(const Tensor& x) {
  check(x.dims() == 2 && x.size(1) % 2 == 0 && x.is_contiguous(),
        "split_pairs: x must be packed [T, 2F], got {}", x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() > 0) split_pairs_kernel(x.device(), y, x);
  if (Tape* tape = Tape::recording({&x})) {
    tape->record("split_pairs", {x}, {y}, [](Tape::Gradients& g) {
      split_pairs_backward_kernel(g.output().device(), g.input(0), g.output());
    });
  }
  return y;
}

}  // namespace reft
