#include "engine/metrics.h"

#include <algorithm>

namespace reft {
namespace {

// vLLM's bounds, widened below where a small model on a fast device lives.
const std::vector<double> kFirstTokenBounds = {.0005, .001, .002, .003, .005, .0075, .01, .02, .04,
                                               .06,   .08,  .1,   .25,  .5,   .75,   1,   2.5, 5,
                                               7.5,   10,   20,   40,   80,   160,   640, 2560};
const std::vector<double> kInterTokenBounds = {.0005, .001, .002, .003, .005, .0075, .01, .025, .05,
                                               .075,  .1,   .15,  .2,   .3,   .4,    .5,  .75,  1,
                                               2.5,   5,    7.5,  10,   20,   40,    80};
const std::vector<double> kLatencyBounds = {
    .0005, .001, .002, .003, .005, .0075, .01, .02, .03, .05, .1,  .2,  .3,  .5,  .8,   1,   1.5,
    2,     2.5,  5,    10,   15,   20,    30,  40,  50,  60,  120, 240, 480, 960, 1920, 7680};
const std::vector<double> kIterationBounds = {1,   8,    16,   32,   64,   128,  256,
                                              512, 1024, 2048, 4096, 8192, 16384};

// 1, 2, 5, 10 … one million.
std::vector<double> count_bounds() {
  std::vector<double> bounds;
  for (double power = 1; power < 1e6; power *= 10) {
    for (double step : {1.0, 2.0, 5.0}) bounds.push_back(step * power);
  }
  bounds.push_back(1e6);
  return bounds;
}

}  // namespace

Histogram::Histogram(std::vector<double> upper_bounds)
    : bounds(std::move(upper_bounds)), counts(bounds.size() + 1) {}

void Histogram::observe(double value) {
  const auto it = std::lower_bound(bounds.begin(), bounds.end(), value);  // bounds are inclusive
  ++counts[static_cast<size_t>(it - bounds.begin())];
  sum += value;
  ++total;
}

EngineStats::EngineStats()
    : time_to_first_token(kFirstTokenBounds),
      inter_token_latency(kInterTokenBounds),
      e2e_latency(kLatencyBounds),
      queue_time(kLatencyBounds),
      inference_time(kLatencyBounds),
      prefill_time(kLatencyBounds),
      decode_time(kLatencyBounds),
      request_prompt_tokens(count_bounds()),
      request_generation_tokens(count_bounds()),
      request_params_n({1, 2, 5, 10, 20}),
      request_params_max_tokens(count_bounds()),
      iteration_tokens(kIterationBounds) {}

}  // namespace reft
