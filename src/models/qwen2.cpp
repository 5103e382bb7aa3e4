// Qwen2 and Qwen2.5: Llama with biases on q, k and v, and optionally a sliding window in the upper
// layers. Follows transformers' modeling_qwen2.
#include "models/decoder_model.h"

namespace reft {

std::unique_ptr<CausalLmModel> create_qwen2(const Json& json, const LoadOptions& options) {
  const Config config(json);
  const DecoderConfig d = read_decoder_config(config, {.max_position = 32768});
  const AttentionOptions attention{.hidden_size = d.hidden_size,
                                   .num_heads = d.num_heads,
                                   .num_kv_heads = d.num_kv_heads,
                                   .head_dim = d.head_dim,
                                   .qkv_bias = true};
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
