#include "cli/bench_data.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "base/check.h"
#include "base/json.h"

namespace reft {
namespace {

std::vector<BenchRequest> random_requests(const BenchData& data, const Tokenizer* tokenizer,
                                          int64_t vocab_size) {
  check(data.input_len > 0 && data.output_len > 0,
        "random prompts need --input-len and --output-len above 0");
  check(data.range_ratio >= 0 && data.range_ratio < 1,
        "--random-range-ratio must be in [0, 1), got {}", data.range_ratio);
  std::vector<int32_t> ordinary;
  for (int64_t id = 0; id < vocab_size; ++id) {
    if (tokenizer == nullptr || !tokenizer->is_special(static_cast<int32_t>(id)))
      ordinary.push_back(static_cast<int32_t>(id));
  }
  check(!ordinary.empty(), "the vocabulary has no ordinary tokens");
  std::mt19937_64 random(data.seed);
  const auto length = [&](int64_t wanted) {
    std::uniform_real_distribution<double> spread(1 - data.range_ratio, 1 + data.range_ratio);
    return std::max<int64_t>(1, std::llround(static_cast<double>(wanted) * spread(random)));
  };
  const auto pick = [&] { return ordinary[random() % ordinary.size()]; };
  std::vector<int32_t> prefix(static_cast<size_t>(data.prefix_len));
  std::ranges::generate(prefix, pick);
  std::vector<BenchRequest> out(static_cast<size_t>(data.num_prompts));
  for (BenchRequest& request : out) {
    request.ids = prefix;
    const int64_t own = length(data.input_len);
    for (int64_t i = 0; i < own; ++i) request.ids.push_back(pick());
    request.prompt_len = static_cast<int64_t>(request.ids.size());
    request.output_len = length(data.output_len);
    if (tokenizer != nullptr) request.text = tokenizer->decode(request.ids, false);
  }
  return out;
}

// ShareGPT files: [{"conversations": [{"from"/"role", "value"/"content"}, …]}, …]; the first two
// turns count.
std::vector<BenchRequest> sharegpt_requests(const BenchData& data, const Tokenizer& tokenizer,
                                            int64_t max_len) {
  check(!data.dataset_path.empty(), "--dataset-name sharegpt needs --dataset-path");
  const Json conversations = read_json_file(data.dataset_path);
  check(conversations.is_array(), "{}: expected a JSON array of conversations", data.dataset_path);
  std::vector<BenchRequest> all;
  bool any = false;
  const auto text_of = [](const Json& turn) {
    return json_get<std::string>(turn, turn.contains("value") ? "value" : "content", "");
  };
  for (const Json& item : conversations) {
    const auto turns = item.find(item.contains("conversations") ? "conversations" : "messages");
    if (turns == item.end() || turns->size() < 2) continue;
    any = true;
    BenchRequest request;
    request.text = text_of((*turns)[0]);
    request.ids = tokenizer.encode(request.text);
    request.prompt_len = static_cast<int64_t>(request.ids.size());
    request.output_len = data.output_len > 0
                             ? data.output_len
                             : static_cast<int64_t>(tokenizer.encode(text_of((*turns)[1])).size());
    const bool fits = request.prompt_len >= 4 && request.output_len >= 4 &&
                      request.prompt_len + request.output_len <= max_len;
    if (fits) all.push_back(std::move(request));
  }
  check(any, "{}: no item has 'conversations' (or 'messages') of two turns: not a ShareGPT file",
        data.dataset_path);
  check(!all.empty(), "{}: no conversation has turns of 4 tokens that fit into {}",
        data.dataset_path, max_len);
  std::mt19937_64 random(data.seed);
  std::ranges::shuffle(all, random);
  std::vector<BenchRequest> out;
  for (int64_t i = 0; i < data.num_prompts; ++i)
    out.push_back(all[static_cast<size_t>(i) % all.size()]);
  return out;
}

}  // namespace

std::vector<BenchRequest> make_bench_requests(const BenchData& data, const Tokenizer* tokenizer,
                                              int64_t vocab_size, int64_t max_len) {
  check(data.num_prompts > 0, "--num-prompts must be positive, got {}", data.num_prompts);
  if (data.dataset != "sharegpt") return random_requests(data, tokenizer, vocab_size);
  check(tokenizer != nullptr, "--dataset-name sharegpt needs a tokenizer");
  return sharegpt_requests(data, *tokenizer, max_len);
}

double Summary::percentile(double p) const {
  if (sorted.empty()) return 0;
  const double rank = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(rank);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (rank - static_cast<double>(low));
}

Summary summarize(std::vector<double> values) {
  Summary s;
  std::ranges::sort(values);
  s.sorted = std::move(values);
  if (s.sorted.empty()) return s;
  const double n = static_cast<double>(s.sorted.size());
  s.mean = std::accumulate(s.sorted.begin(), s.sorted.end(), 0.0) / n;
  double squares = 0;
  for (double v : s.sorted) squares += (v - s.mean) * (v - s.mean);
  s.stddev = std::sqrt(squares / n);
  s.median = s.percentile(50);
  s.min = s.sorted.front();
  s.max = s.sorted.back();
  return s;
}

}  // namespace reft
