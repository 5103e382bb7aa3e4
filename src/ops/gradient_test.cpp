// Gradients of the ops (attention's are in attention_grad_test.cpp).
#include <cmath>

#include "ops/activation.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/loss.h"
#include "ops/norm.h"
#include "ops/op_grad.h"

namespace reft {
namespace {

const bool covered =
    cover_ops({"rms_norm_backward", "add_rms_norm_backward", "gated_activation_backward",
               "soft_cap_backward", "scatter_add_rows", "linear_input_backward",
               "linear_weight_backward", "column_sums", "cross_entropy"});

constexpr float kEps = 0.05f;  // large: with a row of one value the gradient is eps's alone

Doubles norm_oracle(const Doubles& x, const Doubles& w, NormKind kind) {
  const size_t n = w.size();
  Doubles y(x.size());
  for (size_t row = 0; row < x.size(); row += n) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += x[row + i] * x[row + i];
    const double scale = 1 / std::sqrt(sum / static_cast<double>(n) + kEps);
    for (size_t i = 0; i < n; ++i)
      y[row + i] = x[row + i] * scale * (w[i] + (kind == NormKind::kOnePlus ? 1 : 0));
  }
  return y;
}

const NormKind kKinds[] = {NormKind::kPlain, NormKind::kFloat, NormKind::kOnePlus};

TEST(Gradient, RmsNorm) {
  for (const NormKind kind : kKinds) {
    for (const auto& [rows, dim] :
         {std::pair(1, 1), {3, 5}, {0, 8}, {2, 64}, {130, 33}, {3, 520}}) {
      check_gradients(
          {.what = fmt::format("rms_norm {}x{}", rows, dim),
           .inputs = {random_values({rows, dim}, 1), random_values({dim}, 2, 0.5f, 1.0f)},
           .op = [&](auto& in) { return rms_norm(in[0], in[1], kEps, kind); },
           .oracle = [&](auto& in) { return norm_oracle(in[0], in[1], kind); }});
    }
  }
  check_gradients(
      {.what = "rms_norm without a weight",
       .inputs = {random_values({3, 20}, 1)},
       .op = [&](auto& in) { return rms_norm(in[0], Tensor(), kEps); },
       .oracle = [&](auto& in) { return norm_oracle(in[0], Doubles(20, 1.0), NormKind::kPlain); }});
}

// The residual goes on: y and residual · norm(…) both reach the loss.
TEST(Gradient, AddRmsNorm) {
  for (const NormKind kind : kKinds) {
    for (const auto& [rows, dim] : {std::pair(1, 1), {3, 5}, {0, 8}, {2, 64}, {70, 33}, {3, 520}}) {
      check_gradients({.what = fmt::format("add_rms_norm {}x{}", rows, dim),
                       .inputs = {random_values({rows, dim}, 1), random_values({rows, dim}, 2),
                                  random_values({dim}, 3, 0.5f, 1.0f)},
                       .op =
                           [&](auto& in) {
                             Tensor residual = in[0];
                             const Tensor y = add_rms_norm(residual, in[1], in[2], kEps, kind);
                             return add_rms_norm(residual, y, in[2], kEps, kind);
                           },
                       .oracle =
                           [&](auto& in) {
                             Doubles sum = in[0];
                             for (size_t i = 0; i < sum.size(); ++i) sum[i] += in[1][i];
                             const Doubles y = norm_oracle(sum, in[2], kind);
                             for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[i];
                             return norm_oracle(sum, in[2], kind);
                           },
                       // two sums, two results, and the gradients of both
                       .roundings = 8});
    }
  }
}

TEST(Gradient, AddInto) {
  check_gradients({.what = "add_into",
                   .inputs = {random_values({3, 7}, 1), random_values({3, 7}, 2)},
                   .op =
                       [](auto& in) {
                         Tensor sum = in[0];
                         add_into(sum, in[1]);
                         add_into(sum, in[0]);
                         return sum;
                       },
                   .oracle =
                       [](auto& in) {
                         Doubles y = in[0];
                         for (size_t i = 0; i < y.size(); ++i) y[i] = 2 * y[i] + in[1][i];
                         return y;
                       }});
}

double activate(double x, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::kRelu:
      return std::max(0.0, x);
    case Activation::kClampedSwiglu:
      return std::min(x, 7.0) / (1 + std::exp(-1.702 * std::min(x, 7.0)));
  }
  return 0;
}

