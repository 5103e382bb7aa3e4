#include "models/config.h"

#include <algorithm>
#include <cmath>

namespace reft {

namespace {

constexpr int64_t kMaxSize = int64_t{1} << 31;
constexpr int64_t kMaxLayers = 10000;

}  // namespace

Config::Config(const Json& json, std::string where) : json_(&json), where_(std::move(where)) {
  check(json.is_object(), "{}not a JSON object", where_);
}

const Json* Config::find(const char* key) const {
  const auto it = json_->find(key);
  return it == json_->end() || it->is_null() ? nullptr : &*it;
}

bool Config::has(const char* key) const { return find(key) != nullptr; }

int64_t Config::count(const char* key, int64_t fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  const bool whole =
      value->is_number_integer() ||
      (value->is_number_float() && value->get<double>() == std::floor(value->get<double>()));
  if (!whole) refuse(key, "is {}, not a whole number", value->dump());
  const auto number = value->get<double>();
  if (number < 0 || number >= static_cast<double>(kMaxSize))
    refuse(key, "is {}, out of range", value->dump());
  return static_cast<int64_t>(number);
}

int64_t Config::size(const char* key, std::optional<int64_t> fallback) const {
  if (!has(key)) {
    if (!fallback) refuse(key, "is missing");
    return *fallback;
  }
  const int64_t value = count(key, 0);
  if (value == 0) refuse(key, "is 0");
  return value;
}

double Config::number(const char* key, std::optional<double> fallback) const {
  const Json* value = find(key);
  if (value == nullptr) {
    if (!fallback) refuse(key, "is missing");
    return *fallback;
  }
  if (!value->is_number()) refuse(key, "is {}, not a number", value->dump());
  return value->get<double>();
}

double Config::positive(const char* key, std::optional<double> fallback) const {
  const double value = number(key, fallback);
  if (!(value > 0) || !std::isfinite(value)) refuse(key, "is {}, not above 0", value);
  return value;
}

bool Config::flag(const char* key, bool fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) refuse(key, "is {}, not true or false", value->dump());
  return value->get<bool>();
}

std::string Config::text(const char* key, std::string fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) refuse(key, "is {}, not a string", value->dump());
  return value->get<std::string>();
}

std::vector<float> Config::numbers(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) refuse(key, "is not a list of numbers");
  std::vector<float> result;
  for (const Json& item : *value) {
    if (!item.is_number() || !(item.get<double>() > 0))
      refuse(key, "holds {}, not a number above 0", item.dump());
    result.push_back(item.get<float>());
  }
  return result;
}

Config Config::section(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) refuse(key, "is missing");
  if (!value->is_object()) refuse(key, "is not a JSON object");
  return Config(*value, where_ + key + ".");
}

namespace {

// The object with the rotary type and its numbers, of the layers that see everything.
std::optional<Config> rope_section(const Config& config) {
  // As transformers does: an old rope_scaling wins over rope_parameters.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!config.has(key)) continue;
    const Config rope = config.section(key);
    if (rope.has("full_attention")) return rope.section("full_attention");
    if (!rope.json().empty() && !rope.has("sliding_attention")) return rope;
  }
  return std::nullopt;
}

std::string rope_type_name(const Config& rope) {
  return rope.text(rope.has("rope_type") ? "rope_type" : "type", "default");
}

// Checkpoints that YaRN stretches mostly keep the trained length in max_position_embeddings.
int64_t yarn_context_length(const Config& config, int64_t max_position) {
  const std::optional<Config> rope = rope_section(config);
  if (!rope || rope_type_name(*rope) != "yarn" || !rope->has("factor")) return max_position;
  const double trained = static_cast<double>(
      config.size("original_max_position_embeddings",
                  rope->size("original_max_position_embeddings", max_position)));
  const double length = trained * rope->positive("factor");
  if (length >= static_cast<double>(kMaxSize)) rope->refuse("factor", "is out of range");
  return std::max(max_position, static_cast<int64_t>(length));
}

}  // namespace

