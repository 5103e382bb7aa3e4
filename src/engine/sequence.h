// One output of a request on its way through the scheduler, and what a step does with it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/prefix_cache.h"
#include "engine/request.h"
#include "engine/sampling_state.h"

namespace reft {

using Clock = std::chrono::steady_clock;

struct RequestOutputs;  // output_processor.cpp
struct ServedAdapter;   // lora_slots.h

// A submitted request. Immutable once queued.
struct RequestState {
  std::string id;
  int64_t priority = 0;
  std::string cache_salt;                        // the adapter's number included
  std::shared_ptr<const ServedAdapter> adapter;  // null: none
  std::function<void(GenerationUpdate&&)> on_update;
  std::shared_ptr<const SamplingSetup> setup;
  std::vector<BlockHash>
      prompt_hashes;    // of the prompt's full blocks; empty without a prefix cache
  uint64_t number = 0;  // order of arrival
  Clock::time_point arrival;
  mutable std::shared_ptr<RequestOutputs> outputs;  // text state; the output thread's

  const SamplingParams& params() const { return setup->params; }
  const std::vector<int32_t>& prompt() const { return setup->prompt; }
};

enum class SequenceStatus : uint8_t { kWaiting, kRunning, kFinished };

// Owned by the scheduling thread, `sampling` excepted: the compute thread's.
struct Sequence {
  Sequence(std::shared_ptr<const RequestState> owner, int32_t output, uint64_t seed)
      : request(std::move(owner)), index(output), sampling(request->setup, seed) {}

  std::shared_ptr<const RequestState> request;
  int32_t index;
  SamplingState sampling;

  SequenceStatus status = SequenceStatus::kWaiting;
  std::vector<int32_t> tokens;  // prompt and known outputs; filled when first scheduled
  int64_t num_computed = 0;     // tokens whose keys and values are cached, launched steps included
  int32_t num_pending = 0;      // outputs of launched steps that are not known yet
  std::vector<int32_t> blocks;
  std::vector<BlockHash> hashes;  // of full blocks of known tokens
  int64_t num_registered = 0;     // blocks offered to the prefix cache
  bool planned = false;           // in the step that is being put together
  bool admitted_before = false;

  std::vector<SampleResult> prompt_scores;  // of prompt[1 …], when prompt_logprobs are asked for
  bool scores_prompt = false;               // until the first output

  int64_t num_cached_tokens = 0;  // of the prompt, found in the prefix cache on first admission
  Clock::time_point first_scheduled;
  Clock::time_point first_token;
  Clock::time_point last_token;

  int64_t num_prompt() const { return static_cast<int64_t>(request->prompt().size()); }
  // Tokens of the sequence, those included that a launched step is about to sample.
  int64_t num_total() const { return static_cast<int64_t>(tokens.size()) + num_pending; }
  int64_t num_outputs() const { return num_total() - num_prompt(); }
};

using SequencePtr = std::shared_ptr<Sequence>;

// What one step does for one sequence.
struct PlannedSequence {
  SequencePtr sequence;
  int64_t first = 0;  // position of its first token in this step
  int64_t num_tokens = 0;
  bool samples = false;        // the last token yields a new one
  bool from_previous = false;  // the last token is the one that the step before samples
  int64_t num_scored = 0;      // leading tokens whose successor in the prompt is scored

  // Outcome.
  bool dropped = false;  // it had ended in the step before: its token does not count
  SampleResult result;
  FinishReason finish = FinishReason::kNone;
  int32_t stop_id = -1;
  std::vector<SampleResult> scores;
};

// One step: filled by scheduler and batch builder, run by the runner, read back by the engine.
struct StepPlan {
  std::vector<PlannedSequence> sequences;
  int64_t num_tokens = 0;

  // The batch on the host; layouts as in nn/batch.h.
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;
  std::vector<int32_t> slots;
  std::vector<int32_t> adapters;  // −1 where a token has none
  std::vector<int32_t> query_start;
  std::vector<int32_t> context_len;
  std::vector<int32_t> block_table;  // rows of `table_width`
  std::vector<int32_t> logit_rows;
  int64_t table_width = 0;
  int64_t max_query_len = 0;
  int64_t max_context_len = 0;
  bool feeds = false;  // some of token_ids is −1 − r: row r of the tokens of the step before

  // Outcome.
  bool failed = false;
  bool cancelled = false;  // not run, because the step before failed
  std::string error;
  Clock::time_point done;

  void clear();
};

}  // namespace reft
