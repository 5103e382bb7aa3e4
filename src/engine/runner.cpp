#include "engine/runner.h"

#include <exception>

#include "engine/batch_builder.h"

namespace reft {
namespace {

// Scores the successors of the leading tokens of a prompt's chunk. `row` is the first of them in
// `logits`.
void score_prompt(PlannedSequence& s, const Tensor& logits, int64_t row) {
  const RequestState& request = *s.sequence->request;
  const auto first = request.prompt().begin() + s.first + 1;
  const std::vector<int32_t> targets(first, first + s.num_scored);
  s.scores =
      score(logits.rows(row, row + s.num_scored), targets, *request.params().prompt_logprobs);
}

}  // namespace

Runner::Runner(CausalLmModel& model, KvCache& cache, Device device,
               std::unique_ptr<DecodeGraphs> graphs, std::function<void()> on_done)
    : model_(&model),
      cache_(&cache),
      device_(device),
      graphs_(std::move(graphs)),
      on_done_(std::move(on_done)),
      thread_([this] { work(); }) {}

Runner::~Runner() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Runner::launch(std::unique_ptr<StepPlan> plan) {
  {
    std::lock_guard lock(mutex_);
    plan->cancelled = poisoned_;
    launched_.push_back(std::move(plan));
  }
  wake_.notify_one();
}

bool Runner::ready() const {
  std::lock_guard lock(mutex_);
  return !done_.empty();
}

std::unique_ptr<StepPlan> Runner::collect() {
  std::lock_guard lock(mutex_);
  if (done_.empty()) return nullptr;
  std::unique_ptr<StepPlan> plan = std::move(done_.front());
  done_.pop_front();
  if (plan->failed) poisoned_ = false;
  return plan;
}

void Runner::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !launched_.empty(); });
    if (stopping_) return;
    std::unique_ptr<StepPlan> plan = std::move(launched_.front());
    launched_.pop_front();
    lock.unlock();
    if (!plan->cancelled) {
      try {
        run(*plan);
      } catch (const std::exception& e) {
        plan->failed = true;
        plan->error = e.what();
      } catch (...) {
        plan->failed = true;
        plan->error = "unknown exception";
      }
    }
    plan->done = Clock::now();
    lock.lock();
    if (plan->failed) {
      poisoned_ = true;
      for (auto& next : launched_) next->cancelled = true;
    }
    done_.push_back(std::move(plan));
    lock.unlock();
    on_done_();
    lock.lock();
  }
}

Tensor Runner::forward(StepPlan& plan) {
  const bool decodes = plan.max_query_len == 1 && plan.logit_rows.size() == plan.context_len.size();
  if (graphs_ != nullptr && decodes) return graphs_->forward(make_batch(plan, kCpuDevice));
  return model_->forward(make_batch(plan, device_), *cache_);
}

void Runner::run(StepPlan& plan) {
  resolve_batch(plan);
  if (plan.num_tokens == 0) return;
  const Tensor logits = forward(plan);
  const int64_t vocab_size = logits.size(1);
  check(logits.size(0) == static_cast<int64_t>(plan.logit_rows.size()),
        "the model returned {} rows of logits, not {}", logits.size(0), plan.logit_rows.size());

  // Rows to sample from lie between rows to score: one call per run of them.
  auto next = plan.sequences.begin();
  int64_t row = 0;
  while (next != plan.sequences.end()) {
    rows_.clear();
    const auto first = next;
    for (; next != plan.sequences.end(); ++next) {
      if (next->dropped) continue;
      if (next->num_scored > 0) {
        if (!rows_.empty()) break;
        score_prompt(*next, logits, row);
        row += next->num_scored;
        if (!next->samples) continue;
        rows_.push_back(next->sequence->sampling.row());
        ++next;
        break;
      }
      if (next->samples) rows_.push_back(next->sequence->sampling.row());
    }
    if (rows_.empty()) continue;
    Tensor sampled = logits.rows(row, row + static_cast<int64_t>(rows_.size()));
    row += static_cast<int64_t>(rows_.size());
    std::vector<SampleResult> results = sample(sampled, rows_);
    check(results.size() == rows_.size(), "the sampler returned {} tokens for {} rows",
          results.size(), rows_.size());
    size_t i = 0;
    for (auto s = first; s != next; ++s) {
      if (s->dropped || !s->samples) continue;
      s->result = std::move(results[i++]);
      check(s->result.token >= 0 && s->result.token < vocab_size,
            "the sampler chose token {} of {}", s->result.token, vocab_size);
      s->finish = s->sequence->sampling.accept(s->result.token, &s->stop_id);
    }
  }
}

}  // namespace reft
