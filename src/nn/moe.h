// Mixture of experts: a router, and feed-forward layers of which each token uses a few.
#pragma once

#include <memory>

#include "nn/mlp.h"
#include "ops/moe.h"

namespace reft {

// The linear layers of E experts, of one or several matrices that share their input (gate, up).
// Parameters "<e>.<part>.weight" [N, K], as checkpoints publish them.
class ExpertLinear : public Module {
 public:
  ExpertLinear(Module* parent, std::string name, int64_t num_experts, int64_t in_features,
               const std::vector<Linear::Part>& parts);

  // x: [T, K]. Returns [P, N / 2], the parts being gate and up.
  Tensor gated(const Tensor& x, const Routing& routing, Activation activation) const;
  // x: [P, K]. Returns [T, N]; of a layer of one part.
  Tensor combined(const Tensor& x, const Routing& routing) const;

  // Neighbouring parts of one dtype become one weight. When a parameter is trainable, all stay
  // plain, with gradients for every expert.
  void finish_loading(Device device, DType compute) override;
  int64_t weight_bytes() const override;

 private:
  struct Group {
    ExpertWeights weights;
    int64_t begin = 0;  // first column of y
  };

  Tensor join_parts(int64_t expert, size_t first, size_t last);
  void keep_plain(ExpertWeights& weights, size_t first, size_t last, Device device);

  int64_t num_experts_;
  int64_t in_features_;
  int64_t out_features_ = 0;
  std::vector<int64_t> part_rows_;
  std::vector<Tensor> matrices_;  // [E · parts] as the file has them, until finish_loading
  std::vector<Group> groups_;
};

struct MoeOptions {
  int64_t hidden_size = 0;
  int64_t num_experts = 0;
  int64_t intermediate_size = 0;  // of an expert
  RouterOptions router;
  Activation activation = Activation::kSilu;
  int64_t shared_size = 0;   // of an expert that every token uses; 0: there is none
  bool shared_gate = false;  // its result times sigmoid(x · gate)
};

// Σ of the chosen experts' down(act(gate(x)) * up(x)), weighted, and the shared expert's.
// Parameters gate.weight [E, D], experts.<e>.{gate,up,down}_proj.weight, shared_expert.…,
// shared_expert_gate.weight [1, D]. Follows Qwen3MoeSparseMoeBlock and Qwen2MoeSparseMoeBlock.
class MoeMlp : public FeedForward {
 public:
  MoeMlp(Module* parent, std::string name, const MoeOptions& options);

  Tensor operator()(const Tensor& x) const override;

 private:
  MoeOptions options_;
  Linear router_;
  ExpertLinear gate_up_;
  ExpertLinear down_;
  std::unique_ptr<Mlp> shared_;
  std::unique_ptr<Linear> shared_gate_;
};

}  // namespace reft