double gated(double gate, double up, Activation activation) {
  if (activation == Activation::kClampedSwiglu) up = std::clamp(up, -7.0, 7.0) + 1;
  return activate(gate, activation) * up;
}

TEST(Gradient, GatedActivation) {
  for (const Activation activation :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu,
        Activation::kClampedSwiglu}) {
    for (const auto& [rows, half] : {std::pair(1, 1), {3, 5}, {0, 8}, {2, 64}, {9, 47}, {3, 96}}) {
      const auto f = static_cast<size_t>(half);
      check_gradients(
          {.what = fmt::format("activation {} {}x{}", static_cast<int>(activation), rows, half),
           .inputs = {random_values({rows, 2 * half}, 1, 4.0f)},
           .op = [&](auto& in) { return gated_activation(in[0], activation); },
           .oracle =
               [&](auto& in) {
                 Doubles y;
                 for (size_t row = 0; row < in[0].size(); row += 2 * f) {
                   for (size_t i = row; i < row + f; ++i)
                     y.push_back(gated(in[0][i], in[0][i + f], activation));
                 }
                 return y;
               }});
    }
  }
}

TEST(Gradient, GatedActivationOfExtremeGatesIsFinite) {
  const Tensor values = Tensor::from_vector<float>({-1e4f, 1e4f, 0.0f, 1.0f, 1.0f, 1.0f}, {1, 6});
  for (const Device device : test_devices()) {
    for (const Activation activation :
         {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu}) {
      const Tensor x = values.to(device), dx = Tensor::zeros({1, 6}, DType::kF32, device);
      Tape tape;
      tape.watch(x, dx);
      tape.backward(gated_activation(x, activation),
                    Tensor::from_vector<float>({1, 1, 1}, {1, 3}).to(device));
      EXPECT_EQ(doubles(dx)[0], 0) << static_cast<int>(activation);
      EXPECT_EQ(doubles(dx)[1], 1) << static_cast<int>(activation);
    }
  }
}

TEST(Gradient, SoftCap) {
  for (const int64_t n : {0, 1, 37}) {
    check_gradients({.what = "soft_cap",
                     .inputs = {random_values({n, 3}, 1, 4.0f)},
                     .op =
                         [](auto& in) {
                           Tensor x = in[0];
                           soft_cap_(x, 3.0f);
                           return x;
                         },
                     .oracle =
                         [](auto& in) {
                           Doubles y = in[0];
                           for (double& v : y) v = 3 * std::tanh(v / 3);
                           return y;
                         },
                     .dtypes = {DType::kF32}});  // logits
  }
}

TEST(Gradient, EmbeddingAndGatherRows) {
  const std::vector<int32_t> ids = {4, 0, 4, 4, 2};  // 1 and 3 get nothing
  for (const int64_t dim : {1, 7, 80}) {
    const auto rows_of = [&](const Doubles& table, double scale) {
      Doubles y;
      for (const int32_t id : ids) {
        for (int64_t i = 0; i < dim; ++i)
          y.push_back(scale * table[static_cast<size_t>(id * dim + i)]);
      }
      return y;
    };
    const Tensor index = Tensor::from_vector(ids);
    check_gradients({.what = "embedding",
                     .inputs = {random_values({5, dim}, 1)},
                     .op =
                         [&](auto& in) {
                           return embedding(beside(index, in[0]), Weight::from(in[0]),
                                            in[0].dtype(), 2.5f);
                         },
                     .oracle = [&](auto& in) { return rows_of(in[0], 2.5); },
                     .weights = {0}});
    check_gradients({.what = "gather_rows",
                     .inputs = {random_values({5, dim}, 1)},
                     .op = [&](auto& in) { return gather_rows(in[0], beside(index, in[0])); },
                     .oracle = [&](auto& in) { return rows_of(in[0], 1.0); }});
  }
}

TEST(ScatterAddRows, RefusesRowsOutside) {
  const Tensor out = Tensor::zeros({3, 2}, DType::kF32), x = random_values({1, 2}, 1);
  EXPECT_THROW(scatter_add_rows(out, x, Tensor::from_vector<int32_t>({3})), Error);
  EXPECT_THROW(scatter_add_rows(out, x, Tensor::from_vector<int32_t>({-1})), Error);
  EXPECT_THROW(scatter_add_rows(out, random_values({1, 3}, 1), Tensor::from_vector<int32_t>({0})),
               Error);
}

