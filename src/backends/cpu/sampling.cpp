#include "ops/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "backends/cpu/simd.h"
#include "base/thread_pool.h"
#include "ops/philox.h"

namespace reft {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kGreedyBelow = 1e-5f;  // temperature

float sane(float x) { return x > kLargest ? kLargest : x >= kMinusInf ? x : kMinusInf; }

struct Candidate {
  float x;  // logit
  float p;  // exp((x − top) / temperature)
  int32_t id;
};
bool more_likely(const Candidate& a, const Candidate& b) {
  return a.x != b.x ? a.x > b.x : a.id < b.id;
}

// Buffers of one thread, kept between calls.
struct Workspace {
  std::vector<float> raw, values, weights;
  std::vector<int32_t> ids, touched;
  std::vector<int32_t> counts;  // per id, −1: not touched
  std::vector<Candidate> candidates;
  std::vector<double> blocks;
};
Workspace& workspace() {
  thread_local Workspace w;
  return w;
}

// One row of logits.
struct Row {
  float* x;
  int64_t size;
  bool valid(int32_t id) const { return id >= 0 && id < size; }
};

// The n most likely ids in w.ids, unsorted; masked ones are left out.
void most_likely(Workspace& w, const float* x, int64_t size, int64_t n) {
  const auto order = [x](int32_t a, int32_t b) {
    const float u = sane(x[a]), v = sane(x[b]);
    return u != v ? u > v : a < b;
  };
  // A bound that rises: whatever is not above the n-th best so far cannot be among the n best (an
  // equal value further on has a higher id).
  const int64_t room = std::min(size, 2 * n + 1024) + kMaxLanes;
  w.ids.resize(static_cast<size_t>(room));
  float bound = kMinusInf;
  int64_t count = 0;
  for (int64_t at = 0; at < size;) {
    count += simd_kernels().above(w.ids.data() + count, room - count, x, at, size, bound, false);
    if (count <= n) continue;
    std::nth_element(w.ids.begin(), w.ids.begin() + (n - 1), w.ids.begin() + count, order);
    count = n;
    bound = sane(x[w.ids[static_cast<size_t>(n - 1)]]);
  }
  w.ids.resize(static_cast<size_t>(count));
}

void describe(Workspace& w, SampleResult& result, const float* x, int64_t size, int32_t top) {
  const auto& simd = simd_kernels();
  const float best = simd.largest(x, size);
  const double lse = best == kMinusInf
                         ? 0
                         : best + std::log(simd.exponentials(nullptr, x, size, best, 1.0f, 0.0f));
  const auto logprob = [&](int32_t id) { return static_cast<float>(sane(x[id]) - lse); };
  const int64_t token = result.token;
  const float own = sane(x[token]);
  result.logprob = logprob(result.token);
  result.rank = static_cast<int32_t>(1 + simd.count_above(x, token, own, true) +
                                     simd.count_above(x + token + 1, size - token - 1, own, false));
  if (top <= 0) return;
  most_likely(w, x, size, std::min<int64_t>(top, size));
  for (const int32_t id : w.ids) result.top.emplace_back(id, logprob(id));
  std::ranges::sort(result.top, [x](const auto& a, const auto& b) {
    const float u = sane(x[a.first]), v = sane(x[b.first]);
    return u != v ? u > v : a.first < b.first;
  });
}

// `pending`: one more output, or null.
void apply_penalties(Workspace& w, const Row& row, const SampleRow& rule, const int32_t* pending) {
  const bool repetition = rule.repetition_penalty != 1.0f;
  if (!repetition && rule.presence_penalty == 0 && rule.frequency_penalty == 0) return;
  if (static_cast<int64_t>(w.counts.size()) < row.size)
    w.counts.resize(static_cast<size_t>(row.size), -1);
  w.touched.clear();
  const auto touch = [&](std::span<const int32_t> ids, int32_t step) {
    for (const int32_t id : ids) {
      if (!row.valid(id)) continue;
      int32_t& count = w.counts[static_cast<size_t>(id)];
      if (count < 0) {
        count = 0;
        w.touched.push_back(id);
      }
      count += step;
    }
  };
  if (repetition && rule.prompt_ids) touch(*rule.prompt_ids, 0);
  if (rule.output_ids) touch(*rule.output_ids, 1);
  if (pending) touch({pending, 1}, 1);
  for (const int32_t id : w.touched) {
    int32_t& count = w.counts[static_cast<size_t>(id)];
    float x = sane(row.x[id]);
    if (x != kMinusInf) {
      x = x > 0 ? x / rule.repetition_penalty : x * rule.repetition_penalty;
      x -= rule.frequency_penalty * static_cast<float>(count);
      if (count > 0) x -= rule.presence_penalty;
      row.x[id] = sane(x);
    }
    count = -1;
  }
}

void apply_masks(Workspace& w, const Row& row, const SampleRow& rule) {
  if (rule.allowed_ids) {
    w.values.clear();
    for (const int32_t id : *rule.allowed_ids) w.values.push_back(row.valid(id) ? row.x[id] : 0);
    std::fill(row.x, row.x + row.size, kMinusInf);
    for (size_t i = 0; i < w.values.size(); ++i) {
      const int32_t id = (*rule.allowed_ids)[i];
      if (row.valid(id)) row.x[id] = w.values[i];
    }
  }
  if (rule.banned_ids) {
    for (const int32_t id : *rule.banned_ids) {
      if (row.valid(id)) row.x[id] = kMinusInf;
    }
  }
  if (rule.bias) {
    for (const auto& [id, bias] : *rule.bias) {
      if (row.valid(id)) row.x[id] = sane(sane(row.x[id]) + bias);
    }
  }
}

// The id at which the running sum of weights, in the order of ids, passes `share` of their total.
int32_t pick(std::span<const Candidate> in_id_order, double share) {
  double total = 0;
  for (const auto& c : in_id_order) total += c.p;
  double left = share * total;
  for (const auto& c : in_id_order) {
    left -= c.p;
    if (left < 0) return c.id;
  }
  return in_id_order.back().id;
}

// The least likely candidate that top_p keeps: the first of the order at which the mass so far
// reaches `target`. Selects by halves, O(n) on average. Reorders the candidates.
Candidate nucleus_end(std::span<Candidate> all, double target) {
  double before = 0;
  while (all.size() > 32) {
    const size_t middle = all.size() / 2;
    std::nth_element(all.begin(), all.begin() + static_cast<ptrdiff_t>(middle), all.end(),
                     more_likely);
    double mass = 0;
    for (size_t i = 0; i < middle; ++i) mass += all[i].p;
    if (before + mass >= target) {
      all = all.first(middle);
    } else {
      before += mass;
      all = all.subspan(middle);
    }
  }
  std::ranges::sort(all, more_likely);
  for (const auto& c : all) {
    before += c.p;
    if (before >= target) return c;
  }
  return all.back();
}

// Keeps of w.candidates (in the order of ids) those that top_p leaves.
void keep_nucleus(Workspace& w, double target) {
  std::vector<Candidate> copy = w.candidates;
  const Candidate end = nucleus_end(copy, target);
  std::erase_if(w.candidates, [&](const Candidate& c) { return more_likely(end, c); });
}

// Candidates of w.ids, in their order, without those that min_p drops.
void weigh(Workspace& w, const float* x, float top, float inv_t, float min_p) {
  w.values.clear();
  for (const int32_t id : w.ids) w.values.push_back(sane(x[id]));
  w.weights.resize(w.ids.size());
  const auto n = static_cast<int64_t>(w.ids.size());
  simd_kernels().exponentials(w.weights.data(), w.values.data(), n, top, inv_t, min_p);
  w.candidates.clear();
  for (size_t i = 0; i < w.ids.size(); ++i) {
    if (w.weights[i] > 0) w.candidates.push_back({w.values[i], w.weights[i], w.ids[i]});
  }
}

// No top_k and no top_p: sums per block, then a closer look at the block that is hit.
int32_t draw_from_all(Workspace& w, const Row& row, float top, float inv_t, const SampleRow& rule) {
  constexpr int64_t kBlock = 4096;
  const auto& simd = simd_kernels();
  w.blocks.clear();
  double total = 0;
  for (int64_t i = 0; i < row.size; i += kBlock) {
    const int64_t n = std::min(kBlock, row.size - i);
    w.blocks.push_back(simd.exponentials(nullptr, row.x + i, n, top, inv_t, rule.min_p));
    total += w.blocks.back();
  }
  double left = philox_uniform(rule.seed, rule.position) * total;
  int64_t block = 0;
  int64_t last_hit = 0;  // rounding may carry `left` past the last block with any mass
  for (; block < static_cast<int64_t>(w.blocks.size()); ++block) {
    const double mass = w.blocks[static_cast<size_t>(block)];
    if (mass > 0) last_hit = block;
    if (left < mass) break;
    left -= mass;
  }
  const int64_t begin = last_hit * kBlock, n = std::min(kBlock, row.size - begin);
  w.weights.resize(static_cast<size_t>(n));
  simd.exponentials(w.weights.data(), row.x + begin, n, top, inv_t, rule.min_p);
  int64_t hit = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float p = w.weights[static_cast<size_t>(i)];
    if (p <= 0) continue;
    hit = i;
    left -= p;
    if (left < 0) break;
  }
  return static_cast<int32_t>(begin + hit);
}