DecoderConfig read_decoder_config(const Config& config, const DecoderDefaults& defaults) {
  DecoderConfig d;
  d.architecture = read_architecture(config.json());
  d.vocab_size = config.size("vocab_size", defaults.vocab_size);
  d.hidden_size = config.size("hidden_size");
  d.intermediate_size = config.size("intermediate_size");
  d.num_layers = config.size("num_hidden_layers");
  if (d.num_layers > kMaxLayers)
    config.refuse("num_hidden_layers", "is {}, out of range", d.num_layers);
  d.num_heads = config.size("num_attention_heads", defaults.num_heads);
  d.num_kv_heads = config.size("num_key_value_heads", defaults.num_kv_heads.value_or(d.num_heads));
  if (d.num_heads % d.num_kv_heads != 0) {
    config.refuse("num_attention_heads", "is {}, not a multiple of num_key_value_heads {}",
                  d.num_heads, d.num_kv_heads);
  }
  if (config.has("head_dim") || defaults.head_dim > 0) {
    d.head_dim = config.size("head_dim", defaults.head_dim);
  } else {
    if (d.hidden_size % d.num_heads != 0) {
      config.refuse("hidden_size", "is {}, not a multiple of num_attention_heads {}", d.hidden_size,
                    d.num_heads);
    }
    d.head_dim = d.hidden_size / d.num_heads;
  }
  if (d.head_dim % 2 != 0)
    config.refuse("head_dim", "is {}, rotary embeddings need an even one", d.head_dim);
  // Keeps every product of two sizes far from overflow.
  if (d.num_heads > kMaxSize / d.head_dim)
    config.refuse("head_dim", "is {}, out of range", d.head_dim);
  d.max_position = defaults.max_position > 0
                       ? config.size("max_position_embeddings", defaults.max_position)
                       : config.size("max_position_embeddings");
  d.context_length = yarn_context_length(config, d.max_position);
  d.norm_eps = static_cast<float>(config.positive("rms_norm_eps", defaults.norm_eps));
  d.tied = config.flag("tie_word_embeddings", defaults.tied);
  d.dtype = read_dtype(config.json()).value_or(DType::kF32);
  return d;
}

namespace {

RopeType parse_rope_type(const Config& config, const char* key, const std::string& name) {
  if (name == "default" || name == "mrope") return RopeType::kDefault;
  if (name == "linear") return RopeType::kLinear;
  if (name == "dynamic") return RopeType::kDynamic;
  if (name == "llama3") return RopeType::kLlama3;
  if (name == "yarn") return RopeType::kYarn;
  if (name == "longrope" || name == "su") return RopeType::kLongRope;
  if (name == "factors") return RopeType::kFactors;
  config.refuse(key, "is '{}'; known are default, linear, dynamic, llama3, yarn, longrope", name);
}

// `rope`: the object with the type and its numbers; `config`: the model's.
RopeParameters parse_rope(const Config& config, const Config& rope, const DecoderConfig& decoder,
                          double theta) {
  RopeParameters p;
  p.type =
      parse_rope_type(rope, rope.has("rope_type") ? "rope_type" : "type", rope_type_name(rope));
  p.theta = rope.positive("rope_theta", theta);
  const double partial =
      rope.positive("partial_rotary_factor", config.positive("partial_rotary_factor", 1.0));
  if (partial > 1.0) config.refuse("partial_rotary_factor", "is {}, above 1", partial);
  p.rotary_dim = static_cast<int64_t>(static_cast<double>(decoder.head_dim) * partial);
  if (p.rotary_dim < 2 || p.rotary_dim % 2 != 0) {
    config.refuse("partial_rotary_factor", "leaves {} of {} dims to rotate, not an even number",
                  p.rotary_dim, decoder.head_dim);
  }
  p.original_max_position =
      config.size("original_max_position_embeddings",
                  rope.size("original_max_position_embeddings", decoder.max_position));
  switch (p.type) {
    case RopeType::kDefault:
    case RopeType::kFactors:
      break;
    case RopeType::kLinear:
      p.factor = rope.positive("factor");
      break;
    case RopeType::kDynamic:
      p.factor = rope.positive("factor");
      p.original_max_position = decoder.max_position;
      if (p.rotary_dim == 2)
        config.refuse("head_dim", "is {}, too small for dynamic scaling", decoder.head_dim);
      break;
    case RopeType::kLlama3:
      p.factor = rope.positive("factor");
      p.low_freq_factor = rope.positive("low_freq_factor");
      p.high_freq_factor = rope.positive("high_freq_factor");
      if (p.high_freq_factor <= p.low_freq_factor) {
        rope.refuse("high_freq_factor", "is {}, not above low_freq_factor {}", p.high_freq_factor,
                    p.low_freq_factor);
      }
      break;
    case RopeType::kYarn:
    case RopeType::kLongRope:
      p.factor = rope.positive("factor", static_cast<double>(decoder.max_position) /
                                             static_cast<double>(p.original_max_position));
      p.attention_factor = rope.has("attention_factor") ? rope.positive("attention_factor") : 0.0;
      p.mscale = rope.number("mscale", 0.0);
      p.mscale_all_dim = rope.number("mscale_all_dim", 0.0);
      p.beta_fast = rope.positive("beta_fast", 32.0);
      p.beta_slow = rope.positive("beta_slow", 1.0);
      p.truncate = rope.flag("truncate", true);
      break;
  }
  p.short_factors = rope.numbers("short_factor");
  p.long_factors = rope.numbers("long_factor");
  if (p.type == RopeType::kLongRope || p.type == RopeType::kFactors) {
    const auto wanted = static_cast<size_t>(p.rotary_dim / 2);
    if (p.short_factors.size() != wanted) {
      rope.refuse("short_factor", "has {} numbers, not {}", p.short_factors.size(), wanted);
    }
    if (p.type == RopeType::kLongRope && p.long_factors.size() != wanted) {
      rope.refuse("long_factor", "has {} numbers, not {}", p.long_factors.size(), wanted);
    }
  }
  return p;
}

}  // namespace

