#include "train/lora.h"

#include <algorithm>
#include <set>

namespace reft {
namespace {

constexpr std::string_view kBlocks = "model.layers.";
constexpr const char* kEmbedding = "model.embed_tokens";
constexpr const char* kHead = "lm_head";

struct AdaptedLinear {
  Linear* linear;
  std::string prefix;
  std::string path(size_t part) const {
    const std::string& name = linear->parts()[part].name;
    return name.empty() ? prefix : prefix.empty() ? name : prefix + "." + name;
  }
};

std::vector<AdaptedLinear> linears_of(CausalLmModel& model) {
  std::vector<AdaptedLinear> result;
  model.visit_modules([&](Module& module, const std::string& prefix) {
    if (auto* linear = dynamic_cast<Linear*>(&module)) result.push_back({linear, prefix});
  });
  return result;
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }
std::string module_of(const std::string& parameter) {
  return parameter.substr(0, parameter.rfind('.'));
}
bool contains(const std::vector<std::string>& list, const std::string& value) {
  return std::ranges::find(list, value) != list.end();
}
bool has_part(const std::string& path, const std::string& part) {
  return ("." + path + ".").find("." + part + ".") != std::string::npos;
}

bool has_tied_head(CausalLmModel& model) {
  bool head = false;
  model.visit([&](const std::string& name, Parameter&) { head |= module_of(name) == kHead; });
  return !head;
}

// --lora_target as names of modules: what PEFT stores.
std::vector<std::string> target_names(CausalLmModel& model,
                                      const std::vector<std::string>& wanted) {
  std::set<std::string> known;
  std::vector<std::string> paths;
  for (const AdaptedLinear& l : linears_of(model)) {
    for (size_t i = 0; i < l.linear->parts().size(); ++i) {
      if (!l.path(i).starts_with(kBlocks)) continue;
      paths.push_back(l.path(i));
      known.insert(last_part(l.path(i)));
    }
  }
  if (wanted.empty() || contains(wanted, "all") || contains(wanted, "all-linear"))
    return {known.begin(), known.end()};
  for (const std::string& name : wanted) {
    check(name != kHead && name != last_part(kEmbedding),
          "--lora_target: '{}' has no adapter; --additional_target {} trains it whole", name, name);
    const bool found = std::ranges::any_of(
        paths, [&](const std::string& path) { return path == name || path.ends_with("." + name); });
    check(found, "--lora_target: there is no linear module '{}'; there are {}", name,
          fmt::join(known, ", "));
  }
  return wanted;
}

// --additional_target as whole paths, so that none is the end of another one's.
std::vector<std::string> saved_modules(CausalLmModel& model, const LoraConfig& config,
                                       const std::vector<std::string>& wanted) {
  std::vector<std::string> result;
  const bool tied = has_tied_head(model);
  for (const std::string& name : wanted) {
    if (tied && (name == kHead || name == last_part(kEmbedding))) {
      // One matrix under two names; PEFT gives each module a copy.
      for (const char* path : {kEmbedding, kHead})
        if (!contains(result, path)) result.emplace_back(path);
      continue;
    }
    bool found = false;
    std::set<std::string> known;
    model.visit([&](const std::string& parameter, Parameter&) {
      const std::string path = module_of(parameter);
      known.insert(last_part(path));
      if (!has_part(path, name)) return;
      check(!path.starts_with(kBlocks) || !config.is_target(path),
            "--additional_target: '{}' is in --lora_target too", path);
      found = true;
      if (!contains(result, path)) result.push_back(path);
    });
    check(found, "--additional_target: there is no module '{}'; there are {}", name,
          fmt::join(known, ", "));
  }
  return result;
}

// The module's path and which of its tensors a parameter's name means.
Tensor& tensor_of(LoraAdapter& adapter, const std::string& name) {
  const auto layer = [&](std::string_view ending) -> LoraWeights& {
    return adapter.layers[name.substr(0, name.size() - ending.size())];
  };
  if (name.ends_with(".lora_A.weight")) return layer(".lora_A.weight").a;
  if (name.ends_with(".lora_B.weight")) return layer(".lora_B.weight").b;
  return layer(".lora_magnitude_vector").magnitude;
}

void assign(const Tensor& to, const Tensor& from, const std::string& name) {
  check(from.defined(), "the adapter has no '{}'", name);
  check(from.numel() == to.numel() && from.size(0) == to.size(0),
        "the adapter's '{}' is {}, the model needs {}", name, from, to);
  to.copy_from(from.to(to.dtype()).contiguous().reshape(to.shape()));
}

}  // namespace

DType quantized_format(int64_t bits) {
  check(bits == 4 || bits == 8, "--quantization_bit must be 4 or 8, got {}", bits);
  return bits == 4 ? DType::kQ4_1 : DType::kQ8_0;
}

LoraConfig choose_lora(CausalLmModel& model, const LoraOptions& o, const std::string& base_model) {
  check(o.rank > 0, "--lora_rank must be above 0, got {}", o.rank);
  check(o.alpha >= 0, "--lora_alpha must not be negative, got {}", o.alpha);
  check(o.dropout >= 0 && o.dropout < 1, "--lora_dropout must be at least 0 and below 1, got {}",
        o.dropout);
  for (const int64_t layer : o.layers) {
    check(layer >= 0 && layer < model.info().num_layers,
          "--lora_layers: there is no layer {}, the model has {}", layer, model.info().num_layers);
  }
  LoraConfig config;
  config.rank = o.rank;
  config.alpha = o.alpha > 0 ? o.alpha : static_cast<double>(2 * o.rank);
  config.dropout = o.dropout;
  config.target_modules = target_names(model, o.targets);
  config.layers_to_transform = o.layers;
  config.use_rslora = o.use_rslora;
  config.use_dora = o.use_dora;
  config.base_model = base_model;
  config.modules_to_save = saved_modules(model, config, o.additional_targets);
  return config;
}

std::shared_ptr<LoraDropout> attach_lora(CausalLmModel& model, const LoraConfig& config,
                                         uint64_t seed) {
  auto dropout = std::make_shared<LoraDropout>();
  dropout->p = static_cast<float>(config.dropout);
  dropout->seed = seed;
  uint64_t stream = 0;
  for (const AdaptedLinear& l : linears_of(model)) {
    std::vector<Lora::Part> parts;
    int64_t begin = 0;
    for (size_t i = 0; i < l.linear->parts().size(); ++i) {
      const Linear::Part& part = l.linear->parts()[i];
      const std::string path = l.path(i);
      if (config.is_target(path)) {
        check(path.starts_with(kBlocks), "'{}' cannot have an adapter here", path);
        parts.push_back({.name = part.name,
                         .begin = begin,
                         .end = begin + part.out_features,
                         .rank = config.rank_of(path),
                         .scale = static_cast<float>(config.scale_of(path)),
                         .dora = config.use_dora});
      }
      begin += part.out_features;
    }
    ++stream;
    if (parts.empty()) continue;
    l.linear->set_lora(std::make_unique<Lora>(l.linear, l.linear->in_features(),
                                              l.linear->out_features(), std::move(parts), dropout,
                                              stream));
  }
  return dropout;
}

void initialize_lora(CausalLmModel& model, Device device, uint64_t seed) {
  for (const AdaptedLinear& l : linears_of(model)) {
    Lora* lora = l.linear->lora();
    if (lora == nullptr) continue;
    lora->initialize(device, seed, lora->adds_bias() ? l.linear->squared_row_norms() : Tensor());
  }
}

void load_lora(CausalLmModel& model, const LoraAdapter& adapter) {
  LoraAdapter rest = adapter;
  const bool tied = has_tied_head(model);
  model.visit([&](const std::string& name, Parameter& p) {
    if (is_lora_parameter(name)) {
      Tensor& value = tensor_of(rest, name);
      assign(p.value, value, name);
      value = {};
    } else if (is_lora_trainable(name, adapter.config)) {
      const auto it = rest.saved.find(name);
      check(it != rest.saved.end(), "the adapter has no '{}'", name);
      assign(p.value, it->second, name);
      rest.saved.erase(it);
    }
  });
  if (tied && is_lora_trainable(std::string(kEmbedding) + ".weight", adapter.config))
    rest.saved.erase(std::string(kHead) + ".weight");
  for (const auto& [path, w] : rest.layers) {
    check(!w.a.defined() && !w.b.defined(), "the adapter's '{}' has no place in the model", path);
  }
  check(rest.saved.empty(), "the adapter's '{}' has no place in the model",
        rest.saved.empty() ? "" : rest.saved.begin()->first);
}

LoraAdapter lora_of(CausalLmModel& model, const LoraConfig& config) {
  LoraAdapter adapter{.config = config};
  const bool tied = has_tied_head(model);
  model.visit([&](const std::string& name, Parameter& p) {
    if (is_lora_parameter(name)) {
      tensor_of(adapter, name) = p.value;
    } else if (is_lora_trainable(name, config)) {
      adapter.saved[name] = p.value;
    }
  });
  const std::string embedding = std::string(kEmbedding) + ".weight";
  if (tied && contains(config.modules_to_save, kHead) && adapter.saved.contains(embedding))
    adapter.saved[std::string(kHead) + ".weight"] = adapter.saved.at(embedding);
  return adapter;
}

bool is_lora_trainable(const std::string& name, const LoraConfig& config) {
  if (is_lora_parameter(name)) return true;
  const std::string module = module_of(name);
  return std::ranges::any_of(config.modules_to_save, [&](const std::string& saved) {
    return module == saved || module.ends_with("." + saved);
  });
}

}  // namespace reft