// Fills w.ids with a superset of what top_p keeps, in order; returns the mass to keep.
double find_nucleus(Workspace& w, const Row& row, float top, float inv_t, const SampleRow& rule) {
  const auto& simd = simd_kernels();
  const float t = rule.temperature;
  float cuts[kMassCuts] = {1.5f, 3, 4.5f, 6, 8, 10, 14};  // below the top, in temperatures
  for (float& cut : cuts) cut = top - cut * t;
  cuts[kMassCuts - 1] = kMinusInf;
  double masses[kMassCuts];
  simd.masses(masses, cuts, row.x, row.size, top, inv_t, rule.min_p);
  const double target = rule.top_p * masses[kMassCuts - 1];
  float cut = kMinusInf;
  for (int i = kMassCuts - 2; i >= 0; --i) {
    if (masses[i] * (1 - 1e-6) >= target) cut = cuts[i];  // room for rounding
  }
  w.ids.resize(static_cast<size_t>(row.size + kMaxLanes));
  int64_t at = 0;
  const auto room = static_cast<int64_t>(w.ids.size());
  const int64_t n = simd.above(w.ids.data(), room, row.x, at, row.size, cut, cut != kMinusInf);
  w.ids.resize(static_cast<size_t>(n));
  return target;
}

// `top`: the largest logit, finite.
int32_t draw(Workspace& w, const Row& row, float top, const SampleRow& rule) {
  const float inv_t = 1.0f / rule.temperature;
  const bool by_k = rule.top_k > 0 && rule.top_k < row.size;
  const bool by_p = rule.top_p < 1.0f;
  if (!by_k && !by_p) return draw_from_all(w, row, top, inv_t, rule);
  double target = 0;
  if (by_k) {
    most_likely(w, row.x, row.size, rule.top_k);
    std::ranges::sort(w.ids);
  } else {
    target = find_nucleus(w, row, top, inv_t, rule);
  }
  weigh(w, row.x, top, inv_t, rule.min_p);
  if (by_k && by_p) {
    for (const auto& c : w.candidates) target += c.p;
    target *= rule.top_p;
  }
  if (by_p) keep_nucleus(w, target);
  return pick(w.candidates, philox_uniform(rule.seed, rule.position));
}

