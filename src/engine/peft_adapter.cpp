#include "engine/peft_adapter.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "tensor/safetensors.h"
#include "text/regex.h"

namespace reft {
namespace {

constexpr std::string_view kRoot = "base_model.model.";

// Python's re.fullmatch.
bool matches_whole(const std::string& path, const std::string& pattern) {
  size_t begin = 0, end = 0;
  return Regex("\\A(?:" + pattern + ")\\z").find(path, 0, begin, end);
}

bool ends_with_module(const std::string& path, const std::string& name) {
  return path == name || path.ends_with("." + name);
}

// PEFT: re.match(rf"(.*\.)?({pattern})$", path). Plain names need no regular expression.
bool matches_end(const std::string& path, const std::string& pattern) {
  if (pattern.find_first_of("^$*+?()[]{}|\\") == std::string::npos) {
    return ends_with_module(path, pattern);
  }
  return matches_whole(path, "(?:.*\\.)?(?:" + pattern + ")");
}

template <class T>
T pattern_value(const std::vector<std::pair<std::string, T>>& patterns, const std::string& path,
                T otherwise) {
  for (const auto& [pattern, value] : patterns) {
    if (matches_end(path, pattern)) return value;
  }
  return otherwise;
}

// The first part of a path that is a number; −1: none.
int64_t layer_of(const std::string& path) {
  for (size_t at = path.find('.'); at != std::string::npos; at = path.find('.', at + 1)) {
    int64_t layer = -1;
    const char* last = path.data() + path.size();
    const auto [rest, error] = std::from_chars(path.data() + at + 1, last, layer);
    if (error == std::errc() && rest != last && *rest == '.') return layer;
  }
  return -1;
}

bool is_given(const Json& json, const char* key) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return false;
  if (it->is_boolean()) return it->get<bool>();
  return !it->is_structured() || !it->empty();
}

// What changes the result and is not done here.
void check_supported(const Json& json) {
  const std::string type = json_get<std::string>(json, "peft_type", "");
  check(type == "LORA", "adapter_config.json: peft_type is '{}', only LORA is supported", type);
  const std::string bias = json_get<std::string>(json, "bias", "none");
  check(bias == "none", "adapter_config.json: bias '{}' is not supported, only 'none'", bias);
  for (const char* key :
       {"fan_in_fan_out", "lora_bias", "target_parameters", "trainable_token_indices",
        "layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config", "use_bdlora",
        "exclude_modules"}) {
    check(!is_given(json, key), "adapter_config.json: '{}' is not supported", key);
  }
  const auto init = json.find("init_lora_weights");
  if (init == json.end() || !init->is_string()) return;
  const auto name = init->get<std::string>();
  check(name == "gaussian" || name == "eva" || name == "orthogonal",
        "adapter_config.json: init_lora_weights '{}' changed the base model's weights: convert the "
        "adapter with PEFT first (path_initial_model_for_weight_conversion)",
        name);
}

std::vector<std::string> strings_of(const Json& json, const char* key) {
  return json_get(json, key, std::vector<std::string>());
}

template <class T>
std::vector<std::pair<std::string, T>> pattern_of(const Json& json, const char* key) {
  std::vector<std::pair<std::string, T>> out;
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return out;
  check(it->is_object(), "adapter_config.json: '{}' must be an object", key);
  for (const auto& [pattern, value] : it->items()) {
    check(value.is_number() && value.template get<double>() > 0,
          "adapter_config.json: '{}' of '{}' must be a number above 0", key, pattern);
    out.emplace_back(pattern, value.template get<T>());
  }
  return out;
}

// What is after the module's path in a key, and where it goes.
struct Part {
  const char* ending;
  Tensor LoraWeights::*member;
};
constexpr Part kParts[] = {{".lora_A.weight", &LoraWeights::a},
                           {".lora_B.weight", &LoraWeights::b},
                           {".lora_magnitude_vector", &LoraWeights::magnitude}};

const Part* part_of(const std::string& key) {
  for (const Part& part : kParts) {
    if (key.ends_with(part.ending)) return &part;
  }
  return nullptr;
}

void check_layer(const std::string& what, const std::string& path, const LoraWeights& w,
                 const LoraConfig& config) {
  check(w.a.defined() && w.b.defined(), "{}: '{}' has lora_{} only", what, path,
        w.a.defined() ? "A" : "B");
  check(w.a.dims() == 2 && w.b.dims() == 2 && w.a.size(0) == w.b.size(1) && is_float(w.a.dtype()) &&
            is_float(w.b.dtype()),
        "{}: '{}' must have lora_A [rank, in] and lora_B [out, rank], got {} and {}", what, path,
        w.a, w.b);
  check(w.a.size(0) == config.rank_of(path), "{}: '{}' has rank {}, adapter_config.json says {}",
        what, path, w.a.size(0), config.rank_of(path));
  check(w.magnitude.defined() == config.use_dora,
        "{}: '{}' {} lora_magnitude_vector, adapter_config.json has use_dora {}", what, path,
        w.magnitude.defined() ? "has a" : "has no", config.use_dora);
  check(!config.use_dora || w.magnitude.numel() == w.b.size(0),
        "{}: lora_magnitude_vector of '{}' must be [{}], got {}", what, path, w.b.size(0),
        w.magnitude);
}

}  // namespace

int64_t LoraConfig::rank_of(const std::string& path) const {
  return pattern_value(rank_pattern, path, rank);
}

double LoraConfig::scale_of(const std::string& path) const {
  const auto r = static_cast<double>(rank_of(path));
  return pattern_value(alpha_pattern, path, alpha) / (use_rslora ? std::sqrt(r) : r);
}

