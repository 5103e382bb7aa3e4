#include "ops/sampling.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "ops/op_cases.h"
#include "ops/philox.h"

namespace reft {
namespace {

const bool covered = cover_ops({"sample", "score"});

using Ids = std::vector<int32_t>;
using Pairs = std::vector<std::pair<int32_t, float>>;

// The documented order of effects, written plainly: a full sort, doubles. Returns the probability
// of every id.
std::vector<double> oracle(std::vector<double> x, const SampleRow& row) {
  const auto size = static_cast<int32_t>(x.size());
  if (row.allowed_ids) {
    for (int32_t i = 0; i < size; ++i) {
      if (std::ranges::find(*row.allowed_ids, i) == row.allowed_ids->end()) x[i] = -INFINITY;
    }
  }
  if (row.banned_ids) {
    for (const int32_t id : *row.banned_ids) x[id] = -INFINITY;
  }
  if (row.bias) {
    for (const auto& [id, value] : *row.bias) x[id] += value;
  }
  std::map<int32_t, int> counts;
  if (row.prompt_ids) {
    for (const int32_t id : *row.prompt_ids) counts[id] += 0;
  }
  if (row.output_ids) {
    for (const int32_t id : *row.output_ids) counts[id] += 1;
  }
  for (const auto& [id, count] : counts) {
    x[id] = x[id] > 0 ? x[id] / row.repetition_penalty : x[id] * row.repetition_penalty;
    x[id] -= row.frequency_penalty * count + (count > 0 ? row.presence_penalty : 0);
  }
  Ids order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  std::vector<double> p(x.size());
  if (row.temperature < 1e-5f) {
    p[order[0]] = 1;
    return p;
  }
  const double top = x[order[0]];
  for (int32_t i = 0; i < size; ++i) p[i] = std::exp((x[i] - top) / row.temperature);
  for (double& value : p) {
    if (value < row.min_p) value = 0;
  }
  if (row.top_k > 0) {
    for (size_t i = static_cast<size_t>(row.top_k); i < order.size(); ++i) p[order[i]] = 0;
  }
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  double before = 0;
  for (const int32_t id : order) {
    const double mass = p[id] / total;
    if (before >= row.top_p && before > 0) p[id] = 0;
    before += mass;
  }
  const double kept = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= kept;
  return p;
}

Tensor logits_of(const std::vector<float>& row, int64_t copies, Device device) {
  std::vector<float> all;
  for (int64_t i = 0; i < copies; ++i) all.insert(all.end(), row.begin(), row.end());
  return Tensor::from_vector(all, {copies, static_cast<int64_t>(row.size())}).to(device);
}

// Draws at positions 0 … n−1 and compares the counts with the oracle's probabilities by chi-square.
void expect_distribution(const std::vector<float>& logits, const SampleRow& row,
                         const std::string& what) {
  constexpr int kDraws = 20000;
  const std::vector<double> p = oracle({logits.begin(), logits.end()}, row);
  for (const Device device : test_devices()) {
    std::vector<SampleRow> rows(kDraws, row);
    for (int i = 0; i < kDraws; ++i) rows[i].position = static_cast<uint64_t>(i);
    Tensor x = logits_of(logits, kDraws, device);
    std::vector<double> counts(logits.size());
    for (const auto& result : sample(x, rows)) counts[result.token] += 1;
    double chi = 0;
    int cells = -1;
    for (size_t i = 0; i < p.size(); ++i) {
      if (p[i] == 0) {
        EXPECT_EQ(counts[i], 0) << what << ": id " << i << " must not be drawn";
        continue;
      }
      const double expected = p[i] * kDraws;
      chi += (counts[i] - expected) * (counts[i] - expected) / expected;
      ++cells;
    }
    // Wilson-Hilferty: chi-square's quantile at 4.5 standard deviations.
    const double k = std::max(1, cells);
    const double limit = k * std::pow(1 - 2 / (9 * k) + 4.5 * std::sqrt(2 / (9 * k)), 3);
    EXPECT_LT(chi, limit) << what;
  }
}

const std::vector<float> kLogits = {1.0f, 2.5f, -0.5f, 2.0f, 0.0f, 1.5f, -1.0f, 2.2f};

TEST(Sample, Distributions) {
  const Ids prompt = {0, 1, 6}, output = {3, 3, 7, 6}, allowed = {0, 2, 3, 5}, banned = {1, 3};
  const Pairs bias = {{4, 2.5f}, {1, -3.0f}};
  expect_distribution(kLogits, {.seed = 1}, "plain");
  expect_distribution(kLogits, {.temperature = 0.5f, .seed = 2}, "temperature 0.5");
  expect_distribution(kLogits, {.temperature = 3.0f, .seed = 3}, "temperature 3");
  expect_distribution(kLogits, {.top_k = 3, .seed = 4}, "top_k");
  expect_distribution(kLogits, {.top_k = 1, .seed = 4}, "top_k 1");
  expect_distribution(kLogits, {.top_k = 100, .seed = 4}, "top_k over V");
  expect_distribution(kLogits, {.top_k = -1, .seed = 4}, "top_k -1");
  expect_distribution(kLogits, {.top_p = 0.7f, .seed = 5}, "top_p");
  expect_distribution(kLogits, {.top_p = 1e-6f, .seed = 5}, "top_p tiny");
  expect_distribution(kLogits, {.min_p = 0.3f, .seed = 6}, "min_p");
  expect_distribution(kLogits, {.min_p = 1.0f, .seed = 6}, "min_p 1");
  expect_distribution(kLogits,
                      {.temperature = 1.5f, .top_k = 6, .top_p = 0.8f, .min_p = 0.2f, .seed = 7},
                      "all filters");
  expect_distribution(
      kLogits,
      {.repetition_penalty = 1.8f, .seed = 8, .prompt_ids = &prompt, .output_ids = &output},
      "repetition");
  expect_distribution(
      kLogits, {.presence_penalty = 1.2f, .seed = 9, .prompt_ids = &prompt, .output_ids = &output},
      "presence");
  expect_distribution(
      kLogits,
      {.frequency_penalty = 0.8f, .seed = 10, .prompt_ids = &prompt, .output_ids = &output},
      "frequency");
  expect_distribution(kLogits,
                      {.repetition_penalty = 0.7f,
                       .presence_penalty = -0.5f,
                       .frequency_penalty = 0.4f,
                       .seed = 11,
                       .prompt_ids = &prompt,
                       .output_ids = &output},
                      "all penalties");
  expect_distribution(kLogits, {.seed = 12, .bias = &bias}, "bias");
  expect_distribution(kLogits, {.seed = 13, .allowed_ids = &allowed}, "allowed");
  expect_distribution(kLogits, {.seed = 14, .banned_ids = &banned}, "banned");
  expect_distribution(kLogits,
                      {.temperature = 0.8f,
                       .top_k = 4,
                       .top_p = 0.9f,
                       .repetition_penalty = 1.3f,
                       .frequency_penalty = 0.1f,
                       .seed = 15,
                       .prompt_ids = &prompt,
                       .output_ids = &output,
                       .bias = &bias,
                       .allowed_ids = &allowed,
                       .banned_ids = &banned},
                      "everything");
}

TEST(Sample, GreedyPicksTheHighestAfterPenalties) {
  const Ids output = {1}, empty;
  const Pairs bias = {{6, 10.0f}};
  for (const Device device : test_devices()) {
    Tensor x = logits_of(kLogits, 5, device);
    const std::vector<SampleRow> rows = {
        {.temperature = 0},
        {.temperature = 0, .repetition_penalty = 1.5f, .output_ids = &output},
        {.temperature = 0, .presence_penalty = 1.0f, .prompt_ids = &output, .output_ids = &empty},
        {.temperature = 0, .bias = &bias},
        {.temperature = 1e-30f, .top_p = 0.1f},
    };
    const auto out = sample(x, rows);
    Ids tokens;
    for (const auto& result : out) tokens.push_back(result.token);
    EXPECT_EQ(tokens, (Ids{1, 7, 1, 6, 1}));
  }
}

TEST(Sample, TiesGoToTheLowestId) {
  for (const Device device : test_devices()) {
    std::vector<float> flat(1000, 0.25f);
    Tensor x = logits_of(flat, 3, device);
    const auto out =
        sample(x, {{.temperature = 0, .num_logprobs = 3}, {.top_k = 1}, {.top_p = 1e-9f}});
    for (const auto& result : out) EXPECT_EQ(result.token, 0);
    EXPECT_EQ(out[0].rank, 1);
    ASSERT_EQ(out[0].top.size(), 3u);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(out[0].top[i].first, i);
      EXPECT_NEAR(out[0].top[i].second, -std::log(1000), 1e-5);
    }
    // Exactly top_k ids survive, the lowest.
    std::vector<SampleRow> rows(4000, SampleRow{.top_k = 7, .seed = 3});
    for (size_t i = 0; i < rows.size(); ++i) rows[i].position = i;
    Tensor many = logits_of(flat, 4000, device);
    Ids seen(1000);
    for (const auto& result : sample(many, rows)) ++seen[result.token];
    for (int i = 0; i < 1000; ++i) EXPECT_EQ(seen[i] > 0, i < 7) << i;
  }
}

// Every combination over a large vocabulary gives the very token that the oracle's inverse CDF
// gives.
TEST(Sample, LargeVocabularyMatchesTheOracleTokenByToken) {
  constexpr int64_t kVocab = 151936;
  std::vector<SampleRow> kinds = {
      {},
      {.temperature = 0.7f},
      {.temperature = 5.0f},
      {.temperature = 1e4f},
      {.top_k = 1},
      {.top_k = 50},
      {.top_k = 5000},
      {.top_k = 120000},
      {.top_p = 0.95f},
      {.top_p = 0.3f},
      {.temperature = 100.0f, .top_p = 0.9f},
      {.temperature = 0.2f, .top_p = 0.9f},
      {.min_p = 0.05f},
      {.top_p = 0.9f, .min_p = 0.01f},
      {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f},
      {.temperature = 1.3f, .top_k = 1000, .top_p = 0.5f, .min_p = 0.001f},
      {.temperature = 2.0f, .top_p = 0.999999f},
      {.temperature = 0.0001f},
      {.temperature = 1e-30f}};
  for (const Device device : test_devices()) {
    for (const float deviation : {3.0f, 0.05f}) {
      const Tensor values = random_values({1, kVocab}, 21, deviation);
      // Coarse values make ties at every boundary.
      for (int64_t i = 0; i < kVocab; i += 2)
        values.data<float>()[i] = std::round(values.data<float>()[i] * 4) / 4;
      for (size_t i = 0; i < kinds.size(); ++i) {
        SampleRow row = kinds[i];
        row.seed = 99 + i;
        std::vector<double> p = oracle(doubles(values), row);
        std::vector<SampleRow> rows;
        for (uint64_t position = 0; position < 4; ++position) {
          rows.push_back(row);
          rows.back().position = position;
        }
        Tensor x = logits_of(values.to_vector<float>(), 4, device);
        const auto out = sample(x, rows);
        for (const auto& r : rows) {
          const double u = philox_uniform(r.seed, r.position);
          const int32_t token = out[r.position].token;
          double before = 0;
          for (int32_t id = 0; id < token; ++id) before += p[id];
          const double slack = 2e-6;  // fp32 exponentials
          EXPECT_GT(p[token], 0) << "kind " << i << " token " << token;
          EXPECT_GE(u, before - slack) << "kind " << i << " deviation " << deviation;
          EXPECT_LE(u, before + p[token] + slack) << "kind " << i << " deviation " << deviation;
        }
      }
    }
  }
}

TEST(Sample, DependsOnSeedAndPositionAlone) {
  for (const Device device : test_devices()) {
    const std::vector<float> values = random_values({1, 5000}, 1).to_vector<float>();
    std::vector<SampleRow> rows;
    for (uint64_t i = 0; i < 40; ++i) {
      rows.push_back({.temperature = 1.0f + 0.1f * static_cast<float>(i % 3),
                      .top_p = i % 2 ? 0.9f : 1.0f,
                      .seed = i % 5,
                      .position = i});
    }
    Tensor x = logits_of(values, 40, device);
    const auto together = sample(x, rows);
    std::set<int32_t> distinct;
    for (size_t i = 0; i < rows.size(); ++i) {
      Tensor one = logits_of(values, 1, device);
      EXPECT_EQ(sample(one, {rows[i]})[0].token, together[i].token);
      distinct.insert(together[i].token);
    }
    EXPECT_GT(distinct.size(), 20u);
  }
}

TEST(Sample, LogprobsAreOfTheUnmodifiedLogits) {
  for (const Device device : test_devices()) {
    const std::vector<float> values = random_values({1, 3000}, 5, 2.0f).to_vector<float>();
    double sum = 0;
    for (const float v : values) sum += std::exp(static_cast<double>(v));
    Ids order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return values[a] > values[b]; });
    const Ids banned = {order[0], order[1]}, allowed = {order[2000], order[1500]};
    Tensor x = logits_of(values, 5, device);
    const auto out = sample(x, {{.temperature = 0, .banned_ids = &banned, .num_logprobs = 5},
                                {.temperature = 0.5f, .top_k = 3, .num_logprobs = 0},
                                {.temperature = 0, .allowed_ids = &allowed, .num_logprobs = 20},
                                {.temperature = 0, .num_logprobs = -1},
                                {.num_logprobs = 5000}});
    EXPECT_EQ(out[0].token, order[2]);
    EXPECT_EQ(out[0].rank, 3);
    EXPECT_EQ(out[2].token, order[1500]);
    EXPECT_EQ(out[2].rank, 1501);
    EXPECT_TRUE(out[3].top.empty());
    const size_t counts[] = {5, 0, 20, 0, 3000};
    for (size_t r = 0; r < 5; ++r) {
      if (r != 3) {
        EXPECT_NEAR(out[r].logprob, values[out[r].token] - std::log(sum), 2e-6);
      }
      ASSERT_EQ(out[r].top.size(), counts[r]);
      for (size_t i = 0; i < out[r].top.size(); ++i) {
        EXPECT_EQ(out[r].top[i].first, order[i]);
        EXPECT_NEAR(out[r].top[i].second, values[order[i]] - std::log(sum), 3e-6);
      }
    }
  }
}

