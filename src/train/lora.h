// LoRA in a training run: which modules get an adapter, its values from the start, from PEFT or
// from a checkpoint, and what is saved of it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/peft_adapter.h"
#include "models/model.h"
#include "nn/lora.h"

namespace reft {

// Names and defaults as LLaMA-Factory's.
struct LoraOptions {
  int64_t rank = 8;
  double alpha = 0;  // 0: 2 · rank
  double dropout = 0;
  std::vector<std::string> targets = {"all"};  // ends of paths; all: every linear of the blocks
  std::vector<int64_t> layers;                 // of these blocks alone; empty: all
  bool use_rslora = false;
  bool use_dora = false;
  double loraplus_lr_ratio = 0;                 // B learns so many times as fast; 0: as A
  std::vector<std::string> additional_targets;  // modules trained whole, and saved
  std::string adapter;           // folder of an adapter to go on from, whose settings count
  int64_t quantization_bit = 0;  // 4 or 8: a plain base becomes Q4_1 or Q8_0 at load
};

// Settings of a new adapter for `model`, which may be without weights: targets as lists of names.
// Throws Error naming the flag and what there is.
LoraConfig choose_lora(CausalLmModel& model, const LoraOptions& options,
                       const std::string& base_model);
// The block format of --quantization_bit. Throws Error naming it.
DType quantized_format(int64_t bits);

// Adds adapters, without values, to all linears that `config` names. Throws Error where there is
// none, or a module that cannot have one. Returns what their dropout is ruled by.
std::shared_ptr<LoraDropout> attach_lora(CausalLmModel& model, const LoraConfig& config,
                                         uint64_t seed);
// Gives them the values that a new adapter begins with. `model` is loaded.
void initialize_lora(CausalLmModel& model, Device device, uint64_t seed);
// Then those of an adapter, and its whole modules. Throws Error naming what does not fit.
void load_lora(CausalLmModel& model, const LoraAdapter& adapter);
// What is trained, as it is now: views.
LoraAdapter lora_of(CausalLmModel& model, const LoraConfig& config);

// Whether a parameter is trained: an adapter's, or one of config.modules_to_save.
// (Where modules_to_save has a tied head, it has the embedding too.)
bool is_lora_trainable(const std::string& name, const LoraConfig& config);

}  // namespace reft