bool LoraConfig::is_target(const std::string& path) const {
  if (target_modules.empty()) {
    if (target_pattern == "all-linear") return !ends_with_module(path, "lm_head");
    return matches_whole(path, target_pattern);
  }
  const bool named = std::any_of(target_modules.begin(), target_modules.end(),
                                 [&](const auto& name) { return ends_with_module(path, name); });
  if (!named || layers_to_transform.empty()) return named;
  return std::find(layers_to_transform.begin(), layers_to_transform.end(), layer_of(path)) !=
         layers_to_transform.end();
}

LoraConfig parse_adapter_config(const Json& json) {
  check(json.is_object(), "adapter_config.json is not an object");
  check_supported(json);
  LoraConfig config;
  config.rank = json_get<int64_t>(json, "r", config.rank);
  config.alpha = json_get<double>(json, "lora_alpha", 8);  // PEFT's default
  config.dropout = json_get<double>(json, "lora_dropout", 0);
  check(config.rank > 0, "adapter_config.json: r must be above 0, got {}", config.rank);
  check(config.dropout >= 0 && config.dropout < 1,
        "adapter_config.json: lora_dropout must be at least 0 and below 1, got {}", config.dropout);
  const auto targets = json.find("target_modules");
  if (targets != json.end() && targets->is_string()) {
    config.target_pattern = targets->get<std::string>();
  } else {
    config.target_modules = strings_of(json, "target_modules");
  }
  const auto layers = json.find("layers_to_transform");
  if (layers != json.end() && layers->is_number_integer()) {
    config.layers_to_transform = {layers->get<int64_t>()};
  } else {
    config.layers_to_transform = json_get(json, "layers_to_transform", std::vector<int64_t>());
  }
  config.modules_to_save = strings_of(json, "modules_to_save");
  config.use_rslora = json_get(json, "use_rslora", false);
  config.use_dora = json_get(json, "use_dora", false);
  config.rank_pattern = pattern_of<int64_t>(json, "rank_pattern");
  config.alpha_pattern = pattern_of<double>(json, "alpha_pattern");
  config.base_model = json_get<std::string>(json, "base_model_name_or_path", "");
  return config;
}

Json adapter_config_json(const LoraConfig& config) {
  const auto or_null = [](const auto& list) { return list.empty() ? Json() : Json(list); };
  const auto object_of = [](const auto& patterns) {
    Json object = Json::object();
    for (const auto& [pattern, value] : patterns) object[pattern] = value;
    return object;
  };
  return {{"peft_type", "LORA"},
          {"task_type", "CAUSAL_LM"},
          {"base_model_name_or_path", config.base_model},
          {"r", config.rank},
          {"lora_alpha", config.alpha},
          {"lora_dropout", config.dropout},
          {"target_modules", config.target_modules.empty() ? Json(config.target_pattern)
                                                           : Json(config.target_modules)},
          {"layers_to_transform", or_null(config.layers_to_transform)},
          {"modules_to_save", or_null(config.modules_to_save)},
          {"use_rslora", config.use_rslora},
          {"use_dora", config.use_dora},
          {"rank_pattern", object_of(config.rank_pattern)},
          {"alpha_pattern", object_of(config.alpha_pattern)},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"init_lora_weights", true},
          {"inference_mode", true}};
}

LoraAdapter read_adapter(const std::string& folder) {
  const std::string file = folder + "/adapter_model.safetensors";
  if (!std::filesystem::exists(file) && std::filesystem::exists(folder + "/adapter_model.bin")) {
    fail("'{}' has adapter_model.bin only: save it as safetensors with PEFT", folder);
  }
  LoraAdapter adapter;
  try {
    adapter.config = parse_adapter_config(read_json_file(folder + "/adapter_config.json"));
  } catch (const Error& e) {
    fail("'{}': {}", folder, e.what());
  }
  const auto reader = open_safetensors(file);
  for (const TensorEntry& entry : reader->entries()) {
    check(entry.name.starts_with(kRoot), "{}: the key '{}' does not begin with {}", file,
          entry.name, kRoot);
    const std::string key = entry.name.substr(kRoot.size());
    if (const Part* part = part_of(key)) {
      const std::string path = key.substr(0, key.size() - std::string_view(part->ending).size());
      adapter.layers[path].*part->member = reader->read(entry.name);
      continue;
    }
    const std::string module = key.substr(0, key.rfind('.'));
    const auto& saved = adapter.config.modules_to_save;
    const bool known = std::any_of(saved.begin(), saved.end(), [&](const std::string& name) {
      return ends_with_module(module, name);
    });
    check(known, "{}: the tensor '{}' is neither LoRA's nor of modules_to_save", file, entry.name);
    adapter.saved[key] = reader->read(entry.name);
  }
  check(!adapter.layers.empty(), "{}: no lora_A and lora_B", file);
  for (auto& [path, weights] : adapter.layers) {
    check_layer(file, path, weights, adapter.config);
    weights.scale = adapter.config.scale_of(path);
  }
  return adapter;
}

NamedTensors adapter_tensors(const LoraAdapter& adapter) {
  NamedTensors out;
  const std::string root(kRoot);
  for (const auto& [path, weights] : adapter.layers) {
    for (const Part& part : kParts) {
      const Tensor& tensor = weights.*part.member;
      if (tensor.defined()) out.emplace_back(root + path + part.ending, tensor);
    }
  }
  for (const auto& [key, tensor] : adapter.saved) out.emplace_back(root + key, tensor);
  return out;
}

}  // namespace reft
