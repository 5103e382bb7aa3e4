#include "nn/moe.h"

#include <cstring>

#include "ops/norm.h"

namespace reft {

ExpertLinear::ExpertLinear(Module* parent, std::string name, int64_t num_experts,
                           int64_t in_features, const std::vector<Linear::Part>& parts)
    : Module(parent, std::move(name)), num_experts_(num_experts), in_features_(in_features) {
  for (const Linear::Part& part : parts) {
    part_rows_.push_back(part.out_features);
    out_features_ += part.out_features;
  }
  matrices_.resize(static_cast<size_t>(num_experts) * parts.size());
  for (int64_t e = 0; e < num_experts; ++e) {
    for (size_t p = 0; p < parts.size(); ++p) {
      const size_t index = static_cast<size_t>(e) * parts.size() + p;
      add_parameter({.name = std::to_string(e) + "." + parts[p].name + ".weight",
                     .shape = {parts[p].out_features, in_features},
                     .set = [this, index](const Tensor& t) { matrices_[index] = t; }});
    }
  }
}

// The rows of parts [first, last) of one expert; what the file gave is let go.
Tensor ExpertLinear::join_parts(int64_t expert, size_t first, size_t last) {
  Tensor* parts = matrices_.data() + static_cast<size_t>(expert) * part_rows_.size();
  if (last == first + 1) return std::exchange(parts[first], {}).contiguous();
  int64_t rows = 0;
  for (size_t p = first; p < last; ++p) rows += part_rows_[p];
  Tensor joined = Tensor::empty({rows, in_features_}, parts[first].dtype());
  std::byte* to = joined.raw();
  for (size_t p = first; p < last; ++p) {
    const Tensor part = std::exchange(parts[p], {}).contiguous();
    std::memcpy(to, part.raw(), static_cast<size_t>(part.nbytes()));
    to += part.nbytes();
  }
  return joined;
}

void ExpertLinear::keep_plain(ExpertWeights& weights, size_t first, size_t last, Device device) {
  check(is_float(weights.dtype), "weights in {} cannot be trained", dtype_name(weights.dtype));
  const Shape shape{num_experts_, weights.out_features, weights.in_features};
  weights.data = Tensor::empty(shape, weights.dtype, device);
  const Tensor gradient = Tensor::zeros(shape, DType::kF32, device);
  for (int64_t e = 0; e < num_experts_; ++e) {
    const auto matrix_of = [&](const Tensor& all) {
      return all.rows(e, e + 1).reshape({weights.out_features, weights.in_features});
    };
    matrix_of(weights.data).copy_from(join_parts(e, first, last));
    int64_t row = 0;
    for (size_t p = first; p < last; ++p) {
      const size_t index = static_cast<size_t>(e) * part_rows_.size() + p;
      Parameter& parameter = own_parameters()[index];
      const int64_t end = row + part_rows_[p];
      parameter.value = matrix_of(weights.data).rows(row, end);
      if (parameter.trainable) parameter.gradient = matrix_of(gradient).rows(row, end);
      row = end;
    }
  }
}

void ExpertLinear::finish_loading(Device device, DType compute) {
  const size_t parts = part_rows_.size();
  // Experts of one part have one format; where a file mixes them, that of the first.
  for (size_t i = parts; i < matrices_.size(); ++i) {
    const DType dtype = matrices_[i % parts].dtype();
    check(matrices_[i].dtype() == dtype || is_float(dtype), "expert {} is {}, but the first is {}",
          i / parts, dtype_name(matrices_[i].dtype()), dtype_name(dtype));
    matrices_[i] = matrices_[i].to(dtype);
  }
  int64_t begin = 0;
  for (size_t first = 0; first < parts;) {
    size_t last = first + 1;
    ExpertWeights weights{.dtype = matrices_[first].dtype(),
                          .num_experts = num_experts_,
                          .out_features = part_rows_[first],
                          .in_features = in_features_};
    while (last < parts && matrices_[last].dtype() == weights.dtype)
      weights.out_features += part_rows_[last++];
    if (is_trainable()) {
      keep_plain(weights, first, last, device);
    } else {
      for (int64_t e = 0; e < num_experts_; ++e)
        place_expert(weights, e, join_parts(e, first, last), device, compute);
    }
    groups_.push_back({std::move(weights), begin});
    begin += groups_.back().weights.out_features;
    first = last;
  }
  matrices_ = {};
}

Tensor ExpertLinear::gated(const Tensor& x, const Routing& routing, Activation activation) const {
  if (groups_.size() == 1)
    return gated_expert_linear(x, routing, groups_[0].weights, {}, activation);
  Tensor y = Tensor::empty({routing.num_rows(), out_features_}, x.dtype(), x.device());
  for (const Group& group : groups_) {
    Tensor columns = y.columns(group.begin, group.begin + group.weights.out_features);
    expert_linear_into(columns, x, ExpertInput::kTokens, routing, group.weights, {});
  }
  return gated_activation(y, activation);
}

Tensor ExpertLinear::combined(const Tensor& x, const Routing& routing) const {
  return combined_expert_linear(x, routing, groups_[0].weights);
}

int64_t ExpertLinear::weight_bytes() const {
  int64_t total = 0;
  for (const Group& group : groups_) total += group.weights.nbytes();
  return total;
}

MoeMlp::MoeMlp(Module* parent, std::string name, const MoeOptions& o)
    : FeedForward(parent, std::move(name)),
      options_(o),
      router_(this, "gate", o.hidden_size, o.num_experts),
      gate_up_(this, "experts", o.num_experts, o.hidden_size,
               {{"gate_proj", o.intermediate_size}, {"up_proj", o.intermediate_size}}),
      down_(this, "experts", o.num_experts, o.intermediate_size, {{"down_proj", o.hidden_size}}) {
  if (o.shared_size == 0) return;
  shared_ =
      std::make_unique<Mlp>(this, "shared_expert", o.hidden_size, o.shared_size, o.activation);
  if (o.shared_gate)
    shared_gate_ = std::make_unique<Linear>(this, "shared_expert_gate", o.hidden_size, 1);
}

Tensor MoeMlp::operator()(const Tensor& x) const {
  const Routing routing = route(router_(x, DType::kF32), {}, options_.router);
  Tensor y = down_.combined(gate_up_.gated(x, routing, options_.activation), routing);
  if (shared_ == nullptr) return y;
  Tensor shared = (*shared_)(x);
  if (shared_gate_ != nullptr) shared = sigmoid_scale_rows(shared, (*shared_gate_)(x, DType::kF32));
  add_into(y, shared);
  return y;
}

}  // namespace reft