namespace {

const Json kNothing = Json::object();

}  // namespace

RopeParameters read_rope(const Config& config, const DecoderConfig& decoder, double default_theta) {
  const double theta = config.positive("rope_theta", default_theta);
  return parse_rope(config, rope_section(config).value_or(Config(kNothing)), decoder, theta);
}

RopeParameters read_sliding_rope(const Config& config, const DecoderConfig& decoder,
                                 double default_theta) {
  const double theta = config.positive("rope_local_base_freq", default_theta);
  if (config.has("rope_parameters")) {
    const Config rope = config.section("rope_parameters");
    if (rope.has("sliding_attention")) {
      return parse_rope(config, rope.section("sliding_attention"), decoder, theta);
    }
  }
  return parse_rope(config, Config(kNothing), decoder, theta);
}

int64_t read_window(const Config& config) {
  const bool absent = !config.json().contains("sliding_window");
  return config.count("sliding_window", absent ? 4096 : 0);
}

std::vector<int64_t> read_windows(const Config& config, int64_t num_layers, int64_t window,
                                  FunctionRef<bool(int64_t)> is_sliding) {
  std::vector<int64_t> windows;
  if (!config.has("layer_types")) {
    for (int64_t i = 0; i < num_layers; ++i) windows.push_back(is_sliding(i) ? window : 0);
    return windows;
  }
  const Json& types = config.json().at("layer_types");
  if (!types.is_array() || static_cast<int64_t>(types.size()) != num_layers) {
    config.refuse("layer_types", "is not a list of num_hidden_layers = {} names", num_layers);
  }
  for (const Json& type : types) {
    if (type != "sliding_attention" && type != "full_attention") {
      config.refuse("layer_types", "holds {}; known are full_attention, sliding_attention",
                    type.dump());
    }
    windows.push_back(type == "sliding_attention" ? window : 0);
  }
  return windows;
}

std::vector<int64_t> read_qwen_windows(const Config& config, int64_t num_layers) {
  const bool on = config.flag("use_sliding_window", false);
  const int64_t window = on ? read_window(config) : 0;
  const int64_t first = config.count("max_window_layers", 28);
  return read_windows(config, num_layers, window, [&](int64_t layer) { return layer >= first; });
}

Activation read_activation(const Config& config, std::initializer_list<const char*> keys,
                           const char* fallback) {
  for (const char* key : keys) {
    if (!config.has(key)) continue;
    try {
      return parse_activation(config.text(key, ""));
    } catch (const Error& e) {
      config.refuse(key, "is not usable: {}", e.what());
    }
  }
  return parse_activation(fallback);
}

std::string read_architecture(const Json& config) {
  const auto architectures = config.find("architectures");
  if (architectures != config.end() && architectures->is_array() && !architectures->empty() &&
      architectures->front().is_string()) {
    return architectures->front().get<std::string>();
  }
  static constexpr std::pair<const char*, const char*> kByType[] = {
      {"llama", "LlamaForCausalLM"},        {"mistral", "MistralForCausalLM"},
      {"qwen2", "Qwen2ForCausalLM"},        {"qwen3", "Qwen3ForCausalLM"},
      {"gemma", "GemmaForCausalLM"},        {"gemma2", "Gemma2ForCausalLM"},
      {"gemma3_text", "Gemma3ForCausalLM"}, {"gemma3", "Gemma3ForConditionalGeneration"},
      {"qwen2_moe", "Qwen2MoeForCausalLM"}, {"qwen3_moe", "Qwen3MoeForCausalLM"},
      {"gpt_oss", "GptOssForCausalLM"},
  };
  const auto type = config.find("model_type");
  if (type == config.end() || !type->is_string()) return "";
  for (const auto& [name, architecture] : kByType) {
    if (*type == name) return architecture;
  }
  return "";
}

std::optional<DType> read_dtype(const Json& config) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null()) continue;
    check(it->is_string(), "config.json: {} is {}, not a string", key, it->dump());
    std::string name = it->get<std::string>();
    if (name.starts_with("torch.")) name = name.substr(6);
    if (name == "auto") continue;
    try {
      return parse_float_dtype(name);
    } catch (const Error&) {
      fail("config.json: {} is '{}'; known are float32, float16, bfloat16", key, name);
    }
  }
  const auto text = config.find("text_config");
  if (text != config.end() && text->is_object()) return read_dtype(*text);
  return std::nullopt;
}

}  // namespace reft
