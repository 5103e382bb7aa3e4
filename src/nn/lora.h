// The low-rank adapter of a linear layer that is being trained: y = W x + scale · B A dropout(x).
#pragma once

#include "nn/module.h"
#include "ops/lora.h"

namespace reft {

// What all adapters of a model share; the trainer sets `pass` before every micro-batch.
struct LoraDropout {
  float p = 0;
  uint64_t seed = 0;
  uint64_t pass = 0;  // draws depend on it: other masks for every micro-batch
};

// Adapters of one Linear, one for each of its matrices that are adapted (q and v of q, k, v).
// Parameters "<part>.lora_A.weight" [r, K], "<part>.lora_B.weight" [N, r] and, with DoRA,
// "<part>.lora_magnitude_vector" [N], all float32 and trained. The parts of a Linear see the same
// dropout. Sources: PEFT's lora.Linear (names, initialisation, scale), Liu et al. (DoRA).
class Lora : public Module {
 public:
  struct Part {
    std::string name;  // of the matrix in its Linear: "q_proj", "" where it is the only one
    int64_t begin = 0, end = 0;  // columns of y
    int64_t rank = 8;
    float scale = 2;
    bool dora = false;
  };

  // A child of `parent`, without values: what describes a model needs no more. `stream`: of its
  // dropout, another one for every Linear.
  Lora(Module* parent, int64_t in_features, int64_t out_features, std::vector<Part> parts,
       std::shared_ptr<const LoraDropout> dropout, uint64_t stream);

  // Values as PEFT begins with: A uniform within ±1/√K (Kaiming with a = √5), B zero, magnitudes
  // the lengths of the rows of W. `squared_norms`: [N] (see squared_row_norms); with DoRA only.
  void initialize(Device device, uint64_t seed, const Tensor& squared_norms);

  // y: [T, N], x Wᵀ + bias, gets what the adapters add; with DoRA the result is a new tensor.
  // `project` multiplies rows [r, K] by W: [r, N].
  void apply(Tensor& y, const Tensor& x, const Tensor& bias,
             const std::function<Tensor(const Tensor& rows)>& project) const;
  // Whether y must come without the bias, which apply() adds.
  bool adds_bias() const { return has_dora_; }
  int64_t weight_bytes() const override;

 private:
  struct Values {
    Tensor b, magnitude;
    Tensor squared_norms;  // of its rows of W
  };
  size_t parameter_index(size_t part) const { return part * (has_dora_ ? 3 : 2); }
  Tensor rows_of_a(size_t part) const;

  int64_t in_features_, out_features_;
  std::vector<Part> parts_;
  std::vector<int64_t> row_;  // of a part's A in a_, and their end
  std::shared_ptr<const LoraDropout> dropout_;
  uint64_t stream_;
  bool has_dora_ = false;
  Tensor a_;  // [Σ r, K]: one product for all parts
  std::vector<Values> values_;
};

// Whether a parameter belongs to an adapter.
bool is_lora_parameter(std::string_view name);

}  // namespace reft
