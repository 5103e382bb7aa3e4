// A decoder-only family as the engine sees it: the trunk of nn/causal_lm.h with its facts.
#pragma once

#include <algorithm>

#include "models/config.h"
#include "models/model.h"
#include "nn/attention.h"
#include "nn/causal_lm.h"
#include "nn/mlp.h"

namespace reft {

// The rotary table for the longest sequence that will be served, on the device.
inline Tensor build_rope(const RopeParameters& rope, const DecoderConfig& config,
                         const LoadOptions& options) {
  constexpr double kMaxBytes = 4e9;
  const int64_t positions =
      options.max_model_len > 0 ? options.max_model_len : config.context_length;
  const double bytes = 4.0 * static_cast<double>(positions) * static_cast<double>(rope.rotary_dim);
  check(
      bytes <= kMaxBytes,
      "config.json: max_position_embeddings is {}: rotary tables of {:.1f} GB; set --max_model_len",
      positions, bytes / 1e9);
  return rope_table(rope, positions).to(options.device);
}

class DecoderModel final : public CausalLmModel {
 public:
  DecoderModel(const DecoderConfig& config, CausalLmOptions options,
               const CausalLm::MakeBlock& make_block)
      : info_{.architecture = config.architecture,
              .vocab_size = config.vocab_size,
              .max_position = config.context_length,
              .num_layers = config.num_layers,
              .hidden_size = config.hidden_size,
              .num_experts = config.num_experts,
              .experts_per_token = config.experts_per_token,
              .feed_forward_size =
                  std::max(config.intermediate_size, config.experts_per_token * config.expert_size),
              .checkpoint_dtype = config.dtype},
        lm_(this, complete(options, config), make_block) {}

  const ModelInfo& info() const override { return info_; }
  std::vector<LayerCacheSpec> cache_specs() const override { return lm_.cache_specs(); }
  Tensor forward(const Batch& batch, KvCache& cache) override {
    return lm_.forward(batch, cache, {});
  }
  Tensor forward_with_tap(const Batch& batch, KvCache& cache, const Tap& tap) override {
    return lm_.forward(batch, cache, tap);
  }
  Tensor hidden_states(const Batch& batch, const TrainingForward& options) override {
    return lm_.hidden_states(batch, options);
  }
  Tensor token_losses(const Batch& batch, const Tensor& labels,
                      const TrainingForward& options) override {
    return lm_.token_losses(batch, labels, options);
  }

 private:
  static CausalLmOptions complete(CausalLmOptions options, const DecoderConfig& config) {
    options.vocab_size = config.vocab_size;
    options.hidden_size = config.hidden_size;
    options.num_layers = config.num_layers;
    options.tied_head = config.tied;
    options.norm_eps = config.norm_eps;
    return options;
  }

  ModelInfo info_;
  CausalLm lm_;
};

// The block of Llama and its kin: x += attention(norm(x)); x += mlp(norm(x)). The feed-forward
// layer may be another than Mlp.
class PreNormBlock final : public DecoderBlock {
 public:
  // Builds the feed-forward layer as the block's child "mlp".
  using MakeMlp = FunctionRef<std::unique_ptr<FeedForward>(Module* block)>;

  PreNormBlock(Module* parent, std::string name, const DecoderConfig& config,
               const AttentionOptions& attention, const Tensor& cos_sin, Activation activation,
               bool mlp_bias = false)
      : PreNormBlock(parent, std::move(name), config, attention, cos_sin, [&](Module* block) {
          return std::make_unique<Mlp>(block, "mlp", config.hidden_size, config.intermediate_size,
                                       activation, mlp_bias);
        }) {}
  PreNormBlock(Module* parent, std::string name, const DecoderConfig& config,
               const AttentionOptions& attention, const Tensor& cos_sin, MakeMlp make_mlp)
      : DecoderBlock(parent, std::move(name)),
        input_norm_(this, "input_layernorm", config.hidden_size, config.norm_eps,
                    attention.norm_kind),
        attention_(this, "self_attn", attention, cos_sin),
        post_norm_(this, "post_attention_layernorm", config.hidden_size, config.norm_eps,
                   attention.norm_kind),
        mlp_(make_mlp(this)) {}

  Tensor forward(Tensor& residual, const Tensor& delta, const Batch& batch, PagedKv& kv) override {
    const Tensor attended = attention_(input_norm_.add(residual, delta), batch, kv);
    return (*mlp_)(post_norm_.add(residual, attended));
  }
  LayerCacheSpec cache_spec() const override { return attention_.cache_spec(); }

 private:
  Norm input_norm_;
  Attention attention_;
  Norm post_norm_;
  std::unique_ptr<FeedForward> mlp_;
};

}  // namespace reft