TEST(Sample, WildLogits) {
  const float inf = INFINITY;
  const Ids allowed = {3, 1}, empty, out_of_range = {-5, 4, 1 << 30}, all = {0, 1, 2, 3};
  const Pairs bias = {{0, 1e9f}, {-1, 5.0f}, {77, 5.0f}};
  for (const Device device : test_devices()) {
    const auto one = [&](std::vector<float> values, SampleRow row) {
      row.num_logprobs = 2;
      Tensor x = logits_of(values, 1, device);
      return sample(x, {row})[0];
    };
    for (const float temperature : {0.0f, 1.0f}) {
      const SampleRow row{.temperature = temperature};
      EXPECT_EQ(one({NAN, 1, -inf, NAN}, row).token, 1);
      EXPECT_EQ(one({-inf, -inf, -inf, 0}, row).token, 3);
      EXPECT_EQ(one({0, inf, 5, 5}, row).token, 1);
      EXPECT_NEAR(one({0, inf, 5, 5}, row).logprob, 0, 1e-6);
      EXPECT_EQ(one({-inf, -inf, -inf, -inf}, row).token, 0);
      EXPECT_EQ(one({NAN, NAN, NAN, NAN}, row).token, 0);
      EXPECT_EQ(one({NAN, NAN, NAN, NAN}, row).logprob, -inf);
      EXPECT_EQ(one({1, 2, 3, 4}, {.temperature = temperature, .banned_ids = &all}).token, 0);
      EXPECT_EQ(
          one({1, -inf, 3, -inf}, {.temperature = temperature, .allowed_ids = &allowed}).token, 1);
      EXPECT_EQ(one({9, 1, 3, 100}, {.temperature = temperature, .allowed_ids = &allowed}).token,
                3);
      EXPECT_EQ(one({9, 1, 3, 100}, {.temperature = temperature, .allowed_ids = &empty}).token, 0);
      EXPECT_EQ(one({0, 1, 2, 100}, {.temperature = temperature,
                                     .repetition_penalty = 1.1f,
                                     .presence_penalty = 1,
                                     .prompt_ids = &out_of_range,
                                     .output_ids = &out_of_range,
                                     .banned_ids = &out_of_range})
                    .token,
                3);
      EXPECT_EQ(one({0, 1, 2, 100}, {.temperature = temperature, .bias = &bias}).token, 0);
      EXPECT_EQ(one({3e38f, -3e38f, 0, 1}, {.temperature = temperature, .top_p = 0.9f}).token, 0);
      EXPECT_EQ(
          one({-3e38f, -3e38f, -inf, -3.3e38f}, {.temperature = temperature, .top_k = 1}).token, 0);
      EXPECT_EQ(one({5}, row).token, 0);
    }
  }
}

