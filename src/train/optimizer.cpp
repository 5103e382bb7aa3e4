#include "train/optimizer.h"

#include <unordered_set>

#include "tensor/allocator.h"

namespace reft {
namespace {

constexpr std::pair<OptimizerKind, const char*> kNames[] = {
    {OptimizerKind::kAdamW, "adamw"},
    {OptimizerKind::kAdamW8bit, "adamw_8bit"},
    {OptimizerKind::kMuon, "muon"},
    {OptimizerKind::kSgd, "sgd"}};

void check_options(const OptimizerOptions& o) {
  for (const auto& [name, beta] : {std::pair("adam_beta1", o.beta1),
                                   {"adam_beta2", o.beta2},
                                   {"momentum", o.momentum},
                                   {"muon_momentum", o.muon_momentum}}) {
    check(beta >= 0 && beta < 1, "--{} must be at least 0 and below 1, got {}", name, beta);
  }
  check(o.eps > 0, "--adam_epsilon must be above 0, got {}", o.eps);
  check(o.weight_decay >= 0, "--weight_decay must not be negative, got {}", o.weight_decay);
  check(o.state_dtype == DType::kF32 || o.state_dtype == DType::kBF16,
        "optimizer states must be float32 or bfloat16, not {}", dtype_name(o.state_dtype));
}

}  // namespace

bool wants_decay(const Shape& shape) { return shape.dims() >= 2; }

bool is_hidden_matrix(std::string_view name, const Shape& shape) {
  return shape.dims() == 2 && name.find("embed") == std::string_view::npos &&
         name.find("lm_head") == std::string_view::npos;
}

OptimizerKind parse_optimizer(std::string_view name) {
  for (const auto& [kind, known] : kNames) {
    if (name == known) return kind;
  }
  fail("--optimizer must be adamw, adamw_8bit, muon or sgd, not '{}'", name);
}

const char* optimizer_name(OptimizerKind kind) {
  for (const auto& [known, name] : kNames) {
    if (kind == known) return name;
  }
  return "?";
}

Optimizer::Optimizer(std::vector<TrainParameter> parameters, const OptimizerOptions& options)
    : options_(options), parameters_(std::move(parameters)) {
  check_options(options_);
  std::unordered_set<std::string> names;
  for (const TrainParameter& p : parameters_) {
    check(names.insert(p.name).second, "optimizer: two parameters are named '{}'", p.name);
    const bool fits = p.value.defined() && p.value.is_contiguous() && p.grad.defined() &&
                      (p.value.dtype() == DType::kF32 || p.value.dtype() == DType::kBF16) &&
                      p.grad.dtype() == DType::kF32 && p.grad.shape() == p.value.shape();
    check(
        fits,
        "optimizer: '{}' must be float32 or bfloat16 with a float32 gradient of its shape, got {} "
        "and {}",
        p.name, p.value, p.grad);
    states_.push_back(make_state(p));
  }
}

Optimizer::Rule Optimizer::rule_of(const TrainParameter& p) const {
  switch (options_.kind) {
    case OptimizerKind::kAdamW:
      return Rule::kAdam;
    case OptimizerKind::kAdamW8bit:
      return p.value.numel() < kMin8BitElements ? Rule::kAdam : Rule::kAdam8;
    case OptimizerKind::kMuon:
      return is_hidden_matrix(p.name, p.value.shape()) ? Rule::kMuon : Rule::kAdam;
    case OptimizerKind::kSgd:
      return Rule::kSgd;
  }
  fail("unknown optimizer");
}

Optimizer::State Optimizer::make_state(const TrainParameter& p) const {
  State state;
  state.rule = rule_of(p);
  const auto zeros = [&](DType dtype) {
    return Tensor::zeros(p.value.shape(), dtype, p.value.device());
  };
  if (options_.master_weights && p.value.dtype() == DType::kBF16) {
    state.master = p.value.to(kCpuDevice).to(DType::kF32).to(p.value.device());
  }
  switch (state.rule) {
    case Rule::kAdam:
      state.first = zeros(options_.state_dtype);
      state.second = zeros(options_.state_dtype);
      break;
    case Rule::kAdam8:
      state.eight = Adam8State::zeros(p.value);
      break;
    case Rule::kMuon:
      state.first = zeros(DType::kF32);
      break;
    case Rule::kSgd:
      if (options_.momentum > 0) state.first = zeros(DType::kF32);
      break;
  }
  return state;
}

double Optimizer::gradient_norm() const {
  std::vector<Tensor> grads;
  grads.reserve(parameters_.size());
  for (const TrainParameter& p : parameters_) grads.push_back(p.grad);
  return global_norm(grads);
}

void Optimizer::step(double learning_rate, double grad_scale) {
  ++steps_;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    TrainParameter& p = parameters_[i];
    State& s = states_[i];
    const double rate = learning_rate * p.learning_rate_scale;
    const double decay = p.decay ? options_.weight_decay : 0;
    const RoundingRng rng = {options_.seed, static_cast<uint64_t>(steps_) << 24 | i};
    const AdamWArgs adam = {.learning_rate = rate,
                            .beta1 = options_.beta1,
                            .beta2 = options_.beta2,
                            .eps = options_.eps,
                            .weight_decay = decay,
                            .step = steps_,
                            .grad_scale = grad_scale,
                            .rng = rng};
    switch (s.rule) {
      case Rule::kAdam:
        adamw(p.value, s.master, s.first, s.second, p.grad, adam);
        break;
      case Rule::kAdam8:
        adamw_8bit(p.value, s.master, s.eight, p.grad, adam);
        break;
      case Rule::kMuon:
        muon(p.value, s.master, s.first, p.grad,
             {rate, options_.muon_momentum, decay, grad_scale, rng});
        break;
      case Rule::kSgd:
        sgd(p.value, s.master, s.first, p.grad, {rate, options_.momentum, decay, grad_scale, rng});
        break;
    }
  }
}

