// Causal self-attention with grouped heads, over the paged KV cache or, in training, without one.
#pragma once

#include "nn/batch.h"
#include "nn/kv_cache.h"
#include "nn/linear.h"
#include "nn/norm.h"

namespace reft {

struct AttentionOptions {
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  bool qkv_bias = false;
  bool out_bias = false;
  bool qk_norm = false;  // RMS norm of each q and k head (Qwen3, Gemma 3)
  float norm_eps = 1e-6f;
  NormKind norm_kind = NormKind::kPlain;
  float scale = 0.0f;     // on q·k; 0: head_dim^-½
  float soft_cap = 0.0f;  // 0: none
  int64_t window = 0;     // 0: every earlier key is seen
  bool sinks = false;     // a learned logit per head joins the softmax (GPT-OSS)
};

// o(attention(rope(q(x)), rope(k(x)), v(x))). Parameters {q,k,v,o}_proj.{weight,bias},
// {q,k}_norm.weight, sinks [H]. Follows LlamaAttention, Qwen3Attention, Gemma2Attention,
// GptOssAttention.
class Attention : public Module {
 public:
  // `cos_sin`: the layer's rotary table (nn/rope.h).
  Attention(Module* parent, std::string name, const AttentionOptions& options, Tensor cos_sin);

  // x: [T, D]. Writes keys and values of this step to `kv`; a batch without a block table uses no
  // cache and has gradients. Returns [T, D].
  Tensor operator()(const Tensor& x, const Batch& batch, PagedKv& kv) const;

  LayerCacheSpec cache_spec() const { return cache_spec_; }
  void finish_loading(Device device, DType compute) override;

 private:
  LayerCacheSpec cache_spec_;
  HeadCounts heads_;
  QkNormRopeArgs rope_;
  AttentionArgs attention_;
  Linear qkv_;
  Linear out_;
};

}  // namespace reft