// The token that only the device knows counts like one of output_ids.
TEST(Sample, CountsThePendingToken) {
  const Ids before = {5, 9}, all = {5, 9, 3};
  for (const Device device : test_devices()) {
    const std::vector<float> values = random_values({1, 2000}, 4).to_vector<float>();
    const Tensor previous = Tensor::from_vector(Ids{5, 3}).to(device);
    for (const SampleRow& kind :
         {SampleRow{.frequency_penalty = 3.0f}, SampleRow{.repetition_penalty = 1.7f},
          SampleRow{.temperature = 0, .presence_penalty = 9.0f}}) {
      std::vector<SampleRow> known(50, kind);
      for (size_t i = 0; i < known.size(); ++i) {
        known[i].position = i;
        known[i].num_logprobs = 0;
      }
      std::vector<SampleRow> pending = known;
      for (SampleRow& row : known) row.output_ids = &all;
      for (SampleRow& row : pending) {
        row.output_ids = &before;
        row.pending = 1;
      }
      std::vector<float> likely = values;
      likely[3] = 8;  // without the penalty it would be drawn most of the time
      Tensor x = logits_of(likely, 50, device), y = logits_of(likely, 50, device);
      Tensor tokens = Tensor::zeros({50}, DType::kI32, device);
      const auto want = sample(x, known);
      const PendingSamplesPtr got = start_sample(tokens, y, pending, previous);
      const Ids left_there = tokens.to_vector<int32_t>();
      const auto results = got->wait();
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_EQ(results[i].token, want[i].token);
        EXPECT_EQ(left_there[i], want[i].token);
      }
    }
  }
}