Doubles product(const Doubles& x, const Doubles& w, size_t k) {
  Doubles y;
  for (size_t t = 0; t < x.size(); t += k) {
    for (size_t n = 0; n < w.size(); n += k) {
      double sum = 0;
      for (size_t i = 0; i < k; ++i) sum += x[t + i] * w[n + i];
      y.push_back(sum);
    }
  }
  return y;
}

TEST(Gradient, Linear) {
  struct Case {
    int64_t tokens, n, k;
  };
  for (const Case& c : {Case{1, 1, 1}, {3, 5, 7}, {0, 4, 4}, {17, 50, 9}, {2, 3, 300}}) {
    for (const bool with_bias : {false, true}) {
      std::vector<Tensor> inputs = {random_values({c.tokens, c.k}, 1),
                                    random_values({c.n, c.k}, 2)};
      if (with_bias) inputs.push_back(random_values({c.n}, 3));
      check_gradients(
          {.what = fmt::format("linear {}x{}x{} bias {}", c.tokens, c.n, c.k, with_bias),
           .inputs = inputs,
           .op =
               [&](auto& in) {
                 return linear(in[0], Weight::from(in[1]), with_bias ? in[2] : Tensor());
               },
           .oracle =
               [&](auto& in) {
                 Doubles y = product(in[0], in[1], static_cast<size_t>(c.k));
                 for (size_t i = 0; i < y.size() && with_bias; ++i)
                   y[i] += in[2][i % static_cast<size_t>(c.n)];
                 return y;
               },
           .weights = {1}});
    }
  }
}

// Two weights beside each other in one result, as nn/linear does it.
TEST(Gradient, LinearIntoColumns) {
  check_gradients(
      {.what = "linear_into",
       .inputs = {random_values({4, 6}, 1), random_values({3, 6}, 2), random_values({2, 6}, 3)},
       .op =
           [](auto& in) {
             const Tensor y = Tensor::empty({4, 5}, in[0].dtype(), in[0].device());
             Tensor left = y.columns(0, 3), right = y.columns(3, 5);
             linear_into(left, in[0], Weight::from(in[1]), {});
             linear_into(right, in[0], Weight::from(in[2]), {});
             return y;
           },
       .oracle =
           [](auto& in) {
             Doubles both = in[1];
             both.insert(both.end(), in[2].begin(), in[2].end());
             return product(in[0], both, 6);
           },
       .weights = {1, 2}});
}

// Frozen weights of other formats hand the gradient on: against the same values in float32.
TEST(Gradient, LinearThroughFrozenFormats) {
  const Tensor x = random_values({5, 64}, 1), values = random_values({40, 64}, 2);
  const Tensor seed = random_values({5, 40}, 3);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const auto gradient = [&](const Weight& weight) {
      const Tensor dx = Tensor::zeros({5, 64}, DType::kF32);
      Tape tape;
      tape.watch(x, dx);
      tape.backward(linear(x, weight), seed);
      return dx;
    };
    const Tensor rounded = values.to(dtype);
    const Doubles want = doubles(gradient(Weight::from(rounded.to(DType::kF32))));
    // dy may be rounded to bfloat16, which is within 2^-9 of each of 40 terms.
    const double tolerance = dtype == DType::kBF16 ? 0x1p-9 * 40 : 1e-5;
    expect_close(gradient(Weight::from(rounded)), want, tolerance, dtype_name(dtype));
    Weight packed = Weight::from(rounded);
    prepare_weight(packed, kCpuDevice, dtype);
    expect_close(gradient(packed), want, tolerance, std::string("packed ") + dtype_name(dtype));
  }
}

// The products may round their operands to bfloat16, by 2^-9 each.
TEST(Gradient, Bfloat16WeightsHaveFloatGradients) {
  const Tensor x = random_values({5, 12}, 1), w = random_values({8, 12}, 2).to(DType::kBF16);
  const Tensor dx = Tensor::zeros({5, 12}, DType::kF32), dw = Tensor::zeros({8, 12}, DType::kF32);
  const Tensor seed = random_values({5, 8}, 3);
  Tape tape;
  tape.watch(x, dx);
  tape.watch(w, dw);
  tape.backward(linear(x, Weight::from(w)), seed);
  const auto expect_product = [](const Tensor& got, const Doubles& a, const Doubles& b, size_t k) {
    const Doubles want = product(a, b, k);
    const auto size = [](Doubles values) {
      for (double& v : values) v = std::abs(v);
      return values;
    };
    const Doubles bound = product(size(a), size(b), k);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(doubles(got)[i], want[i], 0x1p-8 * bound[i]) << i;
  };
  const auto transposed = [](const Tensor& t) {
    Doubles out;
    for (int64_t j = 0; j < t.size(1); ++j) {
      for (int64_t i = 0; i < t.size(0); ++i)
        out.push_back(doubles(t)[static_cast<size_t>(i * t.size(1) + j)]);
    }
    return out;
  };
  expect_product(dx, doubles(seed), transposed(w), 8);
  expect_product(dw, transposed(seed), transposed(x), 5);
}

