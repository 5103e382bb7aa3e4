#include "models/gguf_export.h"

#include <algorithm>
#include <cmath>

#include "base/log.h"
#include "models/config.h"

namespace reft {
namespace {

// YaRN's usual factor on cos and sin.
double yarn_attention(double factor) { return 1.0 + 0.1 * std::log(factor); }

// Factors that the frequencies are divided by, as a tensor.
GgufTensor rope_factors(const RopeParameters& rope, int64_t positions) {
  RopeParameters plain = rope;
  plain.type = RopeType::kDefault;
  std::vector<float> factors = rope_frequencies(plain, positions).inv_freq;
  const std::vector<float> scaled = rope_frequencies(rope, positions).inv_freq;
  for (size_t i = 0; i < factors.size(); ++i) factors[i] /= scaled[i];
  Tensor tensor = Tensor::from_vector(factors);
  return {"rope_freqs.weight", DType::kF32, tensor.shape(), [tensor] { return tensor; }};
}

void add_rope(const RopeParameters& rope, const std::string& arch, int64_t positions,
              GgufDescription* out) {
  const std::string prefix = arch + ".rope.scaling.";
  GgufMetadata& m = out->metadata;
  switch (rope.type) {
    case RopeType::kDefault:
      return;
    case RopeType::kLinear:
      m[prefix + "type"] = std::string("linear");
      m[prefix + "factor"] = rope.factor;
      return;
    case RopeType::kYarn:
      check(rope.mscale == 0 && rope.mscale_all_dim == 0 && rope.truncate,
            "config.json: YaRN with mscale or without truncate cannot be written as GGUF");
      m[prefix + "type"] = std::string("yarn");
      m[prefix + "factor"] = rope.factor;
      m[prefix + "original_context_length"] = rope.original_max_position;
      m[prefix + "yarn_beta_fast"] = rope.beta_fast;
      m[prefix + "yarn_beta_slow"] = rope.beta_slow;
      if (rope.attention_factor > 0) {
        m[prefix + "yarn_attn_factor"] = rope.attention_factor / yarn_attention(rope.factor);
      }
      return;
    case RopeType::kLlama3:
    case RopeType::kFactors:
      out->tensors.push_back(rope_factors(rope, positions));
      return;
    case RopeType::kDynamic:
    case RopeType::kLongRope:
      fail("config.json: this rope_scaling cannot be written as GGUF");
  }
}

void add_gemma_keys(const Config& config, const DecoderConfig& d, const std::string& arch,
                    GgufMetadata* m) {
  const bool gemma2 = arch == "gemma2";
  const auto cap = [&](const char* key, double fallback) {
    const auto it = config.json().find(key);
    const bool off = it != config.json().end() && it->is_null();
    (*m)[arch + "." + key] = off ? 0.0 : config.number(key, fallback);
  };
  if (gemma2) cap("attn_logit_softcapping", 50.0);
  (*m)[arch + ".final_logit_softcapping"] =
      config.has("final_logit_softcapping") ? config.number("final_logit_softcapping", 0.0)
      : gemma2 && !config.json().contains("final_logit_softcapping") ? 30.0
                                                                     : 0.0;
  const bool is_27b = d.num_layers == (gemma2 ? 46 : 62);
  const auto scalar = static_cast<double>(is_27b ? d.hidden_size / d.num_heads : d.head_dim);
  check(config.positive("query_pre_attn_scalar", 256.0) == scalar,
        "config.json: query_pre_attn_scalar {} cannot be written as GGUF, which has {} for it",
        config.positive("query_pre_attn_scalar", 256.0), scalar);
  const int64_t window = read_window(config), pattern = gemma2 ? 2 : 6;
  const std::vector<int64_t> windows =
      read_windows(config, d.num_layers, window, [&](int64_t layer) {
        return gemma2 ? layer % 2 == 0
                      : (layer + 1) % config.size("sliding_window_pattern", 6) != 0;
      });
  for (int64_t i = 0; i < d.num_layers; ++i) {
    const bool sliding = window > 0 && (i + 1) % pattern != 0;
    check(windows[static_cast<size_t>(i)] == (sliding ? window : 0),
          "config.json: layer_types cannot be written as GGUF: layer {} differs from its pattern",
          i);
  }
  (*m)[arch + ".attention.sliding_window"] = window;
  if (!gemma2) {
    const RopeParameters rope = read_sliding_rope(config, d, 10000.0);
    check(rope.type == RopeType::kDefault,
          "config.json: rope_scaling of sliding layers cannot be written as GGUF");
    (*m)[arch + ".rope.freq_base_swa"] = rope.theta;
  }
}

}  // namespace

GgufDescription describe_for_gguf(const Json& json, const CausalLmModel& model) {
  const ModelInfo& info = model.info();
  const LayerCacheSpec cache = model.cache_specs().at(0);
  GgufDescription out{.names = GgufNames(info.architecture, cache.head_dim)};
  const std::string& arch = out.names.architecture();
  const Config config(json);
  const DecoderConfig d =
      read_decoder_config(config, {.max_position = info.max_position, .head_dim = cache.head_dim});
  const RopeParameters rope = read_rope(config, d, arch == "gemma3" ? 1e6 : 1e4);
  GgufMetadata& m = out.metadata;
  m["general.architecture"] = arch;
  m[arch + ".vocab_size"] = info.vocab_size;
  m[arch + ".context_length"] = d.max_position;
  m[arch + ".embedding_length"] = d.hidden_size;
  m[arch + ".block_count"] = d.num_layers;
  m[arch + ".feed_forward_length"] = d.intermediate_size;
  m[arch + ".attention.head_count"] = d.num_heads;
  m[arch + ".attention.head_count_kv"] = d.num_kv_heads;
  m[arch + ".attention.key_length"] = d.head_dim;
  m[arch + ".attention.value_length"] = d.head_dim;
  m[arch + ".attention.layer_norm_rms_epsilon"] = double{d.norm_eps};
  m[arch + ".rope.dimension_count"] = rope.rotary_dim;
  m[arch + ".rope.freq_base"] = rope.theta;
  add_rope(rope, arch, info.max_position, &out);
  if (arch == "gemma2" || arch == "gemma3") {
    add_gemma_keys(config, d, arch, &m);
  } else if (std::ranges::any_of(model.cache_specs(),
                                 [](const LayerCacheSpec& s) { return s.window > 0; })) {
    log_warning("export", "GGUF files of '{}' know no sliding window: the model's is lost", arch);
  }
  return out;
}

}  // namespace reft