// Rows of all kinds in one call, for vocabularies whose rows fit on chip and ones that do not.
TEST(Sample, DevicesChooseTheSameTokens) {
  const Ids prompt = {1, 2, 3, 77}, output = {5, 5, 6, 1000}, banned = {9, 10};
  const Pairs bias = {{12, 2.0f}, {13, -2.0f}};
  for (const int64_t vocab : {2000, 49152, 262144, 600001}) {
    Ids allowed;
    for (int32_t id = 0; id < vocab; id += 3) allowed.push_back(id);
    const std::vector<SampleRow> kinds = {
        {},
        {.temperature = 0},
        {.temperature = 0, .num_logprobs = 0},
        {.temperature = 0.8f, .num_logprobs = 20},
        {.top_k = 40},
        {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f},
        {.top_p = 0.9f, .num_logprobs = 3},
        {.min_p = 0.1f},
        {.repetition_penalty = 1.2f, .prompt_ids = &prompt, .output_ids = &output},
        {.frequency_penalty = 0.5f, .output_ids = &output, .num_logprobs = 5},
        {.bias = &bias, .banned_ids = &banned},
        {.top_p = 0.5f, .allowed_ids = &allowed, .num_logprobs = 1}};
    std::vector<SampleRow> rows;
    for (uint64_t i = 0; i < 36; ++i) {
      rows.push_back(kinds[i % kinds.size()]);
      rows.back().seed = 7;
      rows.back().position = i;
    }
    const Tensor values = random_values({36, vocab}, 3, 2.5f);
    Tensor copy = Tensor::empty(values.shape(), DType::kF32);
    copy.copy_from(values);
    const auto want = sample(copy, rows);
    for (const Device device : test_devices()) {
      if (device == kCpuDevice) continue;
      Tensor x = values.to(device);
      const auto got = sample(x, rows);
      for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_EQ(got[i].token, want[i].token) << "row " << i << " of " << vocab;
        if (rows[i].num_logprobs < 0) continue;
        EXPECT_NEAR(got[i].logprob, want[i].logprob, 3e-6);
        EXPECT_EQ(got[i].rank, want[i].rank);
        ASSERT_EQ(got[i].top.size(), want[i].top.size());
        for (size_t j = 0; j < want[i].top.size(); ++j)
          EXPECT_EQ(got[i].top[j].first, want[i].top[j].first);
      }
    }
  }
}

