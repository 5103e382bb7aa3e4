#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace reft {

bool Scheduler::QueueOrder::operator()(const SequencePtr& a, const SequencePtr& b) const {
  const int64_t pa = by_priority ? a->request->priority : 0;
  const int64_t pb = by_priority ? b->request->priority : 0;
  return std::tie(pa, a->request->number, a->index) < std::tie(pb, b->request->number, b->index);
}

Scheduler::Scheduler(SchedulerOptions options, BlockPool& pool, PrefixCache* cache,
                     const BlockHasher* hasher)
    : options_(options),
      pool_(&pool),
      cache_(cache),
      hasher_(hasher),
      waiting_(QueueOrder{options.by_priority}) {}

void Scheduler::add(SequencePtr sequence) { waiting_.insert(std::move(sequence)); }

bool Scheduler::schedule(StepPlan& plan) {
  plan.clear();
  budget_ = options_.max_num_batched_tokens;
  preempted_ = false;
  scratch_ = running_;  // preemption changes running_
  schedule_running(plan, /*decode=*/true);
  schedule_running(plan, /*decode=*/false);
  scratch_.clear();
  // Only now, because a later sequence may have thrown an earlier one out of the plan.
  for (const PlannedSequence& s : plan.sequences) register_blocks(*s.sequence);
  if (!preempted_) schedule_waiting(plan);
  for (const PlannedSequence& s : plan.sequences) s.sequence->planned = false;
  return !plan.sequences.empty();
}

void Scheduler::schedule_running(StepPlan& plan, bool decode) {
  for (const SequencePtr& s : scratch_) {
    if (budget_ == 0) return;
    if (s->status != SequenceStatus::kRunning || s->planned) continue;
    int64_t num_new = s->num_total() - s->num_computed;
    if (num_new <= 0 || (num_new == 1) != decode) continue;
    if (s->num_outputs() >= s->request->setup->max_tokens)
      continue;  // its last token is on the way
    if (!decode) {
      if (num_new > budget_ && !options_.chunked_prefill) continue;
      num_new = std::min(num_new, budget_);
    }
    if (s->scores_prompt && options_.chunked_prefill)
      num_new = std::min(num_new, options_.max_scored_tokens);
    if (!grow(s, s->num_computed + num_new, plan)) continue;
    put_into(plan, s, num_new);
  }
}

void Scheduler::schedule_waiting(StepPlan& plan) {
  while (budget_ > 0 && !waiting_.empty() && num_running() < options_.max_num_seqs) {
    const SequencePtr next = *waiting_.begin();
    if (next->num_pending > 0 || !admit(next, plan)) return;
  }
}

bool Scheduler::admit(const SequencePtr& s, StepPlan& plan) {
  if (s->tokens.empty()) {
    s->tokens = s->request->prompt();
    s->hashes = s->request->prompt_hashes;
    s->scores_prompt = s->index == 0 && s->request->params().prompt_logprobs.has_value();
    if (s->scores_prompt) s->prompt_scores.resize(s->tokens.size() - 1);
  }
  if (pool_->num_free() == 0) return false;
  const auto known = static_cast<int64_t>(s->tokens.size());
  std::vector<int32_t> hits;
  // A scored prompt needs the hidden states of all its tokens.
  const bool look_up = cache_ != nullptr && !s->scores_prompt;
  if (look_up) {
    // The last token is always computed: its logits are wanted.
    const size_t limit =
        std::min(s->hashes.size(), static_cast<size_t>((known - 1) / options_.block_size));
    hits = cache_->lookup(std::span(s->hashes).first(limit));
  }
  const auto num_hits = static_cast<int64_t>(hits.size());
  const int64_t cached = num_hits * options_.block_size;
  int64_t num_new = known - cached;
  if (num_new > budget_) {
    if (!options_.chunked_prefill) return false;
    num_new = budget_;
  }
  if (s->scores_prompt && options_.chunked_prefill)
    num_new = std::min(num_new, options_.max_scored_tokens);

  const int64_t needed = blocks_for(known) - num_hits;
  const int64_t revived =
      std::ranges::count_if(hits, [&](int32_t b) { return pool_->references(b) == 0; });
  // With others running a few blocks stay free, or their next tokens would throw the newcomer out
  // again.
  const int64_t reserve = running_.empty() ? 0 : std::max<int64_t>(1, pool_->num_blocks() / 100);
  if (pool_->num_free() - revived < needed + reserve) return false;

  for (int32_t b : hits) pool_->reference(b);
  s->blocks = std::move(hits);
  for (int64_t i = 0; i < needed; ++i) s->blocks.push_back(pool_->allocate());
  s->num_computed = cached;
  s->num_registered = num_hits;
  if (!s->admitted_before) {
    s->admitted_before = true;
    s->num_cached_tokens = cached;
    if (look_up) {
      prefix_counts_.queries += static_cast<uint64_t>(known);
      prefix_counts_.hits += static_cast<uint64_t>(cached);
    }
  }
  waiting_.erase(waiting_.begin());
  s->status = SequenceStatus::kRunning;
  running_.push_back(s);
  put_into(plan, s, num_new);
  register_blocks(*s);  // so that the next one of this very step can share them
  return true;
}

bool Scheduler::grow(const SequencePtr& s, int64_t num_tokens, StepPlan& plan) {
  while (static_cast<int64_t>(s->blocks.size()) < blocks_for(num_tokens)) {
    const int32_t block = pool_->allocate();
    if (block >= 0) {
      s->blocks.push_back(block);
      continue;
    }
    const SequencePtr victim =
        *std::ranges::max_element(running_, QueueOrder{options_.by_priority});
    if (victim->planned) unplan(*victim, plan);
    preempt(*victim);
    preempted_ = true;
    if (victim == s) return false;
  }
  return true;
}

