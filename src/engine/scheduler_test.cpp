#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>

#include "engine/batch_builder.h"

namespace reft {
namespace {

struct Fixture {
  explicit Fixture(SchedulerOptions options, int64_t num_blocks, bool caching = true)
      : hasher(options.block_size),
        pool(num_blocks, [this](int32_t b) { cache.evicted(b); }),
        cache(pool),
        scheduler(options, pool, caching ? &cache : nullptr, caching ? &hasher : nullptr) {}

  SequencePtr make(std::vector<int32_t> prompt, int64_t max_tokens, int64_t priority = 0) {
    auto request = std::make_shared<RequestState>();
    SamplingParams params;
    params.max_tokens = max_tokens;
    request->setup = std::make_shared<const SamplingSetup>(params, std::move(prompt),
                                                           std::vector<int32_t>(), nullptr, 1000);
    hasher.extend("", request->prompt(), request->prompt_hashes);
    request->priority = priority;
    request->number = next_number++;
    auto sequence = std::make_shared<Sequence>(request, 0, 0);
    scheduler.add(sequence);
    return sequence;
  }
  // The step was run and sampled 7 everywhere.
  void complete(const StepPlan& plan) {
    for (const PlannedSequence& p : plan.sequences) {
      if (!p.samples || p.sequence->status == SequenceStatus::kFinished) continue;
      scheduler.append(*p.sequence, 7);
      const auto outputs =
          static_cast<int64_t>(p.sequence->tokens.size()) - p.sequence->num_prompt();
      if (outputs >= p.sequence->request->setup->max_tokens) scheduler.finish(*p.sequence);
    }
  }

