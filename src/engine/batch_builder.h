// Writes the arrays of a step from the scheduler's decisions.
#pragma once

#include "engine/sequence.h"
#include "nn/batch.h"

namespace reft {

// Fills the host arrays of `plan`. A token that the step before has yet to sample is written as 0.
// Scheduling thread.
void build_batch(StepPlan& plan, int64_t block_size);

// Writes the ids that the step before sampled and takes out the sequences that ended there. Of a
// token that is still pending it writes −1 − its row. Compute thread.
void resolve_batch(StepPlan& plan);

// The arrays as tensors on `device`. On the CPU they borrow the plan's memory.
Batch make_batch(StepPlan& plan, Device device);

}  // namespace reft
