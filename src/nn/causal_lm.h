// The trunk that every decoder-only language model repeats: embedding, blocks, final norm, head.
#pragma once

#include <functional>
#include <memory>

#include "nn/batch.h"
#include "nn/kv_cache.h"
#include "nn/linear.h"
#include "nn/norm.h"

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

 private:
  CausalLmOptions options_;
  Embedding embed_;
  std::vector<std::unique_ptr<DecoderBlock>> blocks_;
  Norm norm_;
  std::unique_ptr<Linear> head_;  // null where tied
};

}  // namespace reft
