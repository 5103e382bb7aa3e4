// Routing and the products of experts against double precision, and their gradients.
#include "ops/moe.h"

#include <algorithm>
#include <numeric>

#include "ops/op_grad.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

const bool covered = cover_ops(
    {"route", "route_backward", "place_expert", "expert_linear", "expert_input_backward",
     "expert_weight_backward", "expert_bias_backward", "gated_expert_linear", "combine_experts",
     "combine_experts_backward", "combined_expert_linear", "sigmoid_scale_rows",
     "sigmoid_scale_rows_backward", "split_pairs", "split_pairs_backward"});

using Ids = std::vector<int32_t>;

// ---- routing

struct Choice {
  Ids experts;
  Doubles weights;
};

// One token.
Choice route_oracle(const Doubles& logits, const Doubles& bias, const RouterOptions& o) {
  const size_t n = logits.size();
  Doubles scores = logits;
  if (o.score == RouterScore::kSoftmax) {
    const double top = *std::ranges::max_element(logits);
    double sum = 0;
    for (double& s : scores) sum += s = std::exp(s - top);
    for (double& s : scores) s /= sum;
  } else if (o.score == RouterScore::kSigmoid) {
    for (double& s : scores) s = 1 / (1 + std::exp(-s));
  }
  Doubles choice = scores;
  for (size_t e = 0; e < bias.size(); ++e) choice[e] += bias[e];
  const size_t groups = static_cast<size_t>(o.num_groups), size = n / groups;
  std::vector<size_t> order(groups);
  std::iota(order.begin(), order.end(), 0);
  Doubles group(groups);
  for (size_t g = 0; g < groups; ++g) {
    Doubles own(choice.begin() + static_cast<long>(g * size),
                choice.begin() + static_cast<long>((g + 1) * size));
    std::ranges::sort(own, std::greater<>());
    for (size_t i = 0; i < std::min(own.size(), static_cast<size_t>(o.group_best)); ++i)
      group[g] += own[i];
  }
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return group[a] > group[b]; });
  order.resize(static_cast<size_t>(o.top_groups));
  std::vector<size_t> experts;
  for (size_t e = 0; e < n; ++e) {
    if (std::ranges::find(order, e / size) != order.end()) experts.push_back(e);
  }
  std::ranges::stable_sort(experts, [&](size_t a, size_t b) { return choice[a] > choice[b]; });
  experts.resize(static_cast<size_t>(o.top_k));
  Choice result;
  double sum = 0;
  for (const size_t e : experts) {
    result.experts.push_back(static_cast<int32_t>(e));
    result.weights.push_back(o.score == RouterScore::kSoftmaxOfTopK ? std::exp(scores[e])
                                                                    : scores[e]);
    sum += result.weights.back();
  }
  const bool divide = o.renormalize || o.score == RouterScore::kSoftmaxOfTopK;
  for (double& w : result.weights) w *= o.scale / (divide ? sum : 1.0);
  return result;
}

struct RouterCase {
  int64_t tokens, experts;
  RouterOptions options;
  bool bias = false;
};

std::vector<RouterCase> router_cases() {
  using enum RouterScore;
  return {
      {1, 4, {.top_k = 1}},
      {3, 7, {.top_k = 7}},
      {37, 60, {.top_k = 4, .renormalize = true}},
      {5, 128, {.top_k = 8, .renormalize = true}},
      {700, 128, {.top_k = 8}},
      {33, 32, {.top_k = 4, .score = kSoftmaxOfTopK}},
      {9, 16, {.top_k = 1, .score = kSigmoid}},
      {21,
       256,
       {.top_k = 8,
        .score = kSigmoid,
        .renormalize = true,
        .scale = 2.5f,
        .num_groups = 8,
        .top_groups = 4},
       true},
      {4, 12, {.top_k = 3, .scale = 16, .num_groups = 4, .top_groups = 2, .group_best = 1}},
  };
}

void expect_sorted(const Routing& routing) {
  const Ids experts = routing.experts.to_vector<int32_t>();
  const Ids offsets = routing.offsets.to_vector<int32_t>();
  const Ids pairs = routing.pairs.to_vector<int32_t>(), rows = routing.rows.to_vector<int32_t>();
  ASSERT_EQ(offsets.front(), 0);
  ASSERT_EQ(offsets.back(), static_cast<int32_t>(experts.size()));
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    ASSERT_LE(offsets[e], offsets[e + 1]);
    for (auto r = static_cast<size_t>(offsets[e]); r < static_cast<size_t>(offsets[e + 1]); ++r) {
      const auto pair = static_cast<size_t>(pairs[r]);
      ASSERT_EQ(experts.at(pair), static_cast<int32_t>(e));
      ASSERT_EQ(rows.at(pair), static_cast<int32_t>(r));
      if (r > static_cast<size_t>(offsets[e])) {
        ASSERT_LT(pairs[r - 1], pairs[r]);
      }
    }
  }
}

