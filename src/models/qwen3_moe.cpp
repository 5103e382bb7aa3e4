// Qwen3-MoE and Qwen2-MoE: the attention of the dense models, and feed-forward layers of experts
// chosen by a softmax router; Qwen2's with a gated expert that every token uses. Follows
// transformers' modeling_qwen3_moe and modeling_qwen2_moe.
#include <algorithm>

#include "models/decoder_model.h"
#include "nn/moe.h"

namespace reft {

namespace {

// transformers 5.x may write the number of experts under its own name.
int64_t read_num_experts(const Config& config) {
  return config.size(config.has("num_local_experts") ? "num_local_experts" : "num_experts");
}

// Also fills in the decoder's facts.
MoeOptions read_moe(const Config& config, DecoderConfig& d, Activation activation) {
  MoeOptions moe{.hidden_size = d.hidden_size,
                 .num_experts = read_num_experts(config),
                 .intermediate_size = config.size("moe_intermediate_size"),
                 .activation = activation};
  moe.router = {.top_k = config.size("num_experts_per_tok"),
                .renormalize = config.flag("norm_topk_prob", false)};
  if (moe.router.top_k > moe.num_experts) {
    config.refuse("num_experts_per_tok", "is {}, of {} experts", moe.router.top_k, moe.num_experts);
  }
  d.num_experts = moe.num_experts;
  d.experts_per_token = moe.router.top_k;
  d.expert_size = moe.intermediate_size;
  return moe;
}

// Which layers have experts: every decoder_sparse_step-th, but those in mlp_only_layers.
std::vector<bool> read_sparse_layers(const Config& config, int64_t num_layers) {
  const int64_t step = config.size("decoder_sparse_step", 1);
  std::vector<bool> sparse(static_cast<size_t>(num_layers));
  for (int64_t i = 0; i < num_layers; ++i) sparse[static_cast<size_t>(i)] = (i + 1) % step == 0;
  const auto dense = config.json().find("mlp_only_layers");
  if (dense == config.json().end() || dense->is_null()) return sparse;
  if (!dense->is_array()) config.refuse("mlp_only_layers", "is not a list of layers");
  for (const Json& layer : *dense) {
    if (!layer.is_number_integer())
      config.refuse("mlp_only_layers", "holds {}, not a layer", layer.dump());
    const auto i = layer.get<int64_t>();
    if (i >= 0 && i < num_layers) sparse[static_cast<size_t>(i)] = false;
  }
  return sparse;
}

std::unique_ptr<CausalLmModel> create(const Config& config, const DecoderConfig& d,
                                      const AttentionOptions& attention,
                                      const std::vector<int64_t>& windows, const MoeOptions& moe,
                                      const LoadOptions& options) {
  const std::vector<bool> sparse = read_sparse_layers(config, d.num_layers);
  const Tensor cos_sin = build_rope(read_rope(config, d, 10000.0), d, options);
  return std::make_unique<DecoderModel>(
      d, CausalLmOptions{}, [&](Module* parent, const std::string& name, int64_t layer) {
        AttentionOptions own = attention;
        own.window = windows[static_cast<size_t>(layer)];
        const auto make_mlp = [&](Module* block) -> std::unique_ptr<FeedForward> {
          if (sparse[static_cast<size_t>(layer)])
            return std::make_unique<MoeMlp>(block, "mlp", moe);
          return std::make_unique<Mlp>(block, "mlp", d.hidden_size, d.intermediate_size,
                                       moe.activation);
        };
        return std::make_unique<PreNormBlock>(parent, name, d, own, cos_sin, make_mlp);
      });
}

}  // namespace

std::unique_ptr<CausalLmModel> create_qwen3_moe(const Json& json, const LoadOptions& options) {
  const Config config(json);
  DecoderConfig d = read_decoder_config(config, {.max_position = 32768});
  const bool attention_bias = config.flag("attention_bias", false);
  const AttentionOptions attention{.hidden_size = d.hidden_size,
                                   .num_heads = d.num_heads,
                                   .num_kv_heads = d.num_kv_heads,
                                   .head_dim = d.head_dim,
                                   .qkv_bias = attention_bias,
                                   .out_bias = attention_bias,
                                   .qk_norm = true,
                                   .norm_eps = d.norm_eps};
  // With use_sliding_window all layers have the window.
  const int64_t window = config.flag("use_sliding_window", false) ? read_window(config) : 0;
  const std::vector<int64_t> windows(static_cast<size_t>(d.num_layers), window);
  const MoeOptions moe = read_moe(config, d, read_activation(config, {"hidden_act"}, "silu"));
  return create(config, d, attention, windows, moe, options);
}

std::unique_ptr<CausalLmModel> create_qwen2_moe(const Json& json, const LoadOptions& options) {
  const Config config(json);
  DecoderConfig d = read_decoder_config(config, {.max_position = 32768});
  const AttentionOptions attention{.hidden_size = d.hidden_size,
                                   .num_heads = d.num_heads,
                                   .num_kv_heads = d.num_kv_heads,
                                   .head_dim = d.head_dim,
                                   .qkv_bias = config.flag("qkv_bias", true)};
  const bool slides = config.flag("use_sliding_window", false);
  const int64_t lower = config.count("max_window_layers", 28);
  const std::vector<int64_t> windows =
      read_windows(config, d.num_layers, slides ? read_window(config) : 0,
                   [&](int64_t layer) { return slides && layer % 2 == 0 && layer < lower; });
  MoeOptions moe = read_moe(config, d, read_activation(config, {"hidden_act"}, "silu"));
  moe.shared_size = config.size("shared_expert_intermediate_size");
  moe.shared_gate = true;
  return create(config, d, attention, windows, moe, options);
}

}  // namespace reft
