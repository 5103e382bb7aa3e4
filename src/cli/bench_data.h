// Requests and statistics that the benchmarks share. Terms as in vLLM's benchmarks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace reft {

struct BenchRequest {
  std::string text;          // for servers that are sent text
  std::vector<int32_t> ids;  // for engines and servers that are sent ids
  int64_t prompt_len = 0;
  int64_t output_len = 0;
};

struct BenchData {
  std::string dataset = "random";  // random | sharegpt
  std::string dataset_path;
  int64_t num_prompts = 100;
  int64_t input_len = 512;
  int64_t output_len = 128;  // for sharegpt: 0 takes the length of the answer in the data
  double range_ratio = 0.0;  // lengths are uniform in [len (1 − r), len (1 + r)]
  int64_t prefix_len = 0;    // ids that all random prompts begin with
  uint64_t seed = 0;
};

// Throws Error naming the file or the option. Random ids are below `vocab_size`, special tokens
// left out where there is a tokenizer (it may be null for random prompts). `max_len` drops sharegpt
// conversations that do not fit.
std::vector<BenchRequest> make_bench_requests(const BenchData& data, const Tokenizer* tokenizer,
                                              int64_t vocab_size, int64_t max_len);

struct Summary {
  double mean = 0, median = 0, stddev = 0, min = 0, max = 0;
  std::vector<double> sorted;
  // Linear interpolation between closest ranks; p in [0, 100].
  double percentile(double p) const;
};
Summary summarize(std::vector<double> values);

}  // namespace reft