// What a row gives whose ids are all masked.
int32_t lowest_allowed(const Row& row, const SampleRow& rule) {
  int32_t best = std::numeric_limits<int32_t>::max();
  if (rule.allowed_ids) {
    for (const int32_t id : *rule.allowed_ids) {
      if (row.valid(id)) best = std::min(best, id);
    }
  }
  return best == std::numeric_limits<int32_t>::max() ? 0 : best;
}

void sample_row(SampleResult& result, const Row& row, const SampleRow& rule,
                const int32_t* pending) {
  Workspace& w = workspace();
  const bool describes = rule.num_logprobs >= 0;
  const bool modifies = rule.allowed_ids || rule.banned_ids || rule.bias ||
                        rule.repetition_penalty != 1.0f || rule.presence_penalty != 0 ||
                        rule.frequency_penalty != 0;
  if (describes && modifies) w.raw.assign(row.x, row.x + row.size);
  apply_masks(w, row, rule);
  apply_penalties(w, row, rule, pending);
  if (rule.temperature < kGreedyBelow) {
    result.token = static_cast<int32_t>(simd_kernels().argmax(row.x, row.size));
    if (sane(row.x[result.token]) == kMinusInf) result.token = lowest_allowed(row, rule);
  } else {
    const float top = simd_kernels().largest(row.x, row.size);
    result.token = top == kMinusInf ? lowest_allowed(row, rule) : draw(w, row, top, rule);
  }
  if (describes) describe(w, result, modifies ? w.raw.data() : row.x, row.size, rule.num_logprobs);
}

PendingSamplesPtr sample_cpu(Tensor& tokens, Tensor& logits, const std::vector<SampleRow>& rows,
                             const Tensor& previous) {
  const int64_t size = logits.size(1);
  float* x = logits.data<float>();
  int32_t* chosen = tokens.data<int32_t>();
  std::vector<SampleResult> out(rows.size());
  compute_pool().parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const auto i = static_cast<size_t>(r);
      const int32_t* pending =
          rows[i].pending < 0 ? nullptr : previous.data<int32_t>() + rows[i].pending;
      sample_row(out[i], {x + r * size, size}, rows[i], pending);
      chosen[r] = out[i].token;
    }
  });
  return std::make_unique<ReadySamples>(std::move(out));
}

PendingSamplesPtr score_cpu(const Tensor& logits, const std::vector<int32_t>& targets,
                            int32_t top) {
  const int64_t size = logits.size(1);
  const float* x = logits.data<float>();
  std::vector<SampleResult> out(targets.size());
  compute_pool().parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const auto i = static_cast<size_t>(r);
      out[i].token = targets[i];
      describe(workspace(), out[i], x + r * size, size, top);
    }
  });
  return std::make_unique<ReadySamples>(std::move(out));
}

const RegisterKernel sample_entry(sample_kernel, DeviceType::kCpu, &sample_cpu);
const RegisterKernel score_entry(score_kernel, DeviceType::kCpu, &score_cpu);

}  // namespace
}  // namespace reft