void Optimizer::zero_gradients() {
  for (const TrainParameter& p : parameters_) {
    allocator_for(p.grad.device()).fill_zero(p.grad.raw(), static_cast<size_t>(p.grad.nbytes()));
  }
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, Tensor>> out;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const State& s = states_[i];
    const auto add = [&](const char* what, const Tensor& t) {
      if (t.defined()) out.emplace_back(parameters_[i].name + "." + what, t);
    };
    const bool adam = s.rule == Rule::kAdam;
    add("master", s.master);
    add(adam ? "exp_avg" : "momentum_buffer", s.first);
    add("exp_avg_sq", s.second);
    add("exp_avg_codes", s.eight.m);
    add("exp_avg_scale", s.eight.m_scale);
    add("exp_avg_sq_codes", s.eight.v);
    add("exp_avg_sq_scale", s.eight.v_scale);
  }
  return out;
}

Json Optimizer::settings() const {
  return {{"optimizer", optimizer_name(options_.kind)},
          {"steps", steps_},
          {"seed", options_.seed},
          {"beta1", options_.beta1},
          {"beta2", options_.beta2},
          {"eps", options_.eps},
          {"weight_decay", options_.weight_decay}};
}

void Optimizer::load(const CheckpointReader& file, const Json& settings) {
  const std::string kind = json_get<std::string>(settings, "optimizer", "");
  check(kind == optimizer_name(options_.kind),
        "the checkpoint's optimizer is '{}', --optimizer is '{}'", kind,
        optimizer_name(options_.kind));
  const auto live = state();
  for (const auto& [name, tensor] : live) {
    check(file.contains(name),
          "the checkpoint's optimizer state has no '{}': was it trained with other options?", name);
    const Tensor saved = file.read(name);
    check(saved.dtype() == tensor.dtype() && saved.shape() == tensor.shape(),
          "the checkpoint's optimizer state has '{}' as {} {}, this run needs {} {}", name,
          dtype_name(saved.dtype()), saved.shape(), dtype_name(tensor.dtype()), tensor.shape());
  }
  check(file.entries().size() == live.size(),
        "the checkpoint's optimizer state has {} tensors, this run needs {}: was it trained with "
        "other options?",
        file.entries().size(), live.size());
  for (const auto& [name, tensor] : live) {
    if (tensor.numel() > 0) tensor.copy_from(file.read(name));
  }
  steps_ = json_get<int64_t>(settings, "steps", 0);
  options_.seed = json_get<uint64_t>(settings, "seed", options_.seed);
}

int64_t Optimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : state()) bytes += tensor.nbytes();
  return bytes;
}

}  // namespace reft
