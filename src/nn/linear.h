// y = x Wᵀ + b, where W may be several matrices of the checkpoint that share their input (q, k, v;
// gate, up).
#pragma once

#include <memory>

#include "nn/lora_table.h"
#include "nn/module.h"
#include "ops/linear.h"

namespace reft {

class Lora;

class Linear : public Module {
 public:
  struct Part {
    std::string
        name;  // "q_proj": parameters "q_proj.weight" [out_features, in_features] and "q_proj.bias"
    int64_t out_features = 0;
  };

  // One matrix: parameters "weight" [N, K] and, with `bias`, "bias" [N].
  Linear(Module* parent, std::string name, int64_t in_features, int64_t out_features,
         bool bias = false);
  // Several matrices, whose results lie side by side: y = [x W₀ᵀ | x W₁ᵀ | …]. Parts are named
  // below `parent`.
  Linear(Module* parent, int64_t in_features, const std::vector<Part>& parts, bool bias = false);
  ~Linear() override;

  // x: [T, K]. Returns [T, N] in x's dtype, or in `out_dtype` (float32 for logits).
  Tensor operator()(const Tensor& x) const { return (*this)(x, x.dtype()); }
  Tensor operator()(const Tensor& x, DType out_dtype) const;
  // gated_activation of y, whose parts are gate and up.
  Tensor gated(const Tensor& x, Activation activation) const;

  // Of a Linear that is one matrix.
  const Weight& weight() const { return groups_[0].weight; }
  // Its matrices in the order of their columns of y; the name of a single one is empty.
  const std::vector<Part>& parts() const { return parts_; }
  // Σ over k of W[n, k]²: [N] float32. After loading.
  Tensor squared_row_norms() const;
  // An adapter that is trained (nn/lora.h): a child of this module.
  void set_lora(std::unique_ptr<Lora> lora);
  Lora* lora() const { return lora_.get(); }
  // Adapters that are served, one table for each of parts().
  void set_tables(std::vector<LoraTable> tables) { tables_ = std::move(tables); }
  std::vector<LoraTable>& tables() { return tables_; }
  // x Wᵀ alone.
  Tensor plain_product(const Tensor& x) const { return product(x, x.dtype(), {}); }
  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }

  // Neighbouring parts of one dtype become one weight; others stay apart (GGUF mixes block
  // formats), as do fp8 parts whose blocks would not line up. When a part is trainable, all stay
  // plain, with gradients for every part of that weight.
  void finish_loading(Device device, DType compute) override;
  int64_t weight_bytes() const override;

 private:
  struct Group {
    Weight weight;
    int64_t begin = 0;  // first column of y
  };

  Tensor product(const Tensor& x, DType out_dtype, const Tensor& bias) const;
  void finish_training_group(Group& group, size_t first, size_t last, Device device);
  void add_part(const std::string& name, int64_t out_features, bool bias);

  int64_t in_features_;
  int64_t out_features_ = 0;
  bool has_bias_ = false;
  std::vector<Part> parts_;
  std::vector<Tensor> part_weights_;  // as the file has them, until finish_loading
  std::vector<Tensor> part_scales_;   // of fp8, else undefined
  std::vector<Group> groups_;
  Tensor bias_;  // [N] float32, or undefined
  std::unique_ptr<Lora> lora_;
  std::vector<LoraTable> tables_;
};

// Bytes of a weight's data and packed form.
int64_t weight_nbytes(const Weight& weight);

}  // namespace reft