TEST(Sample, RefusesBadShapes) {
  Tensor x = logits_of(kLogits, 2, kCpuDevice);
  EXPECT_THROW(sample(x, {SampleRow{}}), Error);
  Tensor none = Tensor::empty({0, 8}, DType::kF32);
  EXPECT_TRUE(sample(none, {}).empty());
  EXPECT_THROW(score(x, {1, 8}, 0), Error);
  EXPECT_THROW(score(x, {1, -1}, 0), Error);
  EXPECT_THROW(score(x, {1}, 0), Error);
  Tensor tokens = Tensor::empty({2}, DType::kI32), few = Tensor::empty({1}, DType::kI32);
  EXPECT_THROW(start_sample(few, x, {SampleRow{}, SampleRow{}}), Error);
  EXPECT_THROW(start_sample(tokens, x, {SampleRow{}, {.pending = 0}}), Error);
  EXPECT_THROW(start_sample(tokens, x, {SampleRow{}, {.pending = 1}}, few), Error);
}

TEST(Score, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const int64_t vocab : {1, 7, 1000, 49152}) {
      const Tensor values = random_values({3, vocab}, 8, 4.0f);
      Ids targets = {0, static_cast<int32_t>(vocab / 2), static_cast<int32_t>(vocab - 1)};
      const Tensor moved = values.to(device);
      const auto out = score(moved, targets, 5);
      EXPECT_EQ(moved.to_vector<float>(), values.to_vector<float>());  // unchanged
      for (size_t r = 0; r < 3; ++r) {
        const float* x = values.data<float>() + static_cast<int64_t>(r) * vocab;
        double sum = 0;
        int rank = 1;
        for (int64_t i = 0; i < vocab; ++i) {
          sum += std::exp(static_cast<double>(x[i]));
          rank += x[i] > x[targets[r]];
        }
        EXPECT_EQ(out[r].token, targets[r]);
        EXPECT_EQ(out[r].rank, rank);
        EXPECT_NEAR(out[r].logprob, x[targets[r]] - std::log(sum), 3e-6);
        ASSERT_EQ(out[r].top.size(), static_cast<size_t>(std::min<int64_t>(5, vocab)));
        EXPECT_NEAR(out[r].top[0].second, *std::max_element(x, x + vocab) - std::log(sum), 3e-6);
        for (size_t i = 1; i < out[r].top.size(); ++i)
          EXPECT_GE(out[r].top[i - 1].second, out[r].top[i].second);
      }
    }
  }
}

// Random123's published vectors.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox(0, 0),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint64_t ones = ~uint64_t{0};
  EXPECT_EQ(philox(ones, ones, ones),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

}  // namespace
}  // namespace reft