void Scheduler::unplan(Sequence& sequence, StepPlan& plan) {
  const auto it = std::ranges::find_if(
      plan.sequences, [&](const PlannedSequence& p) { return p.sequence.get() == &sequence; });
  check(it != plan.sequences.end(), "scheduler: a planned sequence is not in the plan");
  if (it->samples) --sequence.num_pending;
  budget_ += it->num_tokens;
  plan.num_tokens -= it->num_tokens;
  sequence.planned = false;
  plan.sequences.erase(it);
}

void Scheduler::put_into(StepPlan& plan, const SequencePtr& s, int64_t num_tokens) {
  PlannedSequence planned;
  planned.first = s->num_computed;
  planned.num_tokens = num_tokens;
  const int64_t end = s->num_computed + num_tokens;
  planned.from_previous = end > static_cast<int64_t>(s->tokens.size());
  planned.samples = end == s->num_total();
  if (s->scores_prompt) planned.num_scored = std::min(end, s->num_prompt() - 1) - s->num_computed;
  planned.num_scored = std::max<int64_t>(planned.num_scored, 0);
  if (planned.samples) ++s->num_pending;
  s->num_computed = end;
  s->planned = true;
  budget_ -= num_tokens;
  plan.num_tokens += num_tokens;
  planned.sequence = s;
  plan.sequences.push_back(std::move(planned));
}

void Scheduler::append(Sequence& sequence, int32_t token, bool last) {
  check(sequence.num_pending > 0, "scheduler: a token that no step was to sample");
  sequence.tokens.push_back(token);
  --sequence.num_pending;
  if (hasher_ != nullptr &&
      sequence.tokens.size() / static_cast<size_t>(options_.block_size) > sequence.hashes.size()) {
    hasher_->extend(sequence.request->cache_salt, sequence.tokens, sequence.hashes);
  }
  if (last) {
    const auto written = static_cast<int64_t>(sequence.tokens.size()) - 1;
    sequence.num_computed = std::min(sequence.num_computed, written);
  }
  if (sequence.status == SequenceStatus::kRunning) register_blocks(sequence);
}

void Scheduler::register_blocks(Sequence& s) {
  if (cache_ == nullptr) return;
  const int64_t full =
      std::min(static_cast<int64_t>(s.hashes.size()), s.num_computed / options_.block_size);
  for (int64_t i = s.num_registered; i < full; ++i) {
    cache_->insert(s.hashes[static_cast<size_t>(i)], s.blocks[static_cast<size_t>(i)]);
  }
  s.num_registered = std::max(s.num_registered, full);
}

void Scheduler::free_blocks(Sequence& sequence) {
  // Last block first: it is the one to be reused first.
  for (auto it = sequence.blocks.rbegin(); it != sequence.blocks.rend(); ++it) pool_->release(*it);
  sequence.blocks.clear();
  sequence.num_computed = 0;
  sequence.num_registered = 0;
}

void Scheduler::finish(Sequence& sequence) {
  if (sequence.status == SequenceStatus::kFinished) return;
  if (sequence.status == SequenceStatus::kWaiting) {
    waiting_.erase(SequencePtr(SequencePtr(), &sequence));  // a borrowed key; equal only to itself
  } else {
    std::erase_if(running_, [&](const SequencePtr& s) { return s.get() == &sequence; });
  }
  sequence.status = SequenceStatus::kFinished;
  free_blocks(sequence);
}

void Scheduler::forget_blocks(Sequence& sequence, int64_t first) {
  if (cache_ == nullptr) return;
  for (size_t i = static_cast<size_t>(first / options_.block_size); i < sequence.blocks.size();
       ++i) {
    cache_->forget(sequence.blocks[i]);
  }
}

void Scheduler::preempt(Sequence& sequence) {
  if (sequence.status != SequenceStatus::kRunning) return;
  const auto it =
      std::ranges::find_if(running_, [&](const SequencePtr& s) { return s.get() == &sequence; });
  check(it != running_.end(), "scheduler: a running sequence is not listed");
  const SequencePtr keep = *it;
  running_.erase(it);
  free_blocks(sequence);
  sequence.status = SequenceStatus::kWaiting;
  waiting_.insert(keep);
  ++num_preemptions_;
}

std::vector<SequencePtr> Scheduler::all() const {
  std::vector<SequencePtr> sequences = running_;
  sequences.insert(sequences.end(), waiting_.begin(), waiting_.end());
  return sequences;
}

void Scheduler::check_integrity() const {
  pool_->check_integrity();
  if (cache_ != nullptr) cache_->check_integrity();
  std::vector<int32_t> references(static_cast<size_t>(pool_->num_blocks()));
  for (const SequencePtr& s : running_) {
    check(s->status == SequenceStatus::kRunning,
          "a sequence that is not running is listed as such");
    check(blocks_for(s->num_computed) <= static_cast<int64_t>(s->blocks.size()),
          "a sequence has {} tokens in {} blocks", s->num_computed, s->blocks.size());
    for (int32_t b : s->blocks) ++references[static_cast<size_t>(b)];
  }
  for (const SequencePtr& s : waiting_) {
    check(s->status == SequenceStatus::kWaiting && s->blocks.empty(),
          "a waiting sequence holds blocks");
  }
  for (int32_t b = 0; b < static_cast<int32_t>(pool_->num_blocks()); ++b) {
    check(pool_->references(b) == references[static_cast<size_t>(b)],
          "block {} has {} references and {} users", b, pool_->references(b),
          references[static_cast<size_t>(b)]);
  }
}

}  // namespace reft
