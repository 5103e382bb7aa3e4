// Counters and histograms of the engine; server/metrics.cpp prints them under vLLM's names.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace reft {

// A cumulative histogram in Prometheus' sense. Upper bounds are fixed at construction.
struct Histogram {
  std::vector<double> bounds;    // increasing; +Inf is implied
  std::vector<uint64_t> counts;  // bounds.size() + 1, not cumulative
  double sum = 0;
  uint64_t total = 0;

  explicit Histogram(std::vector<double> upper_bounds);
  void observe(double value);
};

struct EngineStats {
  EngineStats();

  int64_t num_requests_running = 0;
  int64_t num_requests_waiting = 0;
  int64_t num_kv_blocks = 0;
  int64_t num_free_kv_blocks = 0;     // blocks that hold only reusable prefixes count as free
  double kv_cache_usage = 0;          // 0 … 1
  uint64_t prefix_cache_queries = 0;  // tokens looked up
  uint64_t prefix_cache_hits = 0;     // tokens found
  uint64_t num_preemptions = 0;
  uint64_t prompt_tokens = 0;
  uint64_t generation_tokens = 0;
  uint64_t num_steps = 0;
  // Finished requests by FinishReason (stop, length, abort, error at their enum index).
  std::array<uint64_t, 5> finished{};
  // Seconds.
  Histogram time_to_first_token;
  Histogram inter_token_latency;
  Histogram e2e_latency;
  Histogram queue_time;
  Histogram inference_time;
  Histogram prefill_time;
  Histogram decode_time;
  // Counts.
  Histogram request_prompt_tokens;
  Histogram request_generation_tokens;
  Histogram request_params_n;
  Histogram request_params_max_tokens;
  Histogram iteration_tokens;
};

}  // namespace reft
