// The trunk that every decoder-only language model repeats: embedding, blocks, final norm, head.
#pragma once

#include <functional>
#include <memory>

#include "nn/batch.h"
#include "nn/kv_cache.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "ops/loss.h"

namespace reft {

// One layer. The residual stream is split in `residual` and `delta`, what the layer before adds to
// it, so that the addition joins the next norm.
class DecoderBlock : public Module {
 public:
  using Module::Module;
  // residual: [T, D], gets `delta` ([T, D]; undefined in the first layer) and this layer's
  // attention added. Returns the delta of this layer.
  virtual Tensor forward(Tensor& residual, const Tensor& delta, const Batch& batch,
                         PagedKv& kv) = 0;
  virtual LayerCacheSpec cache_spec() const = 0;
};

// The token table, and with it the head where the two are tied.
class Embedding : public Module {
 public:
  // Parameter "weight" [V, D]. `scale` multiplies the embedding, rounded to the table's dtype
  // (Gemma). `is_head`: project() will be called.
  Embedding(Module* parent, std::string name, int64_t vocab_size, int64_t hidden_size, float scale,
            bool is_head);

  // ids: [T] int32. Returns [T, D].
  Tensor operator()(const Tensor& ids) const;
  // x: [R, D]. Returns x Wᵀ [R, V] float32.
  Tensor project(const Tensor& x) const { return linear(x, weight_, {}, DType::kF32); }
  const Weight& weight() const { return weight_; }

  void finish_loading(Device device, DType compute) override;
  int64_t weight_bytes() const override { return weight_nbytes(weight_); }

 private:
  float scale_;
  bool is_head_;
  DType activation_ = DType::kF32;
  Tensor file_tensor_;
  Weight weight_;
};

struct CausalLmOptions {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  bool tied_head = false;  // logits = x Eᵀ; else parameter "lm_head.weight"
  float embedding_scale = 1.0f;
  float norm_eps = 1e-6f;
  NormKind norm_kind = NormKind::kPlain;
  float logit_soft_cap = 0.0f;  // 0: none
};

// How to run a batch without a cache: training and evaluation.
struct TrainingForward {
  // Of this many blocks, the lowest, only the inputs are kept for backward(), which runs them again
  // (Tape::checkpoint).
  int64_t recompute_layers = 0;
  // Sees the embedding and may change it (NEFTune); empty: nothing.
  std::function<void(Tensor& embedded)> after_embedding;
  CrossEntropyOptions loss;  // soft_cap is the model's own
};

// Parameters "model.embed_tokens.weight", "model.layers.<i>.…", "model.norm.weight",
// "lm_head.weight". Follows LlamaForCausalLM.
class CausalLm : public Module {
 public:
  // Builds layer i as a child of `parent` under `name`.
  using MakeBlock = std::function<std::unique_ptr<DecoderBlock>(
      Module* parent, const std::string& name, int64_t layer)>;
  using Tap = std::function<void(int64_t layer, const Tensor& hidden)>;

  CausalLm(Module* parent, const CausalLmOptions& options, const MakeBlock& make_block);

  // Logits [R, V] of batch.logit_rows. `tap` (may be empty) sees the embedding and the residual
  // stream after each block, the last one after the final norm.
  Tensor forward(const Batch& batch, KvCache& cache, const Tap& tap) const;
  std::vector<LayerCacheSpec> cache_specs() const;

  // The final norm's result [R, D] for batch.logit_rows, of a batch without a cache.
  Tensor hidden_states(const Batch& batch, const TrainingForward& options) const;
  // −log p(labels[r]) [R] float32 of the rows batch.logit_rows; labels: [R] int32, 0 where
  // negative.
  Tensor token_losses(const Batch& batch, const Tensor& labels,
                      const TrainingForward& options) const;

 private:
  Tensor finish(Tensor residual, Tensor delta, const Batch& batch) const;

  CausalLmOptions options_;
  Embedding embed_;
  std::vector<std::unique_ptr<DecoderBlock>> blocks_;
  Norm norm_;
  std::unique_ptr<Linear> head_;  // null where tied
};

}  // namespace reft