Doubles loss_oracle(const std::vector<Doubles>& in, const std::vector<int32_t>& labels, size_t k,
                    double cap) {
  Doubles z = product(in[0], in[1], k), losses;
  const size_t vocab = in[1].size() / k;
  for (double& v : z) v = cap > 0 ? cap * std::tanh(v / cap) : v;
  for (size_t r = 0; r < labels.size(); ++r) {
    double sum = 0;
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(z[r * vocab + i]);
    losses.push_back(labels[r] < 0 ? 0
                                   : std::log(sum) - z[r * vocab + static_cast<size_t>(labels[r])]);
  }
  return losses;
}

TEST(Gradient, LinearCrossEntropy) {
  const std::vector<int32_t> all = {3, -100, 0, 10, 10, -100, 7};
  for (const size_t rows : {size_t{0}, size_t{1}, size_t{7}}) {
    const std::vector<int32_t> labels(all.begin(), all.begin() + static_cast<int64_t>(rows));
    for (const float cap : {0.0f, 2.0f}) {
      for (const int64_t chunk : {0, 1, 3}) {
        for (const bool in_backward : {false, true}) {
          check_gradients(
              {.what = fmt::format("loss of {} rows, cap {}, chunks of {}", rows, cap, chunk),
               .inputs = {random_values({static_cast<int64_t>(rows), 5}, 1),
                          random_values({11, 5}, 2)},
               .op =
                   [&](auto& in) {
                     return linear_cross_entropy(in[0], Weight::from(in[1]),
                                                 beside(Tensor::from_vector(labels), in[0]),
                                                 {cap, chunk, in_backward});
                   },
               .oracle = [&](auto& in) { return loss_oracle(in, labels, 5, cap); },
               .weights = {1}});
        }
      }
    }
  }
}

TEST(LinearCrossEntropy, LossesMatchTheOracleBeforeOrAfterBackward) {
  const Tensor x = random_values({3, 20}, 1), w = random_values({50, 20}, 2);
  const std::vector<int32_t> labels = {49, -100, 0};
  const Doubles want = loss_oracle({doubles(x), doubles(w)}, labels, 20, 0);
  const Tensor index = Tensor::from_vector(labels);
  for (const Device device : test_devices()) {
    const Tensor here = x.to(device), to = index.to(device);
    const Weight weight = Weight::from(w.to(device));
    expect_close(linear_cross_entropy(here, weight, to), want, 1e-6, "no tape");
    for (const bool in_backward : {false, true}) {
      Tape tape;
      const Tensor dx = Tensor::zeros({3, 20}, DType::kF32, device);
      tape.watch(here, dx);
      const Tensor losses = linear_cross_entropy(here, weight, to, {0, 2, in_backward});
      if (!in_backward) expect_close(losses, want, 1e-6, "before backward");
      tape.backward(losses, Tensor::from_vector<float>({1, 1, 1}).to(device));
      expect_close(losses, want, 1e-6, "after backward");
    }
  }
  EXPECT_THROW(linear_cross_entropy(x, Weight::from(w), Tensor::from_vector<int32_t>({50, 0, 0})),
               Error);
  EXPECT_THROW(linear_cross_entropy(x, Weight::from(w), Tensor::from_vector<int32_t>({0, 0})),
               Error);
}

TEST(LinearCrossEntropy, ExtremeLogitsAreExact) {
  const Tensor x = Tensor::from_vector<float>({1e4f, -1e4f}, {2, 1});
  const Tensor w = Tensor::from_vector<float>({1, -1}, {2, 1});
  for (const Device device : test_devices()) {
    const Tensor losses = linear_cross_entropy(x.to(device), Weight::from(w.to(device)),
                                               Tensor::from_vector<int32_t>({0, 0}).to(device));
    EXPECT_EQ(losses.to_vector<float>(), (std::vector<float>{0, 2e4f}));
  }
}

}  // namespace
}  // namespace reft
