// Checkpoints that keep a layer's experts in one tensor, read as one matrix for each expert, which
// is how most are published and how the families name them.
#pragma once

#include <memory>

#include "tensor/checkpoint_reader.h"

namespace reft {

// Where the reader has such tensors:
//   <p>.experts.{gate,up,down}_proj.weight [E, N, K]   (GGUF)
//   <p>.experts.gate_up_proj [E, 2 F, D], <p>.experts.down_proj [E, D, F]   (transformers 5.x)
// a reader that has <p>.experts.<e>.{gate,up,down}_proj.weight in their place, views of the same
// memory; else the reader itself. Throws Error on a shape that cannot be split.
std::unique_ptr<CheckpointReader> split_experts(std::unique_ptr<CheckpointReader> reader);

// GPT-OSS: where the reader has <p>_blocks [E, N, K / 32, 16] and <p>_scales [E, N, K / 32], both
// uint8, a reader that has <p> [E, N, K] in MXFP4 in their place; else the reader itself. Throws
// Error on shapes that do not go together.
std::unique_ptr<CheckpointReader> join_mxfp4(std::unique_ptr<CheckpointReader> reader);

// GPT-OSS in GGUF: where the reader has <p>.experts.{gate,up,down}_proj.{weight,bias} of all
// experts and <p>.sinks.weight, a reader that has <p>.experts.gate_up_proj [E, 2 F, D], gate and up
// in turns, down_proj, their biases and <p>.sinks in their place; else the reader itself. Throws
// Error on shapes that do not go together.
std::unique_ptr<CheckpointReader> join_gate_up(std::unique_ptr<CheckpointReader> reader);

}  // namespace reft
