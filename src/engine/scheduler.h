// Decides which tokens of which sequences the next step computes.
//
// It knows tokens, not phases: a sequence has computed and total tokens, and a step hands out a
// budget of tokens. Order: sequences with one token to compute (decode), then running ones with
// more (chunks of prompts), then waiting ones in queue order: by arrival (fcfs), or by priority and
// then arrival. A running sequence that gets no KV block takes them from the running one that is
// last in queue order: that one loses its blocks, keeps its tokens, and waits to be computed again
// (preemption by recompute). A waiting sequence starts when blocks for all its known tokens are
// there, the prefix cache's included. Blocks of launched steps count as written, because steps run
// in order.
//
// Owner: the scheduling thread.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "engine/block_pool.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"

namespace reft {

struct SchedulerOptions {
  int64_t block_size = 16;
  int64_t max_num_seqs = 256;
  int64_t max_num_batched_tokens = 2048;
  int64_t max_scored_tokens =
      512;  // of a sequence in a step while its prompt is scored (each needs a row of logits)
  bool chunked_prefill = true;
  bool by_priority = false;
};

struct PrefixCounts {
  uint64_t queries = 0;  // tokens looked up
  uint64_t hits = 0;     // tokens found
};

class Scheduler {
 public:
  // `cache` and `hasher` are null without prefix caching.
  Scheduler(SchedulerOptions options, BlockPool& pool, PrefixCache* cache,
            const BlockHasher* hasher);

  void add(SequencePtr sequence);
  // Puts the next step together. False when nothing can run now.
  bool schedule(StepPlan& plan);
  // A launched step sampled `token` for this sequence. `last`: it ends the sequence, so the step
  // that was to compute it may not run: what that one would have written does not count.
  void append(Sequence& sequence, int32_t token, bool last = false);
  // Takes the sequence out and frees its blocks.
  void finish(Sequence& sequence);
  // A launched step did not run: what it was to write for the sequence from `first` on is not
  // there.
  void forget_blocks(Sequence& sequence, int64_t first);
  // Frees a running sequence's blocks and queues it to be computed again.
  void preempt(Sequence& sequence);

  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  // Every sequence that has not ended, running ones first.
  std::vector<SequencePtr> all() const;
  uint64_t num_preemptions() const { return num_preemptions_; }
  const PrefixCounts& prefix_counts() const { return prefix_counts_; }
  // Throws Error unless the references of all blocks equal the tables. For tests.
  void check_integrity() const;

 private:
  struct QueueOrder {
    bool by_priority;
    bool operator()(const SequencePtr& a, const SequencePtr& b) const;
  };

  int64_t blocks_for(int64_t tokens) const {
    return (tokens + options_.block_size - 1) / options_.block_size;
  }
  void schedule_running(StepPlan& plan, bool decode);
  void schedule_waiting(StepPlan& plan);
  bool admit(const SequencePtr& sequence, StepPlan& plan);
  // Blocks for `num_tokens` tokens in all; preempts others. False when the sequence itself had to
  // go.
  bool grow(const SequencePtr& sequence, int64_t num_tokens, StepPlan& plan);
  void unplan(Sequence& sequence, StepPlan& plan);
  void put_into(StepPlan& plan, const SequencePtr& sequence, int64_t num_tokens);
  void free_blocks(Sequence& sequence);
  // Offers the full blocks whose tokens are known and scheduled to the prefix cache.
  void register_blocks(Sequence& sequence);

  SchedulerOptions options_;
  BlockPool* pool_;
  PrefixCache* cache_;
  const BlockHasher* hasher_;
  std::vector<SequencePtr> running_;
  std::set<SequencePtr, QueueOrder> waiting_;
  std::vector<SequencePtr> scratch_;
  int64_t budget_ = 0;
  bool preempted_ = false;  // in this step
  uint64_t num_preemptions_ = 0;
  PrefixCounts prefix_counts_;
};

}  // namespace reft
