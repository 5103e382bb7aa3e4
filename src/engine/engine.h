// The serving engine: continuous batching over a paged KV cache.
//
// Threads: submit, abort and stats may be called from any thread. One scheduling thread owns
// scheduler, block pool and prefix cache; one compute thread runs the model; one output thread
// detokenises, finds stop strings and calls on_update. With nothing to do all three sleep. An
// exception in a step ends the requests of that step with kError, frees their blocks and leaves the
// engine running.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/lora_slots.h"
#include "engine/metrics.h"
#include "engine/request.h"
#include "models/model.h"
#include "text/tokenizer.h"

namespace reft {

// Names as vLLM's flags.
struct EngineOptions {
  int64_t max_model_len =
      0;  // 0: the model's own, lowered until one sequence fits into the KV memory
  int64_t max_num_seqs = 256;             // sequences in one step
  int64_t max_num_batched_tokens = 2048;  // token budget of one step
  int64_t block_size = 16;                // tokens of a KV block
  int64_t num_gpu_blocks_override = 0;    // KV blocks on any device; 0: from memory
  int64_t kv_cache_memory_bytes = 0;      // 0: automatic
  double gpu_memory_utilization = 0.92;   // of a GPU's memory; on the CPU the automatic size is a
                                          // quarter of what is free, at most 4 GiB
  std::string kv_cache_dtype =
      "auto";                  // auto (the compute dtype) | float32 | float16 | bfloat16 | fp8
  bool enforce_eager = false;  // no recorded decode steps (they exist on GPUs only)
  // Whether a step is queued before the tokens that it continues are known (runner.h); unset: on
  // GPUs. On the CPU it only costs time: for tests.
  std::optional<bool> async_scheduling;
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;
  std::string scheduling_policy = "fcfs";  // fcfs | priority
  int64_t max_queued_requests =
      0;                  // waiting requests beyond which submit is refused with 503; 0: no limit
  uint64_t seed = 0;      // for requests without one
  int64_t max_loras = 0;  // adapters that can be loaded at a time; 0: none
  int64_t max_lora_rank = 16;  // of these
};

class Engine {
 public:
  // `tokenizer` may be null: then stop strings and text are refused and updates carry ids only.
  // Throws Error saying what is needed, what is there and which flag value fits when the KV memory
  // does not hold one sequence of max_model_len tokens, and on options out of range.
  Engine(LoadedModel model, std::shared_ptr<const Tokenizer> tokenizer, EngineOptions options);
  ~Engine();  // aborts what runs

  // Makes the adapter in `folder` one that requests can name; any thread, while others run. Throws
  // Error: see LoraSlots::load, and without max_loras.
  void load_adapter(const std::string& name, const std::string& folder);
  // False when there is none of that name. Requests that run keep it.
  bool unload_adapter(const std::string& name);
  std::vector<ServedAdapterPtr> adapters() const;
  ServedAdapterPtr find_adapter(const std::string& name) const;  // null: none

  // Throws RequestError: an adapter that is not loaded (404), invalid parameters, an empty prompt,
  // ids outside the vocabulary, a prompt longer than the context (param "prompt", the message with
  // both numbers), a full queue (503).
  void submit(GenerationRequest request);
  // Ends a request with kAbort and frees its blocks at once. Unknown ids are ignored.
  void abort(const std::string& request_id);
  // Stops taking requests and waits until the running ones ended or `timeout_ms` passed, then
  // aborts them.
  void drain(int64_t timeout_ms);

  int64_t max_model_len() const;
  int64_t vocab_size() const;
  const std::vector<int32_t>& eos_token_ids()
      const;  // generation_config, config and tokenizer together
  const LoadedModel& model() const;
  const EngineOptions& options() const;
  int64_t num_kv_blocks() const;
  // A consistent copy.
  EngineStats stats() const;
  // False when the engine cannot run further steps; `reason` then tells why.
  bool healthy(std::string* reason = nullptr) const;
  // Drops every prefix that no request uses.
  void reset_prefix_cache();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace reft
