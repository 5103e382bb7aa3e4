// Qwen3 dense: an RMS norm on every q and k head before the rotary embedding, no biases, and
// optionally a sliding window in the upper layers. Follows transformers' modeling_qwen3.
#include "models/decoder_model.h"

namespace reft {

std::unique_ptr<CausalLmModel> create_qwen3(const Json& json, const LoadOptions& options) {
  const Config config(json);
  const DecoderConfig d = read_decoder_config(config, {.max_position = 32768, .head_dim = 128});
  const bool attention_bias = config.flag("attention_bias", false);
  const AttentionOptions attention{.hidden_size = d.hidden_size,
                                   .num_heads = d.num_heads,
                                   .num_kv_heads = d.num_kv_heads,
                                   .head_dim = d.head_dim,
                                   .qkv_bias = attention_bias,
                                   .out_bias = attention_bias,
                                   .qk_norm = true,
                                   .norm_eps = d.norm_eps};
  const std::vector<int64_t> windows = read_qwen_windows(config, d.num_layers);
  const Activation activation = read_activation(config, {"hidden_act"}, "silu");
  const Tensor cos_sin = build_rope(read_rope(config, d, 10000.0), d, options);
  return std::make_unique<DecoderModel>(
      d, CausalLmOptions{}, [&](Module* parent, const std::string& name, int64_t layer) {
        AttentionOptions own = attention;
        own.window = windows[static_cast<size_t>(layer)];
        return std::make_unique<PreNormBlock>(parent, name, d, own, cos_sin, activation);
      });
}

}  // namespace reft
