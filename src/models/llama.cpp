// Llama 3, 3.1, 3.2 and every other LlamaForCausalLM (SmolLM2, TinyLlama, Llama 2 …), and Mistral,
// which is the same with a sliding window. Follows transformers' modeling_llama and
// modeling_mistral.
#include "models/decoder_model.h"

namespace reft {

namespace {

struct LlamaConfig {
  DecoderConfig decoder;
  AttentionOptions attention;
  RopeParameters rope;
  Activation activation;
  bool mlp_bias;
};

LlamaConfig read_config(const Json& json, bool mistral) {
  const Config config(json);
  LlamaConfig c;
  c.decoder = read_decoder_config(config, {.max_position = mistral ? 4096 * 32 : 2048});
  const DecoderConfig& d = c.decoder;
  const bool attention_bias = !mistral && config.flag("attention_bias", false);
  c.attention = {.hidden_size = d.hidden_size,
                 .num_heads = d.num_heads,
                 .num_kv_heads = d.num_kv_heads,
                 .head_dim = d.head_dim,
                 .qkv_bias = attention_bias,
                 .out_bias = attention_bias,
                 .window = mistral ? read_window(config) : 0};
  c.rope = read_rope(config, d, 10000.0);
  c.activation = read_activation(config, {"hidden_act"}, "silu");
  c.mlp_bias = !mistral && config.flag("mlp_bias", false);
  return c;
}

std::unique_ptr<CausalLmModel> create(const LlamaConfig& c, const LoadOptions& options) {
  const Tensor cos_sin = build_rope(c.rope, c.decoder, options);
  return std::make_unique<DecoderModel>(
      c.decoder, CausalLmOptions{}, [&](Module* parent, const std::string& name, int64_t) {
        return std::make_unique<PreNormBlock>(parent, name, c.decoder, c.attention, cos_sin,
                                              c.activation, c.mlp_bias);
      });
}

}  // namespace

std::unique_ptr<CausalLmModel> create_llama(const Json& config, const LoadOptions& options) {
  return create(read_config(config, /*mistral=*/false), options);
}

std::unique_ptr<CausalLmModel> create_mistral(const Json& config, const LoadOptions& options) {
  return create(read_config(config, /*mistral=*/true), options);
}

}  // namespace reft