  BlockHasher hasher;
  BlockPool pool;
  PrefixCache cache;
  Scheduler scheduler;
  uint64_t next_number = 0;
};

std::vector<int32_t> prompt(int32_t length, int32_t start = 0) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(start + i);
  return ids;
}

TEST(Scheduler, SplitsPromptsByTheBudgetAndDecodesFirst) {
  Fixture f({.block_size = 4, .max_num_seqs = 8, .max_num_batched_tokens = 10}, 100);
  const SequencePtr a = f.make(prompt(6), 5);
  const SequencePtr b = f.make(prompt(20, 100), 5);
  StepPlan plan;
  ASSERT_TRUE(f.scheduler.schedule(plan));
  ASSERT_EQ(plan.sequences.size(), 2U);
  EXPECT_EQ(plan.sequences[0].num_tokens, 6);
  EXPECT_TRUE(plan.sequences[0].samples);
  EXPECT_EQ(plan.sequences[1].num_tokens, 4);
  EXPECT_FALSE(plan.sequences[1].samples);

  StepPlan next;  // before the first step is known
  ASSERT_TRUE(f.scheduler.schedule(next));
  ASSERT_EQ(next.sequences.size(), 2U);
  EXPECT_EQ(next.sequences[0].sequence, a);
  EXPECT_TRUE(next.sequences[0].from_previous);
  EXPECT_EQ(next.sequences[0].num_tokens, 1);
  EXPECT_EQ(next.sequences[1].sequence, b);
  EXPECT_EQ(next.sequences[1].num_tokens, 9);
  EXPECT_EQ(next.num_tokens, 10);
  f.complete(plan);
  f.complete(next);
  f.scheduler.check_integrity();
}

TEST(Scheduler, WholePromptsWaitForARoomyStepWithoutChunks) {
  Fixture f(
      {.block_size = 4, .max_num_seqs = 8, .max_num_batched_tokens = 10, .chunked_prefill = false},
      100);
  f.make(prompt(6), 5);
  f.make(prompt(8, 100), 5);
  StepPlan plan;
  ASSERT_TRUE(f.scheduler.schedule(plan));
  ASSERT_EQ(plan.sequences.size(), 1U);
  f.complete(plan);
  ASSERT_TRUE(f.scheduler.schedule(plan));
  ASSERT_EQ(plan.sequences.size(), 2U);
  EXPECT_EQ(plan.sequences[1].num_tokens, 8);
}

TEST(Scheduler, SharesAPrefixWithinOneStepButAlwaysComputesTheLastToken) {
  Fixture f({.block_size = 4, .max_num_seqs = 8, .max_num_batched_tokens = 100}, 100);
  f.make(prompt(8), 5);
  const SequencePtr b = f.make(prompt(8), 5);
  const SequencePtr c = f.make(prompt(11), 5);
  StepPlan plan;
  ASSERT_TRUE(f.scheduler.schedule(plan));
  ASSERT_EQ(plan.sequences.size(), 3U);
  EXPECT_EQ(plan.sequences[1].first, 4);  // not 8: the last token's logits are wanted
  EXPECT_EQ(plan.sequences[1].num_tokens, 4);
  EXPECT_EQ(plan.sequences[2].first, 8);
  EXPECT_EQ(c->num_cached_tokens, 8);
  EXPECT_EQ(b->blocks[0], c->blocks[0]);
  EXPECT_NE(b->blocks[1], c->blocks[1]);
  f.scheduler.check_integrity();
}

TEST(Scheduler, PreemptsTheLatestArrivalAndPutsItFirstInTheQueue) {
  Fixture f({.block_size = 2, .max_num_seqs = 8, .max_num_batched_tokens = 100}, 7,
            /*caching=*/false);
  const SequencePtr a = f.make(prompt(4), 8);
  const SequencePtr b = f.make(prompt(4, 50), 8);
  StepPlan plan;
  bool preempted = false;
  for (int i = 0; i < 6 && !preempted; ++i) {
    ASSERT_TRUE(f.scheduler.schedule(plan));
    f.scheduler.check_integrity();
    preempted = b->status == SequenceStatus::kWaiting;
    f.complete(plan);
  }
  ASSERT_TRUE(preempted);
  EXPECT_EQ(a->status, SequenceStatus::kRunning);
  EXPECT_EQ(f.scheduler.num_preemptions(), 1U);
  const SequencePtr newcomer = f.make(prompt(2, 90), 2);
  while (f.scheduler.schedule(plan)) {
    EXPECT_TRUE(newcomer->status == SequenceStatus::kWaiting ||
                b->status != SequenceStatus::kWaiting);
    f.complete(plan);
  }
  EXPECT_EQ(b->tokens.size(), 12U);
  EXPECT_EQ(f.pool.num_free(), 7);
}

TEST(Scheduler, PriorityDecidesWhoStartsAndWhoGoes) {
  Fixture f(
      {.block_size = 2, .max_num_seqs = 2, .max_num_batched_tokens = 100, .by_priority = true},
      100);
  const SequencePtr low = f.make(prompt(3), 3, 5);
  const SequencePtr lowest = f.make(prompt(3, 20), 3, 9);
  const SequencePtr high = f.make(prompt(3, 40), 3, -1);
  StepPlan plan;
  ASSERT_TRUE(f.scheduler.schedule(plan));
  EXPECT_EQ(high->status, SequenceStatus::kRunning);
  EXPECT_EQ(low->status, SequenceStatus::kRunning);
  EXPECT_EQ(lowest->status, SequenceStatus::kWaiting);
}

TEST(Scheduler, ForgetsBlocksThatWereNeverWritten) {
  Fixture f({.block_size = 4, .max_num_seqs = 8, .max_num_batched_tokens = 100}, 100);
  const SequencePtr a = f.make(prompt(12), 5);
  StepPlan plan;
  ASSERT_TRUE(f.scheduler.schedule(plan));
  EXPECT_EQ(f.cache.size(), 3);
  f.scheduler.forget_blocks(*a, plan.sequences[0].first);
  f.scheduler.finish(*a);
  EXPECT_EQ(f.cache.size(), 0);
  f.scheduler.check_integrity();
}

TEST(BatchBuilder, WritesPositionsSlotsAndTables) {
  Fixture f({.block_size = 4, .max_num_seqs = 8, .max_num_batched_tokens = 8}, 100,
            /*caching=*/false);
  const SequencePtr a = f.make(prompt(3), 5);
  const SequencePtr b = f.make(prompt(9, 100), 5);
  StepPlan plan;
  ASSERT_TRUE(f.scheduler.schedule(plan));
  build_batch(plan, 4);
  EXPECT_EQ(plan.token_ids, (std::vector<int32_t>{0, 1, 2, 100, 101, 102, 103, 104}));
  EXPECT_EQ(plan.positions, (std::vector<int32_t>{0, 1, 2, 0, 1, 2, 3, 4}));
  EXPECT_EQ(plan.query_start, (std::vector<int32_t>{0, 3, 8}));
  EXPECT_EQ(plan.context_len, (std::vector<int32_t>{3, 5}));
  EXPECT_EQ(plan.logit_rows, (std::vector<int32_t>{2}));  // b's prompt is not complete
  EXPECT_EQ(plan.table_width, 2);
  EXPECT_EQ(plan.block_table[0], a->blocks[0]);
  EXPECT_EQ(plan.block_table[2], b->blocks[0]);
  EXPECT_EQ(plan.block_table[3], b->blocks[1]);
  EXPECT_EQ(plan.slots[7], b->blocks[1] * 4);
  EXPECT_EQ(plan.max_query_len, 5);
  EXPECT_EQ(plan.max_context_len, 5);
}

TEST(BatchBuilder, TakesOutSequencesThatEndedAStepEarlier) {
  Fixture f({.block_size = 4, .max_num_seqs = 8, .max_num_batched_tokens = 20}, 100,
            /*caching=*/false);
  const SequencePtr a = f.make(prompt(3), 5);
  const SequencePtr b = f.make(prompt(4, 100), 1);
  const SequencePtr c = f.make(prompt(5, 200), 5);
  StepPlan first;
  ASSERT_TRUE(f.scheduler.schedule(first));
  StepPlan second;
  ASSERT_TRUE(f.scheduler.schedule(second));
  ASSERT_EQ(second.sequences.size(), 2U);  // b reaches its one token by itself
  build_batch(second, 4);
  int32_t stop = -1;
  a->sampling.accept(11, &stop);
  c->sampling.accept(13, &stop);
  resolve_batch(second);
  EXPECT_EQ(second.token_ids, (std::vector<int32_t>{11, 13}));

  f.complete(first);
  StepPlan third;
  ASSERT_TRUE(f.scheduler.schedule(third));
  build_batch(third, 4);
  const std::vector<int32_t> slot_of_c = {third.slots[1]};
  for (int i = 0; i < 4; ++i) a->sampling.accept(1, &stop);  // five tokens: the end
  ASSERT_TRUE(a->sampling.ended());
  c->sampling.accept(17, &stop);
  resolve_batch(third);
  EXPECT_TRUE(third.sequences[0].dropped);
  EXPECT_EQ(third.token_ids, (std::vector<int32_t>{17}));
  EXPECT_EQ(third.slots, slot_of_c);
  EXPECT_EQ(third.query_start, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(third.context_len, (std::vector<int32_t>{7}));
  EXPECT_EQ(third.logit_rows, (std::vector<int32_t>{0}));
  EXPECT_EQ(third.block_table[0], c->blocks[0]);
  EXPECT_EQ(third.num_tokens, 1);
}

// Random arrivals, completions, aborts and failures with two steps in flight.
class SchedulerRandom : public ::testing::TestWithParam<int> {};

TEST_P(SchedulerRandom, NeverLeaksABlock) {
  std::mt19937 random(static_cast<uint32_t>(GetParam()));
  const auto below = [&](int n) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(n));
  };
  const int64_t num_blocks = 12;
  Fixture f({.block_size = 1 + below(3),
             .max_num_seqs = 1 + below(6),
             .max_num_batched_tokens = 6 + below(30),
             .chunked_prefill = true,
             .by_priority = below(2) == 0},
            num_blocks, below(3) > 0);
  std::vector<SequencePtr> alive;
  std::deque<StepPlan> in_flight;
  int64_t completed = 0;
  for (int round = 0; round < 3000; ++round) {
    const int action = below(12);
    if (action < 3 && alive.size() < 20) {
      alive.push_back(f.make(prompt(1 + below(8), below(3)), 1 + below(4), below(3)));
    } else if (action == 3 && !alive.empty()) {
      f.scheduler.finish(*alive[static_cast<size_t>(below(static_cast<int>(alive.size())))]);
    } else if (action < 8 && in_flight.size() < 2) {
      StepPlan plan;
      if (f.scheduler.schedule(plan)) {
        in_flight.push_back(std::move(plan));
      }
    } else if (!in_flight.empty()) {
      completed += static_cast<int64_t>(in_flight.front().sequences.size());
      f.complete(in_flight.front());
      in_flight.pop_front();
    }
    std::erase_if(alive,
                  [](const SequencePtr& s) { return s->status == SequenceStatus::kFinished; });
    f.scheduler.check_integrity();
  }
  EXPECT_GT(completed, 500);
  for (const SequencePtr& s : f.scheduler.all()) f.scheduler.finish(*s);
  f.scheduler.check_integrity();
  EXPECT_EQ(f.pool.num_free(), num_blocks);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerRandom, ::testing::Range(0, 20));

}  // namespace
}  // namespace reft
