// LoRA adapters folded into the weights that they adapt.
#pragma once

#include "engine/peft_adapter.h"

namespace reft {

// W + scale · B A [out, in] in float32, each sum in double before it is rounded; with DoRA its rows
// are given the lengths of `magnitude`. W may be of any float or block format. Throws Error naming
// `path` where the shapes do not fit. Follows peft/tuners/lora/layer.py, merge.
Tensor merge_lora(const std::string& path, const Tensor& weight, const LoraWeights& lora);

}  // namespace reft
