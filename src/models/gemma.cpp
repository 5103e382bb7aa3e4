// Gemma 1: Llama with (1 + w) norms, embeddings times √D, and a tanh-GELU gate. Follows
// transformers' modeling_gemma.
#include <cmath>

#include "models/decoder_model.h"

namespace reft {

namespace {

// The first releases say "gelu" and mean the tanh form; "hidden_activation" was added to correct
// that.
Activation read_gemma_activation(const Config& config) {
  if (!config.has("hidden_activation") && config.text("hidden_act", "") == "gelu")
    return Activation::kGeluTanh;
  return read_activation(config, {"hidden_activation", "hidden_act"}, "gelu_pytorch_tanh");
}

}  // namespace

std::unique_ptr<CausalLmModel> create_gemma(const Json& json, const LoadOptions& options) {
  const Config config(json);
  const DecoderConfig d =
      read_decoder_config(config, {.max_position = 8192, .tied = true, .head_dim = 256});
  const bool attention_bias = config.flag("attention_bias", false);
  const AttentionOptions attention{.hidden_size = d.hidden_size,
                                   .num_heads = d.num_heads,
                                   .num_kv_heads = d.num_kv_heads,
                                   .head_dim = d.head_dim,
                                   .qkv_bias = attention_bias,
                                   .out_bias = attention_bias,
                                   .norm_kind = NormKind::kOnePlus};
  const Activation activation = read_gemma_activation(config);
  const Tensor cos_sin = build_rope(read_rope(config, d, 10000.0), d, options);
  const CausalLmOptions lm{.embedding_scale = std::sqrt(static_cast<float>(d.hidden_size)),
                           .norm_kind = NormKind::kOnePlus};
  return std::make_unique<DecoderModel>(
      d, lm, [&](Module* parent, const std::string& name, int64_t) {
        return std::make_unique<PreNormBlock>(parent, name, d, attention, cos_sin, activation);
      });
}

}  // namespace reft
