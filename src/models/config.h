// Reading a config.json: every key checked, errors name it. Knows both dialects, transformers 4.x
// (rope_theta + rope_scaling, torch_dtype) and 5.x (rope_parameters, dtype).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "base/json.h"
#include "nn/rope.h"
#include "ops/activation.h"

namespace reft {

// A JSON object and where it stands, for errors ("config.json: text_config.hidden_size …").
class Config {
 public:
  // `json` is borrowed. Throws Error unless it is an object.
  explicit Config(const Json& json, std::string where = "config.json: ");

  // Absent and null are the same. Throws Error on a value of another type.
  bool has(const char* key) const;
  // A whole number in [1, 2³¹). Without `fallback`, absent is an Error.
  int64_t size(const char* key, std::optional<int64_t> fallback = {}) const;
  // A whole number in [0, 2³¹).
  int64_t count(const char* key, int64_t fallback) const;
  double number(const char* key, std::optional<double> fallback = {}) const;
  // A number above zero.
  double positive(const char* key, std::optional<double> fallback = {}) const;
  bool flag(const char* key, bool fallback) const;
  std::string text(const char* key, std::string fallback) const;
  std::vector<float> numbers(const char* key) const;
  Config section(const char* key) const;
  const Json& json() const { return *json_; }

  // Throws Error about `key`.
  template <class... Args>
  [[noreturn]] void refuse(const char* key, fmt::format_string<Args...> format,
                           Args&&... args) const {
    throw Error(where_ + key + " " + fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  const Json* find(const char* key) const;

  const Json* json_;
  std::string where_;
};

// What a family assumes where config.json is silent: the defaults of its transformers class.
struct DecoderDefaults {
  double norm_eps = 1e-6;
  int64_t max_position = 0;  // 0: the key must be there
  bool tied = false;
  int64_t head_dim = 0;  // 0: hidden_size / num_attention_heads
  // Sizes that a config.json may leave out (Gemma 3's text_config); absent elsewhere is an Error.
  std::optional<int64_t> vocab_size, num_heads, num_kv_heads;
};

// The numbers that every dense decoder has.
struct DecoderConfig {
  std::string architecture;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_experts = 0;  // of a layer that has experts; 0: the model has none
  int64_t experts_per_token = 0;
  int64_t expert_size = 0;  // features of an expert
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position = 0;    // max_position_embeddings
  int64_t context_length = 0;  // the longest sequence; YaRN stretches max_position
  float norm_eps = 0;
  bool tied = false;
  DType dtype = DType::kBF16;
};
DecoderConfig read_decoder_config(const Config& config, const DecoderDefaults& defaults);

// The rotary parameters of the layers that see everything.
RopeParameters read_rope(const Config& config, const DecoderConfig& decoder, double default_theta);
// Those of sliding-window layers where they have their own: rope_parameters.sliding_attention, or
// rope_local_base_freq (Gemma 3).
RopeParameters read_sliding_rope(const Config& config, const DecoderConfig& decoder,
                                 double default_theta);

// sliding_window: 0 (none) where it is null, and as in every family of transformers 4096 where the
// key is absent.
int64_t read_window(const Config& config);
// The window of each layer, 0 where it sees everything: `window` for the layers that "layer_types"
// calls sliding_attention, or, without that key, for which `is_sliding(layer)`.
std::vector<int64_t> read_windows(const Config& config, int64_t num_layers, int64_t window,
                                  FunctionRef<bool(int64_t layer)> is_sliding);
// The rule of Qwen2 and Qwen3: with use_sliding_window, layers from max_window_layers on.
std::vector<int64_t> read_qwen_windows(const Config& config, int64_t num_layers);

// parse_activation of the first of `keys` that is present, else of `fallback`.
Activation read_activation(const Config& config, std::initializer_list<const char*> keys,
                           const char* fallback);

// The architecture's name: architectures[0], or what model_type stands for; "" when neither is
// there.
std::string read_architecture(const Json& config);
// dtype or torch_dtype, also of text_config; nullopt when absent.
std::optional<DType> read_dtype(const Json& config);

}  // namespace reft