TEST(Route, MatchesDouble) {
  for (const Device device : test_devices()) {
    for (const RouterCase& c : router_cases()) {
      const Tensor logits = random_values({c.tokens, c.experts}, 3, 2.0f);
      const Tensor bias = c.bias ? random_values({c.experts}, 4, 0.3f) : Tensor();
      const Routing routing =
          route(logits.to(device), bias.defined() ? bias.to(device) : bias, c.options);
      const Doubles values = doubles(logits);
      const Ids experts = routing.experts.to_vector<int32_t>();
      Doubles weights;
      for (int64_t t = 0; t < c.tokens; ++t) {
        const Doubles row(values.begin() + t * c.experts, values.begin() + (t + 1) * c.experts);
        const Choice want =
            route_oracle(row, bias.defined() ? doubles(bias) : Doubles(), c.options);
        const auto at = experts.begin() + t * c.options.top_k;
        ASSERT_EQ(Ids(at, at + c.options.top_k), want.experts) << "token " << t;
        weights.insert(weights.end(), want.weights.begin(), want.weights.end());
      }
      expect_close(routing.weights, weights, 4e-6, "weights", 1e-3);
      expect_sorted(routing);
    }
    const Routing none = route(Tensor::empty({0, 4}, DType::kF32, device), {}, {.top_k = 2});
    EXPECT_EQ(none.offsets.to_vector<int32_t>(), Ids(5, 0));
  }
}

TEST(Route, TiesAndNumbersThatAreNone) {
  for (const Device device : test_devices()) {
    const Tensor logits = Tensor::from_vector<float>(
        {1, 1, 1, 1, 1, NAN, 5, NAN, 2, 7, NAN, NAN, NAN, NAN, NAN, INFINITY, 0, 1, 2, 3}, {4, 5});
    const Routing routing =
        route(logits.to(device), {}, {.top_k = 2, .score = RouterScore::kSoftmaxOfTopK});
    EXPECT_EQ(routing.experts.to_vector<int32_t>(), (Ids{0, 1, 4, 1, 0, 1, 0, 4}));
    expect_sorted(routing);
  }
}

TEST(Route, Checks) {
  const Tensor logits = random_values({2, 8}, 1);
  EXPECT_THROW(route(logits, {}, {.top_k = 9}), Error);
  EXPECT_THROW(route(logits, {}, {.top_k = 0}), Error);
  EXPECT_THROW(route(logits, random_values({8}, 1), {.top_k = 2}), Error);
  EXPECT_THROW(route(logits, {}, {.top_k = 2, .num_groups = 3}), Error);
  EXPECT_THROW(route(logits, {}, {.top_k = 5, .num_groups = 4, .top_groups = 2}), Error);
}

TEST(Route, Gradient) {
  for (RouterCase c : router_cases()) {
    c.tokens = std::min<int64_t>(c.tokens, 4);
    const Tensor bias = c.bias ? random_values({c.experts}, 4, 0.3f) : Tensor();
    check_gradients(
        {.what = fmt::format("route {}x{}", c.tokens, c.experts),
         .inputs = {random_values({c.tokens, c.experts}, 3, 2.0f)},
         .op = [&](auto& in) { return route(in[0], bias, c.options).weights; },
         .oracle =
             [&](auto& in) {
               Doubles weights;
               const auto n = static_cast<size_t>(c.experts);
               for (size_t t = 0; t < in[0].size(); t += n) {
                 const auto at = in[0].begin() + static_cast<long>(t);
                 const Doubles row(at, at + c.experts);
                 const Choice choice =
                     route_oracle(row, bias.defined() ? doubles(bias) : Doubles(), c.options);
                 weights.insert(weights.end(), choice.weights.begin(), choice.weights.end());
               }
               return weights;
             },
         .tolerance = 3e-4});
  }
}

// ---- products

struct MoeCase {
  int64_t tokens, experts, top_k, k, n;
};

