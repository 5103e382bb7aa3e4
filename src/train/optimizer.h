// The optimizer of a training run: one rule per parameter, their states, and what of it a
// checkpoint keeps. One thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "ops/optimizer.h"
#include "tensor/checkpoint_reader.h"

namespace reft {

// What is trained. `value`: contiguous float32 or bfloat16, updated in place; `grad`: float32 of
// its shape, the sum over the micro-batches of a step.
struct TrainParameter {
  std::string name;
  Tensor value;
  Tensor grad;
  bool decay = true;               // see wants_decay()
  double learning_rate_scale = 1;  // LoRA+: B matrices learn faster
};

// Norm weights and biases, as all vectors, are not decayed.
bool wants_decay(const Shape& shape);
// A matrix inside the blocks, which Muon orthogonalizes; embeddings and the head are none.
bool is_hidden_matrix(std::string_view name, const Shape& shape);

enum class OptimizerKind { kAdamW, kAdamW8bit, kMuon, kSgd };
// "adamw", "adamw_8bit", "muon", "sgd". Throws Error naming --optimizer.
OptimizerKind parse_optimizer(std::string_view name);
const char* optimizer_name(OptimizerKind kind);

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double momentum = 0.9;        // of SGD
  double muon_momentum = 0.95;  // of Muon
  double weight_decay = 0;
  bool master_weights = true;       // bfloat16 parameters keep a float32 copy
  DType state_dtype = DType::kF32;  // Adam's moments: float32 or bfloat16
  uint64_t seed = 0;                // of stochastic rounding
};

// AdamW: every parameter. AdamW 8-bit: parameters below kMin8BitElements keep moments of
// state_dtype. Muon: hidden matrices; the rest by AdamW with the same learning rate. SGD: all.
class Optimizer {
 public:
  static constexpr int64_t kMin8BitElements = 4096;

  // Allocates all states on the parameters' devices. Throws Error naming the parameter.
  Optimizer(std::vector<TrainParameter> parameters, const OptimizerOptions& options);

  const OptimizerOptions& options() const { return options_; }
  const std::vector<TrainParameter>& parameters() const { return parameters_; }
  // Finished steps; the next one is number steps() + 1.
  int64_t steps() const { return steps_; }

  // Of all gradients together, see global_norm().
  double gradient_norm() const;
  // One update of every parameter; gradients are multiplied by `grad_scale` (see clip_scale()).
  void step(double learning_rate, double grad_scale = 1);
  void zero_gradients();

  // For a checkpoint: tensors named <parameter>.<exp_avg|exp_avg_sq|momentum_buffer|master…>, views
  // of the live states, and the rest as JSON.
  std::vector<std::pair<std::string, Tensor>> state() const;
  Json settings() const;
  // Puts both back. Throws Error naming the tensor or setting that does not fit this optimizer.
  void load(const CheckpointReader& state, const Json& settings);
  int64_t state_bytes() const;

 private:
  enum class Rule { kAdam, kAdam8, kMuon, kSgd };
  struct State {
    Rule rule = Rule::kAdam;
    Tensor master;
    Tensor first, second;  // exp_avg, exp_avg_sq; momentum_buffer
    Adam8State eight;
  };

  Rule rule_of(const TrainParameter& parameter) const;
  State make_state(const TrainParameter& parameter) const;

  OptimizerOptions options_;
  std::vector<TrainParameter> parameters_;
  std::vector<State> states_;
  int64_t steps_ = 0;
};

}  // namespace reft
