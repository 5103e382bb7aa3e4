// LoRA adapters as PEFT stores them: a folder with adapter_config.json and
// adapter_model.safetensors. Reading and writing only; who applies them is told the scale. Source:
// huggingface/peft, tuners/lora/config.py and utils/save_and_load.py.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tensor/safetensors_writer.h"

namespace reft {

struct LoraConfig {
  int64_t rank = 8;
  double alpha = 16;
  double dropout = 0;
  // Modules that are adapted: names ("q_proj", "mlp.up_proj": the ends of paths). PEFT also knows a
  // regular expression for whole paths and "all-linear"; see `target_pattern`.
  std::vector<std::string> target_modules;
  std::string target_pattern;                // used when target_modules is empty
  std::vector<int64_t> layers_to_transform;  // empty: all
  std::vector<std::string> modules_to_save;  // trained and stored whole: "lm_head"
  bool use_rslora = false;                   // scale alpha / sqrt(rank)
  bool use_dora = false;
  // Other ranks and alphas by the end of a path, or a regular expression for it; the first counts.
  std::vector<std::pair<std::string, int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  std::string base_model;

  // Of the module at `path` ("model.layers.0.self_attn.q_proj"). Throws Error on a bad regular
  // expression.
  int64_t rank_of(const std::string& path) const;
  // alpha / rank, or alpha / sqrt(rank).
  double scale_of(const std::string& path) const;
  // Whether a linear module is adapted. "all-linear" leaves lm_head out.
  bool is_target(const std::string& path) const;
};

// Throws Error naming the key: not LoRA, or something that would change the result and is not done
// here (biases, PiSSA and other initialisations that change the base, fan_in_fan_out, replicated
// layers, adapted parameters).
LoraConfig parse_adapter_config(const Json& json);
Json adapter_config_json(const LoraConfig& config);

// y = base(x) + scale · B A x; with DoRA the rows of W + scale B A are given the lengths of
// `magnitude`.
struct LoraWeights {
  Tensor a;          // [rank, in]
  Tensor b;          // [out, rank]
  Tensor magnitude;  // [out], only with DoRA
  double scale = 1;
};

struct LoraAdapter {
  LoraConfig config;
  std::map<std::string, LoraWeights> layers;  // by module path
  std::map<std::string, Tensor> saved;        // of modules_to_save, by parameter: "lm_head.weight"
};

// Reads an adapter folder; tensors are views of the mapped file. Throws Error naming file, key or
// tensor.
LoraAdapter read_adapter(const std::string& folder);
// The tensors under PEFT's keys ("base_model.model.<path>.lora_A.weight"), to be written as
// adapter_model.safetensors beside adapter_config_json().
NamedTensors adapter_tensors(const LoraAdapter& adapter);

}  // namespace reft
