#include "engine/stats_recorder.h"

#include "base/log.h"

namespace reft {
namespace {

constexpr std::chrono::seconds kReportInterval{10};

double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

StatsRecorder::StatsRecorder(int64_t num_kv_blocks) {
  stats_.num_kv_blocks = stats_.num_free_kv_blocks = num_kv_blocks;
}

void StatsRecorder::started(const Sequence& sequence, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  stats_.queue_time.observe(seconds(now - sequence.request->arrival));
}

void StatsRecorder::step(const StepPlan& plan) {
  std::lock_guard lock(mutex_);
  ++stats_.num_steps;
  stats_.iteration_tokens.observe(static_cast<double>(plan.num_tokens));
}

void StatsRecorder::token(Sequence& sequence, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  ++stats_.generation_tokens;
  if (sequence.first_token == Clock::time_point()) {
    sequence.first_token = now;
    if (sequence.index == 0) stats_.prompt_tokens += static_cast<uint64_t>(sequence.num_prompt());
    stats_.time_to_first_token.observe(seconds(now - sequence.request->arrival));
  } else {
    stats_.inter_token_latency.observe(seconds(now - sequence.last_token));
  }
  sequence.last_token = now;
}

void StatsRecorder::finished(const Sequence& s, FinishReason reason, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  ++stats_.finished[static_cast<size_t>(reason)];
  const SamplingParams& params = s.request->params();
  stats_.e2e_latency.observe(seconds(now - s.request->arrival));
  stats_.request_prompt_tokens.observe(static_cast<double>(s.num_prompt()));
  stats_.request_params_n.observe(params.n);
  stats_.request_params_max_tokens.observe(static_cast<double>(s.request->setup->max_tokens));
  const bool generated = s.first_token != Clock::time_point();
  stats_.request_generation_tokens.observe(
      generated ? static_cast<double>(static_cast<int64_t>(s.tokens.size()) - s.num_prompt()) : 0);
  if (!generated) return;
  stats_.prefill_time.observe(seconds(s.first_token - s.first_scheduled));
  stats_.decode_time.observe(seconds(s.last_token - s.first_token));
  stats_.inference_time.observe(seconds(s.last_token - s.first_scheduled));
}

void StatsRecorder::gauges(const Gauges& g, Clock::time_point now) {
  bool active = g.running + g.waiting > 0;
  {
    std::lock_guard lock(mutex_);
    stats_.num_requests_running = g.running;
    stats_.num_requests_waiting = g.waiting;
    stats_.num_free_kv_blocks = g.free_blocks;
    stats_.kv_cache_usage =
        1 - static_cast<double>(g.free_blocks) / static_cast<double>(stats_.num_kv_blocks);
    stats_.num_preemptions = g.preemptions;
    stats_.prefix_cache_queries = g.prefix.queries;
    stats_.prefix_cache_hits = g.prefix.hits;
    prompt_tokens_ = stats_.prompt_tokens;
    generation_tokens_ = stats_.generation_tokens;
  }
  active = active || generation_tokens_ != last_generation_tokens_;
  if (!due_) {
    if (!active) return;
    since_ = now;
    due_ = now + kReportInterval;
  } else if (now >= *due_) {
    report(now);
  }
}

std::optional<Clock::time_point> StatsRecorder::next_report() const { return due_; }

void StatsRecorder::report(Clock::time_point now) {
  const EngineStats& s = stats_;  // only this thread writes
  const double elapsed = seconds(now - since_);
  const uint64_t queries = s.prefix_cache_queries - last_queries_;
  const uint64_t hits = s.prefix_cache_hits - last_hits_;
  const auto rate = [&](uint64_t tokens) { return static_cast<double>(tokens) / elapsed; };
  log_info("Engine",
           "prompt {:.1f} tok/s, generation {:.1f} tok/s, running {}, waiting {}, KV cache usage "
           "{:.1f}%, prefix cache hit "
           "rate {:.1f}%",
           rate(prompt_tokens_ - last_prompt_tokens_),
           rate(generation_tokens_ - last_generation_tokens_), s.num_requests_running,
           s.num_requests_waiting, 100 * s.kv_cache_usage,
           queries == 0 ? 0.0 : 100 * static_cast<double>(hits) / static_cast<double>(queries));
  last_prompt_tokens_ = prompt_tokens_;
  last_generation_tokens_ = generation_tokens_;
  last_queries_ = s.prefix_cache_queries;
  last_hits_ = s.prefix_cache_hits;
  since_ = now;
  if (s.num_requests_running + s.num_requests_waiting > 0) {
    due_ = now + kReportInterval;
  } else {
    due_.reset();
  }
}

EngineStats StatsRecorder::copy() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace reft
