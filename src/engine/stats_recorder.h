// Keeps the engine's counters, and writes the line every ten seconds while there is something to
// tell.
//
// Written by the scheduling thread; copy() may be called by any.
#pragma once

#include <mutex>
#include <optional>

#include "engine/metrics.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace reft {

class StatsRecorder {
 public:
  explicit StatsRecorder(int64_t num_kv_blocks);

  void started(const Sequence& sequence, Clock::time_point now);
  void step(const StepPlan& plan);
  // A step sampled a token for `sequence`; updates its time stamps.
  void token(Sequence& sequence, Clock::time_point now);
  // `sequence.tokens` holds the last token.
  void finished(const Sequence& sequence, FinishReason reason, Clock::time_point now);

  struct Gauges {
    int64_t running = 0;
    int64_t waiting = 0;
    int64_t free_blocks = 0;
    uint64_t preemptions = 0;
    PrefixCounts prefix;
  };
  // Takes the state after a scheduling round, and writes the line when it is due.
  void gauges(const Gauges& gauges, Clock::time_point now);
  // When the next line is due; empty when nothing happened since the last.
  std::optional<Clock::time_point> next_report() const;

  EngineStats copy() const;

 private:
  void report(Clock::time_point now);

  mutable std::mutex mutex_;
  EngineStats stats_;

  // Since the last line; the scheduling thread's.
  std::optional<Clock::time_point> due_;
  Clock::time_point since_;
  uint64_t prompt_tokens_ = 0;
  uint64_t generation_tokens_ = 0;
  uint64_t last_prompt_tokens_ = 0;
  uint64_t last_generation_tokens_ = 0;
  uint64_t last_queries_ = 0;
  uint64_t last_hits_ = 0;
};

}  // namespace reft
