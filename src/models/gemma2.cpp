// Gemma 2 and the text part of Gemma 3: norms before and after attention and feed-forward,
// sliding-window layers between full ones. Gemma 2 caps attention scores and logits; Gemma 3
// normalises q and k heads instead and has a rotary table per layer type. Follows transformers'
// modeling_gemma2 and modeling_gemma3.
#include <cmath>

#include "models/decoder_model.h"

namespace reft {

namespace {

struct GemmaConfig {
  DecoderConfig decoder;
  AttentionOptions attention;    // of a full layer
  std::vector<int64_t> windows;  // of each layer
  Activation activation;
  float logit_soft_cap;
};

float optional_cap(const Config& config, const char* key, double fallback) {
  // In transformers null turns the cap off, while an absent key means the default.
  const auto it = config.json().find(key);
  if (it != config.json().end() && it->is_null()) return 0.0f;
  return static_cast<float>(config.number(key, fallback));
}

GemmaConfig read_config(const Config& config, DecoderDefaults defaults, bool gemma3,
                        FunctionRef<bool(int64_t layer)> is_sliding) {
  GemmaConfig c;
  c.decoder = read_decoder_config(config, defaults);
  const DecoderConfig& d = c.decoder;
  if (config.flag("use_bidirectional_attention", false)) {
    config.refuse("use_bidirectional_attention", "is true: an encoder, which is not supported");
  }
  const bool attention_bias = config.flag("attention_bias", false);
  c.attention = {.hidden_size = d.hidden_size,
                 .num_heads = d.num_heads,
                 .num_kv_heads = d.num_kv_heads,
                 .head_dim = d.head_dim,
                 .qkv_bias = attention_bias,
                 .out_bias = attention_bias,
                 .qk_norm = gemma3,
                 .norm_eps = d.norm_eps,
                 .norm_kind = NormKind::kOnePlus,
                 .scale = static_cast<float>(
                     1.0 / std::sqrt(config.positive("query_pre_attn_scalar", 256.0)))};
  // Gemma 3's eager attention has no cap, whatever the key says.
  c.attention.soft_cap = gemma3 ? 0.0f : optional_cap(config, "attn_logit_softcapping", 50.0);
  c.logit_soft_cap = optional_cap(config, "final_logit_softcapping", gemma3 ? 0.0 : 30.0);
  c.windows = read_windows(config, d.num_layers, read_window(config), is_sliding);
  c.activation = read_activation(config, {"hidden_activation"}, "gelu_pytorch_tanh");
  return c;
}

class SandwichBlock final : public DecoderBlock {
 public:
  SandwichBlock(Module* parent, std::string name, const GemmaConfig& c,
                const AttentionOptions& attention, const Tensor& cos_sin)
      : DecoderBlock(parent, std::move(name)),
        input_norm_(norm("input_layernorm", c.decoder)),
        attention_(this, "self_attn", attention, cos_sin),
        post_attention_norm_(norm("post_attention_layernorm", c.decoder)),
        pre_mlp_norm_(norm("pre_feedforward_layernorm", c.decoder)),
        mlp_(this, "mlp", c.decoder.hidden_size, c.decoder.intermediate_size, c.activation),
        post_mlp_norm_(norm("post_feedforward_layernorm", c.decoder)) {}

  Tensor forward(Tensor& residual, const Tensor& delta, const Batch& batch, PagedKv& kv) override {
    const Tensor attended = attention_(input_norm_.add(residual, delta), batch, kv);
    const Tensor x = pre_mlp_norm_.add(residual, post_attention_norm_(attended));
    return post_mlp_norm_(mlp_(x));
  }
  LayerCacheSpec cache_spec() const override { return attention_.cache_spec(); }

 private:
  Norm norm(std::string name, const DecoderConfig& d) {
    return Norm(this, std::move(name), d.hidden_size, d.norm_eps, NormKind::kOnePlus);
  }

  Norm input_norm_;
  Attention attention_;
  Norm post_attention_norm_;
  Norm pre_mlp_norm_;
  Mlp mlp_;
  Norm post_mlp_norm_;
};

std::unique_ptr<CausalLmModel> create(const GemmaConfig& c, const Tensor& full_rope,
                                      const Tensor& sliding_rope) {
  const CausalLmOptions lm{.embedding_scale = std::sqrt(static_cast<float>(c.decoder.hidden_size)),
                           .norm_kind = NormKind::kOnePlus,
                           .logit_soft_cap = c.logit_soft_cap};
  return std::make_unique<DecoderModel>(
      c.decoder, lm, [&](Module* parent, const std::string& name, int64_t layer) {
        AttentionOptions attention = c.attention;
        attention.window = c.windows[static_cast<size_t>(layer)];
        const Tensor& rope = attention.window > 0 ? sliding_rope : full_rope;
        return std::make_unique<SandwichBlock>(parent, name, c, attention, rope);
      });
}

}  // namespace

std::unique_ptr<CausalLmModel> create_gemma2(const Json& json, const LoadOptions& options) {
  const Config config(json);
  const GemmaConfig c = read_config(config, {.max_position = 8192, .tied = true, .head_dim = 256},
                                    /*gemma3=*/false, [](int64_t layer) { return layer % 2 == 0; });
  const Tensor rope = build_rope(read_rope(config, c.decoder, 10000.0), c.decoder, options);
  return create(c, rope, rope);
}

std::unique_ptr<CausalLmModel> create_gemma3(const Json& json, const LoadOptions& options) {
  // Gemma3ForConditionalGeneration keeps the language model's keys in text_config.
  const Config top(json);
  const bool nested = top.has("text_config");
  const Config config = nested ? top.section("text_config") : top;
  DecoderDefaults defaults{.max_position = 131072, .tied = true, .head_dim = 256};
  if (nested) {  // the released configs leave out what is transformers' default
    defaults.vocab_size = 262208;
    defaults.num_heads = 8;
    defaults.num_kv_heads = 4;
  }
  const int64_t pattern = config.size("sliding_window_pattern", 6);
  GemmaConfig c = read_config(config, defaults, /*gemma3=*/true,
                              [&](int64_t layer) { return (layer + 1) % pattern != 0; });
  c.decoder.dtype = read_dtype(json).value_or(c.decoder.dtype);
  c.decoder.architecture = read_architecture(json);
  if (nested) {
    // The head belongs to the whole: its tying is said outside text_config, and it has no cap.
    c.decoder.tied = top.flag("tie_word_embeddings", true);
    c.logit_soft_cap = 0.0f;
  }
  // Only the full layers follow rope_theta and rope_scaling; the sliding ones have a plain table of
  // their own.
  const Tensor full = build_rope(read_rope(config, c.decoder, 1e6), c.decoder, options);
  const Tensor sliding =
      build_rope(read_sliding_rope(config, c.decoder, 10000.0), c.decoder, options);
  return create(c, full, sliding);
}

}  // namespace reft
