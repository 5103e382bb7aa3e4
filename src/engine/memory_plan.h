// How many KV blocks, and how long a sequence may get.
#pragma once

#include <cstdint>

#include "engine/engine.h"

namespace reft {

struct KvPlan {
  int64_t num_blocks = 0;
  int64_t max_model_len = 0;
};

// The facts that the plan follows from.
struct KvFacts {
  int64_t block_bytes = 0;      // of one block over all layers
  int64_t model_len = 0;        // the model's longest sequence; 0: unknown
  int64_t available_bytes = 0;  // memory that is free
  bool dedicated = false;       // a GPU's, all of it for the cache; else it is shared with others
  int64_t used_bytes = 0;       // of a GPU: by weights, steps and other processes
  int64_t total_bytes = 0;      // of a GPU
};

// num_gpu_blocks_override blocks; else as many as kv_cache_memory_bytes hold; else what a quarter
// of the free memory, but at most 4 GiB, holds, and no more than max_num_seqs sequences of
// max_model_len tokens can use. A max_model_len of 0 becomes the model's own, lowered to what the
// blocks hold; with num_gpu_blocks_override a given one is lowered too. Throws Error with needed,
// available and a fitting flag value. Dedicated memory is used whole.
KvPlan plan_kv_cache(const EngineOptions& options, const KvFacts& facts);

// Memory that this process may still take: MemAvailable of /proc/meminfo, or what the cgroup leaves
// if that is less.
int64_t available_memory();

// Fills in what --gpu_memory_utilization leaves of a GPU beside what is in use, by other processes
// too, and beside `reserve` bytes. Throws Error naming the flag when it is out of range.
void measure_device(Device device, const EngineOptions& options, int64_t reserve, KvFacts& facts);

// Throws Error naming the flag.
void check_options(const EngineOptions& options);

}  // namespace reft