// Layer sizes of decode and prefill, sizes that are no multiple of anything, experts without rows.
const MoeCase kMoeCases[] = {{1, 4, 2, 64, 48},     {2, 8, 3, 33, 10},   {5, 6, 6, 64, 32},
                             {17, 128, 8, 128, 96}, {0, 4, 2, 64, 32},   {64, 3, 1, 192, 80},
                             {300, 8, 2, 64, 136},  {3, 16, 4, 96, 200}, {40, 60, 4, 256, 64}};

Routing make_routing(const MoeCase& c, Device device) {
  return route(random_values({c.tokens, c.experts}, 11, 2.0f).to(device), {},
               {.top_k = c.top_k, .renormalize = true});
}

// In `dtype`, and what it holds as doubles: [E, N, K].
struct TestExperts {
  ExpertWeights weights;
  Doubles values;
};
TestExperts make_experts(const MoeCase& c, DType dtype, Device device, DType compute,
                         float deviation = 0.2f) {
  TestExperts result{
      {.dtype = dtype, .num_experts = c.experts, .out_features = c.n, .in_features = c.k}, {}};
  for (int64_t e = 0; e < c.experts; ++e) {
    const Tensor matrix =
        random_values({c.n, c.k}, 100 + static_cast<uint32_t>(e), deviation).to(dtype);
    place_expert(result.weights, e, matrix, device, compute);
    const Doubles values = doubles(matrix);
    result.values.insert(result.values.end(), values.begin(), values.end());
  }
  return result;
}

// y[r] of sorted rows.
Doubles experts_oracle(const Doubles& x, const Doubles& w, const Doubles& bias, const Ids& pairs,
                       const Ids& experts, const MoeCase& c, bool tokens) {
  const auto n = static_cast<size_t>(c.n), k = static_cast<size_t>(c.k);
  Doubles y(pairs.size() * n);
  for (size_t r = 0; r < pairs.size(); ++r) {
    const auto pair = static_cast<size_t>(pairs[r]);
    const auto e = static_cast<size_t>(experts[pair]);
    const size_t source = tokens ? pair / static_cast<size_t>(c.top_k) : r;
    for (size_t i = 0; i < n; ++i) {
      double sum = bias.empty() ? 0 : bias[e * n + i];
      for (size_t j = 0; j < k; ++j) sum += x[source * k + j] * w[(e * n + i) * k + j];
      y[r * n + i] = sum;
    }
  }
  return y;
}

Doubles combine_oracle(const Doubles& x, const Doubles& weights, const Ids& pairs, size_t k,
                       size_t d) {
  Doubles y(pairs.size() / k * d);
  for (size_t r = 0; r < pairs.size(); ++r) {
    const auto pair = static_cast<size_t>(pairs[r]);
    for (size_t i = 0; i < d; ++i) y[pair / k * d + i] += weights[pair] * x[r * d + i];
  }
  return y;
}

Doubles gated_oracle(const Doubles& x, size_t f, Activation activation) {
  Doubles y;
  for (size_t row = 0; row < x.size(); row += 2 * f) {
    for (size_t i = 0; i < f; ++i) {
      double g = x[row + i], u = x[row + f + i];
      if (activation == Activation::kSilu) {
        y.push_back(g / (1 + std::exp(-g)) * u);
        continue;
      }
      g = std::min(g, 7.0);
      u = std::clamp(u, -7.0, 7.0);
      y.push_back(g / (1 + std::exp(-1.702 * g)) * (u + 1));
    }
  }
  return y;
}

TEST(ExpertLinear, MatchesDouble) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const MoeCase& c : kMoeCases) {
        const Routing routing = make_routing(c, device);
        const Ids pairs = routing.pairs.to_vector<int32_t>();
        const Ids experts = routing.experts.to_vector<int32_t>();
        const DType stored = device.type == DeviceType::kCpu ? DType::kBF16 : dtype;
        const TestExperts w = make_experts(c, stored, device, dtype);
        const Tensor bias = random_values({c.experts, c.n}, 5);
        const double bar = tolerance(dtype) * std::sqrt(static_cast<double>(c.k));
        for (const bool tokens : {true, false}) {
          const Tensor x =
              random_values({tokens ? c.tokens : routing.num_rows(), c.k}, 7).to(dtype);
          const auto input = tokens ? ExpertInput::kTokens : ExpertInput::kRows;
          const std::string what =
              fmt::format("{} T{} E{} k{} K{} N{} {}", dtype_name(dtype), c.tokens, c.experts,
                          c.top_k, c.k, c.n, tokens ? "tokens" : "rows");
          for (const bool with_bias : {false, true}) {
            const Tensor b = with_bias ? bias.to(device) : Tensor();
            const Doubles want =
                experts_oracle(doubles(x), w.values, with_bias ? doubles(bias) : Doubles(), pairs,
                               experts, c, tokens);
            expect_close(expert_linear(x.to(device), input, routing, w.weights, b), want, bar,
                         what);
            if (tokens) {
              for (const Activation a : {Activation::kSilu, Activation::kClampedSwiglu}) {
                expect_close(gated_expert_linear(x.to(device), routing, w.weights, b, a),
                             gated_oracle(want, static_cast<size_t>(c.n / 2), a), 4 * bar,
                             what + " gated");
              }
            } else {
              expect_close(combined_expert_linear(x.to(device), routing, w.weights, b),
                           combine_oracle(want, doubles(routing.weights), pairs,
                                          static_cast<size_t>(c.top_k), static_cast<size_t>(c.n)),
                           2 * bar, what + " combined");
            }
          }
        }
      }
    }
  }
}

