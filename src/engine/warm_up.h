// The largest steps, run once before the KV cache is allocated.
#pragma once

#include "engine/engine.h"

namespace reft {

// Runs the model on as many tokens as a step may have, once as one sequence and once as
// max_num_seqs of them with a sample each, and waits for it: what steps take from the device's
// memory is then taken (and kept for them), libraries are set up, and what is left is free for the
// KV cache. Returns the bytes that it took. `model_len`: the model's longest sequence; 0: unknown.
int64_t warm_up(CausalLmModel& model, Device device, const EngineOptions& options, DType kv_dtype,
                int64_t model_len);

}  // namespace reft
