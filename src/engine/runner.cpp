#include "engine/runner.h"

#include <chrono>
#include <exception>

#include "engine/batch_builder.h"
#include "ops/copy_rows.h"

namespace reft {
namespace {

// The CPU is done with a step when it is issued. So long it waits for the next one all the same
// when steps overlap (which is for tests there).
constexpr std::chrono::milliseconds kPatience{2};

// Scores the successors of the leading tokens of a prompt's chunk. `row` is the first of them in
// `logits`.
PendingSamplesPtr score_prompt(const PlannedSequence& s, const Tensor& logits, int64_t row) {
  const RequestState& request = *s.sequence->request;
  const auto first = request.prompt().begin() + s.first + 1;
  const std::vector<int32_t> targets(first, first + s.num_scored);
  return start_score(logits.rows(row, row + s.num_scored), targets,
                     *request.params().prompt_logprobs);
}

bool samples(const PlannedSequence& s) { return s.samples && !s.dropped; }

}  // namespace

Runner::Runner(CausalLmModel& model, KvCache& cache, Device device,
               std::unique_ptr<DecodeGraphs> graphs, bool overlap, std::function<void()> on_done)
    : model_(&model),
      cache_(&cache),
      device_(device),
      graphs_(std::move(graphs)),
      max_issued_(overlap ? 2 : 1),
      on_done_(std::move(on_done)),
      thread_([this] { work(); }) {}

Runner::~Runner() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    called_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Runner::launch(std::unique_ptr<StepPlan> plan) {
  {
    std::lock_guard lock(mutex_);
    plan->cancelled = poisoned_;
    launched_.push_back(std::move(plan));
    called_ = true;
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
  while (true) {
    std::unique_ptr<StepPlan> next;
    {
      std::unique_lock lock(mutex_);
      const auto called = [this] { return stopping_ || !launched_.empty(); };
      if (issued_.empty()) {
        wake_.wait(lock, called);
      } else if (issued_.size() < max_issued_ && device_ == kCpuDevice) {
        wake_.wait_for(lock, kPatience, called);
      }
      if (stopping_) break;
      if (!launched_.empty() && issued_.size() < max_issued_) {
        next = std::move(launched_.front());
        launched_.pop_front();
      }
      called_ = !launched_.empty();
    }
    if (next != nullptr) {
      if (needs_tokens(*next)) {
        while (!issued_.empty()) finish_oldest();
      }
      issue(std::move(next));
    }
    if (issued_.size() < max_issued_) wait_for_oldest_or_call();
    const bool full = issued_.size() == max_issued_;
    if (full || (!issued_.empty() && !called_)) finish_oldest();
  }
  while (!issued_.empty()) finish_oldest();
}

bool Runner::needs_tokens(const StepPlan& plan) const {
  for (const PlannedSequence& s : plan.sequences) {
    if (s.from_previous && s.sequence->sampling.needs_last_token()) return true;
  }
  return false;
}

void Runner::wait_for_oldest_or_call() {
  if (issued_.empty() || device_ == kCpuDevice) return;
  const std::vector<Part>& parts = issued_.front().parts;
  // The parts of a step are done in their order.
  while (!called_ && !parts.empty() && !parts.back().results->ready()) std::this_thread::yield();
}

// A step that fails here takes its place behind those that run, so that steps come back in order.
void Runner::issue(std::unique_ptr<StepPlan> plan) {
  Issued step;
  step.plan = std::move(plan);
  if (!step.plan->cancelled) {
    try {
      queue(step);
    } catch (const std::exception& e) {
      fail(*step.plan, e.what());
    } catch (...) {
      fail(*step.plan, "unknown exception");
    }
  }
  issued_.push_back(std::move(step));
}

void Runner::fail(StepPlan& plan, const char* error) {
  plan.failed = true;
  plan.error = error;
  std::lock_guard lock(mutex_);
  poisoned_ = true;
  for (auto& next : launched_) next->cancelled = true;
}

Tensor Runner::forward(StepPlan& plan) {
  const bool decodes = plan.max_query_len == 1 && plan.logit_rows.size() == plan.context_len.size();
  if (graphs_ != nullptr && decodes) {
    Batch host = make_batch(plan, kCpuDevice);
    return graphs_->forward(host, plan.feeds ? tokens_ : Tensor());
  }
  const Batch batch = make_batch(plan, device_);
  if (plan.feeds) {
    const RowsCopy feed{.to = batch.token_ids, .from = batch.token_ids, .values = tokens_};
    copy_rows({&feed, 1});
  }
  return model_->forward(batch, *cache_);
}

void Runner::queue(Issued& step) {
  StepPlan& plan = *step.plan;
  resolve_batch(plan);
  if (plan.num_tokens == 0) return;
  const Tensor logits = forward(plan);
  check(logits.size(0) == static_cast<int64_t>(plan.logit_rows.size()),
        "the model returned {} rows of logits, not {}", logits.size(0), plan.logit_rows.size());
  const Tensor tokens = Tensor::empty({logits.size(0)}, DType::kI32, device_);

  // Rows to sample from lie between rows to score: one call per run of them.
  auto next = plan.sequences.begin();
  int64_t row = 0;
  while (next != plan.sequences.end()) {
    rows_.clear();
    Part part;
    for (; next != plan.sequences.end(); ++next) {
      if (next->dropped) continue;
      if (next->num_scored > 0) {
        if (!rows_.empty()) break;
        step.parts.push_back({score_prompt(*next, logits, row), {&*next}, /*scores=*/true});
        row += next->num_scored;
      }
      if (!next->samples) continue;
      rows_.push_back(next->sequence->sampling.row());
      part.sequences.push_back(&*next);
    }
    if (rows_.empty()) continue;
    const int64_t end = row + static_cast<int64_t>(rows_.size());
    Tensor from = logits.rows(row, end), chosen = tokens.rows(row, end);
    part.results = start_sample(chosen, from, rows_, tokens_);
    step.parts.push_back(std::move(part));
    row = end;
  }

  if (step.parts.empty()) {  // nothing to read back, but the end of the step is to be known
    Tensor from = logits.rows(0, 0), chosen = tokens.rows(0, 0);
    step.parts.push_back({start_sample(chosen, from, {}), {}});
  }

  // Only now, because the rows above ask for the tokens of the step before.
  row = 0;
  for (PlannedSequence& s : plan.sequences) {
    if (s.dropped) continue;
    row += s.num_scored;
    if (s.samples) s.sequence->sampling.expect(static_cast<int32_t>(row++));
  }
  step.expects = true;
  tokens_ = tokens;
}

void Runner::finish_oldest() {
  Issued step = std::move(issued_.front());
  issued_.pop_front();
  StepPlan& plan = *step.plan;
  if (step.expects) {
    for (PlannedSequence& s : plan.sequences) {
      if (samples(s)) s.sequence->sampling.settle();
    }
  }
  if (!plan.failed && !plan.cancelled) {
    try {
      read_back(step);
    } catch (const std::exception& e) {
      fail(plan, e.what());
    } catch (...) {
      fail(plan, "unknown exception");
    }
    if (plan.failed) {
      for (Issued& later : issued_) later.plan->cancelled = true;
    }
  }
  plan.done = Clock::now();
  {
    std::lock_guard lock(mutex_);
    done_.push_back(std::move(step.plan));
  }
  on_done_();
}

void Runner::read_back(Issued& step) {
  const int64_t vocab_size = model_->info().vocab_size;
  for (Part& part : step.parts) {
    std::vector<SampleResult> results = part.results->wait();
    if (part.scores) {
      part.sequences[0]->scores = std::move(results);
      continue;
    }
    check(results.size() == part.sequences.size(), "the sampler returned {} tokens for {} rows",
          results.size(), part.sequences.size());
    for (size_t i = 0; i < results.size(); ++i) {
      PlannedSequence& s = *part.sequences[i];
      if (s.sequence->sampling.ended()) {
        s.dropped = true;
        continue;
      }
      s.result = std::move(results[i]);
      check(s.result.token >= 0 && s.result.token < vocab_size, "the sampler chose token {} of {}",
            s.result.token, vocab_size);
      s.finish = s.sequence->sampling.accept(s.result.token, &s.stop_id);
    }
  }
}

}  // namespace reft