// 4-bit weights stay 4-bit: multiplied as they are, not expanded.
TEST(ExpertLinear, BlockFormats) {
  for (const Device device : test_devices()) {
    const bool cpu = device.type == DeviceType::kCpu;
    for (const DType format : {DType::kMXFP4, DType::kQ8_0}) {
      for (const MoeCase& c : {MoeCase{1, 4, 2, 64, 48},
                               {5, 6, 3, 160, 64},
                               {90, 8, 2, 128, 128},
                               {33, 32, 4, 96, 32}}) {
        const DType compute = DType::kBF16, activations = cpu ? DType::kF32 : compute;
        const Routing routing = make_routing(c, device);
        const TestExperts w = make_experts(c, format, device, compute);
        if (format == DType::kMXFP4) {
          EXPECT_LT(w.weights.nbytes(), c.experts * (c.n + 31) * c.k * 5 / 8);
        }
        const Tensor x = random_values({c.tokens, c.k}, 7).to(activations);
        const Tensor bias = random_values({c.experts, c.n}, 5);
        const Doubles want =
            experts_oracle(doubles(x), w.values, doubles(bias), routing.pairs.to_vector<int32_t>(),
                           routing.experts.to_vector<int32_t>(), c, true);
        const std::string what = fmt::format("{} T{} K{}", dtype_name(format), c.tokens, c.k);
        const double bar = (cpu ? 1e-4 : tolerance(compute)) * std::sqrt(static_cast<double>(c.k));
        expect_close(
            expert_linear(x.to(device), ExpertInput::kTokens, routing, w.weights, bias.to(device)),
            want, bar, what);
        expect_close(gated_expert_linear(x.to(device), routing, w.weights, bias.to(device),
                                         Activation::kSilu),
                     gated_oracle(want, static_cast<size_t>(c.n / 2), Activation::kSilu), 4 * bar,
                     what);
        const Tensor rows = random_values({routing.num_rows(), c.k}, 8).to(activations);
        const Doubles products =
            experts_oracle(doubles(rows), w.values, {}, routing.pairs.to_vector<int32_t>(),
                           routing.experts.to_vector<int32_t>(), c, false);
        expect_close(
            combined_expert_linear(rows.to(device), routing, w.weights),
            combine_oracle(products, doubles(routing.weights), routing.pairs.to_vector<int32_t>(),
                           static_cast<size_t>(c.top_k), static_cast<size_t>(c.n)),
            2 * bar, what);
      }
    }
  }
}

TEST(ExpertLinear, Checks) {
  const MoeCase c{3, 4, 2, 32, 16};
  const Routing routing = make_routing(c, kCpuDevice);
  TestExperts w = make_experts(c, DType::kF32, kCpuDevice, DType::kF32);
  const auto rows = ExpertInput::kRows;
  EXPECT_THROW(expert_linear(random_values({3, 32}, 1), rows, routing, w.weights), Error);
  EXPECT_THROW(expert_linear(random_values({6, 31}, 1), rows, routing, w.weights), Error);
  EXPECT_THROW(
      expert_linear(random_values({6, 32}, 1), rows, routing, w.weights, random_values({16}, 1)),
      Error);
  EXPECT_THROW(place_expert(w.weights, 4, random_values({16, 32}, 1), kCpuDevice, DType::kF32),
               Error);
  EXPECT_THROW(place_expert(w.weights, 0, random_values({15, 32}, 1), kCpuDevice, DType::kF32),
               Error);
}

