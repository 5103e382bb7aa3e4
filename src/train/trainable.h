// Which parameters a run trains, by the names of Module::visit.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "models/model.h"

namespace reft {

// kQlora: LoRA on a quantised base.
enum class FineTuning { kFull, kFreeze, kLora, kQlora };
// "full", "freeze", "lora", "qlora". Throws Error naming --fine_tuning_type.
FineTuning parse_fine_tuning(std::string_view name);
const char* fine_tuning_name(FineTuning type);
inline bool is_lora(FineTuning type) {
  return type == FineTuning::kLora || type == FineTuning::kQlora;
}

// What `freeze` trains; all else stays as it is, embedding and head included.
struct FreezeOptions {
  int64_t layers = 2;                      // the last n blocks; negative: the first n
  std::vector<std::string> modules;        // of those blocks, "self_attn", "mlp" …; empty: all
  std::vector<std::string> extra_modules;  // outside of the blocks: "embed_tokens", "lm_head" …
};

// For full and freeze. Follows LLaMA-Factory's freeze tuning. `model` may be without weights.
// Throws Error naming the flag whose value fits no parameter.
std::function<bool(const std::string& name)> choose_trainable(CausalLmModel& model, FineTuning type,
                                                              const FreezeOptions& freeze);

}  // namespace reft
