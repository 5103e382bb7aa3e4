#include "ops/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "base/thread_pool.h"
#include "ops/philox.h"

namespace reft {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

// NaN counts as masked, +inf as the largest finite number: the sums below stay defined.
float sane(float x) { return x > kLargest ? kLargest : x >= kMinusInf ? x : kMinusInf; }

// Indices of the `n` largest, by value, then by id.
std::vector<int32_t> largest(const float* x, int64_t size, int64_t n) {
  std::vector<int32_t> ids(static_cast<size_t>(size));
  std::iota(ids.begin(), ids.end(), 0);
  n = std::min(n, size);
  std::partial_sort(ids.begin(), ids.begin() + n, ids.end(),
                    [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
  ids.resize(static_cast<size_t>(n));
  return ids;
}

double log_sum_exp(const float* x, int64_t size) {
  const float top = *std::max_element(x, x + size);
  if (top == kMinusInf) return kMinusInf;
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += std::exp(x[i] - top);
  return top + std::log(sum);
}

void describe(SampleResult& result, const float* x, int64_t size, int32_t top) {
  const double lse = log_sum_exp(x, size);
  const auto value = [&](int32_t id) {
    return lse == kMinusInf ? kMinusInf : static_cast<float>(x[id] - lse);
  };
  const float own = x[result.token];
  result.logprob = value(result.token);
  result.rank = 1;
  for (int32_t i = 0; i < size; ++i) {
    result.rank += x[i] > own || (x[i] == own && i < result.token);
  }
  if (top <= 0) return;
  for (const int32_t id : largest(x, size, top)) result.top.emplace_back(id, value(id));
}

void apply_masks_and_penalties(float* x, int64_t size, const SampleRow& row) {
  const auto valid = [size](int32_t id) { return id >= 0 && id < size; };
  if (row.allowed_ids) {
    std::vector<std::pair<int32_t, float>> kept;
    for (const int32_t id : *row.allowed_ids) {
      if (valid(id)) kept.emplace_back(id, x[id]);
    }
    std::fill(x, x + size, kMinusInf);
    for (const auto& [id, value] : kept) x[id] = value;
  }
  if (row.banned_ids) {
    for (const int32_t id : *row.banned_ids) {
      if (valid(id)) x[id] = kMinusInf;
    }
  }
  if (row.bias) {
    for (const auto& [id, bias] : *row.bias) {
      if (valid(id)) x[id] = sane(x[id] + bias);
    }
  }
  std::unordered_map<int32_t, int> counts;  // of output ids; 0 for ids of the prompt only
  if (row.prompt_ids && row.repetition_penalty != 1.0f) {
    for (const int32_t id : *row.prompt_ids) {
      if (valid(id)) counts.emplace(id, 0);
    }
  }
  if (row.output_ids) {
    for (const int32_t id : *row.output_ids) {
      if (valid(id)) ++counts[id];
    }
  }
  for (const auto& [id, count] : counts) {
    if (x[id] == kMinusInf) continue;
    x[id] = x[id] > 0 ? x[id] / row.repetition_penalty : x[id] * row.repetition_penalty;
    x[id] -= row.frequency_penalty * static_cast<float>(count);
    if (count > 0) x[id] -= row.presence_penalty;
    x[id] = sane(x[id]);
  }
}

int32_t draw(const float* x, int64_t size, const SampleRow& row) {
  if (row.temperature < 1e-5f) return static_cast<int32_t>(std::max_element(x, x + size) - x);
  const bool top_k = row.top_k > 0 && row.top_k < size;
  std::vector<int32_t> ids = largest(x, size, top_k ? row.top_k : size);
  const float top = x[ids[0]];
  std::vector<double> mass;
  double total = 0;
  for (const int32_t id : ids) {
    const double p = std::exp((x[id] - top) / static_cast<double>(row.temperature));
    if (p < row.min_p || p == 0) break;
    mass.push_back(p);
    total += p;
  }
  size_t kept = 0;
  double before = 0;
  while (kept < mass.size() && (kept == 0 || before < row.top_p * total)) before += mass[kept++];
  ids.resize(kept);
  double left = philox_uniform(row.seed, row.position) * before;
  std::vector<size_t> order(kept);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, [&](size_t a, size_t b) { return ids[a] < ids[b]; });
  for (const size_t i : order) {
    left -= mass[i];
    if (left < 0) return ids[i];
  }
  return ids[order.back()];
}

int32_t lowest_allowed(int64_t size, const SampleRow& row) {
  int32_t best = 0;
  if (row.allowed_ids) {
    best = std::numeric_limits<int32_t>::max();
    for (const int32_t id : *row.allowed_ids) {
      if (id >= 0 && id < size) best = std::min(best, id);
    }
    if (best == std::numeric_limits<int32_t>::max()) best = 0;
  }
  return best;
}

void sample_row(SampleResult& result, float* x, int64_t size, const SampleRow& row) {
  for (int64_t i = 0; i < size; ++i) x[i] = sane(x[i]);
  std::vector<float> raw;
  if (row.num_logprobs >= 0) raw.assign(x, x + size);
  apply_masks_and_penalties(x, size, row);
  const bool all_masked = *std::max_element(x, x + size) == kMinusInf;
  result.token = all_masked ? lowest_allowed(size, row) : draw(x, size, row);
  if (row.num_logprobs >= 0) describe(result, raw.data(), size, row.num_logprobs);
}

void sample_cpu(std::vector<SampleResult>& out, Tensor& logits,
                const std::vector<SampleRow>& rows) {
  const int64_t size = logits.size(1);
  float* x = logits.data<float>();
  compute_pool().parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const auto i = static_cast<size_t>(r);
      sample_row(out[i], x + r * size, size, rows[i]);
    }
  });
}

void score_cpu(std::vector<SampleResult>& out, const Tensor& logits,
               const std::vector<int32_t>& targets, int32_t top) {
  const int64_t size = logits.size(1);
  const float* x = logits.data<float>();
  compute_pool().parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const auto i = static_cast<size_t>(r);
      std::vector<float> row(x + r * size, x + (r + 1) * size);
      for (float& value : row) value = sane(value);
      out[i].token = targets[i];
      describe(out[i], row.data(), size, top);
    }
  });
}

const RegisterKernel sample_entry(sample_kernel, DeviceType::kCpu, &sample_cpu);
const RegisterKernel score_entry(score_kernel, DeviceType::kCpu, &score_cpu);

}  // namespace
}  // namespace reft