TEST(ExpertLinear, Gradient) {
  for (const MoeCase& c : {MoeCase{3, 4, 2, 5, 4}, {1, 3, 3, 4, 6}, {6, 5, 1, 3, 2}}) {
    const Routing routing = make_routing(c, kCpuDevice);
    const Ids pairs = routing.pairs.to_vector<int32_t>();
    const Ids experts = routing.experts.to_vector<int32_t>();
    for (const bool tokens : {true, false}) {
      for (const bool transposed : {false, true}) {
        const Shape shape = transposed ? Shape{c.experts, c.k, c.n} : Shape{c.experts, c.n, c.k};
        check_gradients(
            {.what = fmt::format("expert_linear T{}, {}{}", c.tokens, tokens ? "tokens" : "rows",
                                 transposed ? ", transposed" : ""),
             .inputs = {random_values({tokens ? c.tokens : routing.num_rows(), c.k}, 1),
                        random_values(shape, 2), random_values({c.experts, c.n}, 3)},
             .op =
                 [&](auto& in) {
                   const ExpertWeights weights{.num_experts = c.experts,
                                               .out_features = c.n,
                                               .in_features = c.k,
                                               .data = in[1],
                                               .transposed = transposed};
                   return expert_linear(in[0], tokens ? ExpertInput::kTokens : ExpertInput::kRows,
                                        routing, weights, in[2]);
                 },
             .oracle =
                 [&](auto& in) {
                   Doubles w = in[1];
                   const auto n = static_cast<size_t>(c.n), k = static_cast<size_t>(c.k);
                   for (size_t i = 0; transposed && i < w.size(); ++i) {
                     const size_t e = i / (n * k), row = i / k % n, column = i % k;
                     w[i] = in[1][(e * k + column) * n + row];
                   }
                   return experts_oracle(in[0], w, in[2], pairs, experts, c, tokens);
                 }});
      }
    }
  }
}

TEST(CombineExperts, Gradient) {
  const MoeCase c{5, 6, 3, 0, 7};
  Routing routing = make_routing(c, kCpuDevice);
  const Ids pairs = routing.pairs.to_vector<int32_t>();
  check_gradients({.what = "combine_experts",
                   .inputs = {random_values({routing.num_rows(), c.n}, 1),
                              random_values({c.tokens, c.top_k}, 2)},
                   .op =
                       [&](auto& in) {
                         routing.weights = in[1];
                         return combine_experts(in[0], routing);
                       },
                   .oracle =
                       [&](auto& in) {
                         return combine_oracle(in[0], in[1], pairs, 3, static_cast<size_t>(c.n));
                       }});
}

TEST(SigmoidScaleRows, MatchesDouble) {
  const auto oracle = [](const Doubles& x, const Doubles& gate, size_t d) {
    Doubles y = x;
    for (size_t i = 0; i < y.size(); ++i) y[i] /= 1 + std::exp(-gate[i / d]);
    return y;
  };
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      const Tensor x = random_values({5, 36}, 1).to(dtype), gate = random_values({5, 1}, 2, 3.0f);
      expect_close(sigmoid_scale_rows(x.to(device), gate.to(device)),
                   oracle(doubles(x), doubles(gate), 36), tolerance(dtype), "sigmoid_scale_rows");
    }
  }
  check_gradients({.what = "sigmoid_scale_rows",
                   .inputs = {random_values({4, 6}, 1), random_values({4, 1}, 2)},
                   .op = [](auto& in) { return sigmoid_scale_rows(in[0], in[1]); },
                   .oracle = [&](auto& in) { return oracle(in[0], in[1], 6); }});
}

TEST(SplitPairs, Gradient) {
  for (const int64_t rows : {0, 1, 5}) {
    check_gradients({.what = "split_pairs",
                     .inputs = {random_values({rows, 6}, 1)},
                     .op = [](auto& in) { return split_pairs(in[0]); },
                     .oracle =
                         [](auto& in) {
                           Doubles y(in[0].size());
                           for (size_t i = 0; i < y.size(); ++i)
                             y[i / 6 * 6 + i % 2 * 3 + i % 6 / 2] = in[0][i];
                           return y;
                         }});
  }
  const Tensor y = split_pairs(Tensor::from_vector<float>({1, 2, 3, 4}, {1, 4}));
  EXPECT_EQ(y.to_vector<float>(), (std::vector<float>{1, 3, 2, 4}));
}

}  // namespace
}  // namespace reft
