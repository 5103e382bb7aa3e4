// What adapters add, against double precision, and its gradients.
#include "ops/lora.h"

#include <cmath>

#include "ops/dropout.h"
#include "ops/linear.h"
#include "ops/lora_rows.h"
#include "ops/op_grad.h"

namespace reft {
namespace {

const bool covered = cover_ops({"linear_add", "squared_row_norms", "adapted_row_norms", "dora",
                                "dora_backward", "dropout", "add_uniform_noise", "lora_rows"});

Doubles product(const Doubles& x, const Doubles& w, size_t rows, size_t n, size_t k) {
  Doubles y(rows * n);
  for (size_t t = 0; t < rows; ++t)
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < k; ++j) y[t * n + i] += x[t * k + j] * w[i * k + j];
  return y;
}

// What is there already keeps its gradient; adapters are added to columns of a wider result.
TEST(Lora, AddedProductsHaveGradients) {
  for (const auto& [t, n, k] : {std::tuple(1, 1, 1), {5, 7, 3}, {9, 33, 16}}) {
    const auto oracle = [&](const std::vector<Doubles>& in) {
      const auto rows = static_cast<size_t>(t), cols = static_cast<size_t>(n);
      const Doubles base = product(in[0], in[1], rows, 2 * cols, static_cast<size_t>(k));
      const Doubles added = product(in[0], in[2], rows, cols, static_cast<size_t>(k));
      Doubles y = base;
      for (size_t i = 0; i < rows; ++i)
        for (size_t j = 0; j < cols; ++j) y[i * 2 * cols + cols + j] += 0.5 * added[i * cols + j];
      return y;
    };
    check_gradients({.what = fmt::format("linear_add {}x{}x{}", t, n, k),
                     .inputs = {random_values({t, k}, 1), random_values({2 * n, k}, 2),
                                random_values({n, k}, 3)},
                     .op =
                         [&, width = n](auto& in) {
                           Tensor y = linear(in[0], Weight::from(in[1]));
                           Tensor columns = y.columns(width, 2 * width);
                           linear_add_into(columns, dropout(in[0], {.factor = 0.5f}),
                                           Weight::from(in[2]));
                           return y;
                         },
                     .oracle = oracle,
                     .cpu_only = true});
  }
}

TEST(Lora, DoraHasGradients) {
  const Tensor norms = random_values({6}, 5, 0.1f, 2.0f), bias = random_values({6}, 6);
  const Doubles length = doubles(norms), offset = doubles(bias);
  check_gradients({.what = "dora",
                   .inputs = {random_values({4, 6}, 1), random_values({6}, 2, 0.5f, 1.0f)},
                   .op =
                       [&](auto& in) {
                         Tensor y = Tensor::empty({4, 6}, DType::kF32);
                         dora_into(y, in[0], in[1], norms, bias);
                         return y;
                       },
                   .oracle =
                       [&](auto& in) {
                         Doubles y = in[0];
                         for (size_t i = 0; i < y.size(); ++i)
                           y[i] = y[i] * in[1][i % 6] / length[i % 6] + offset[i % 6];
                         return y;
                       },
                   .cpu_only = true});
  check_gradients({.what = "dora without a magnitude",
                   .inputs = {random_values({4, 6}, 1)},
                   .op =
                       [&](auto& in) {
                         Tensor y = Tensor::empty({4, 6}, DType::kF32);
                         dora_into(y, in[0], {}, {}, {});
                         return y;
                       },
                   .oracle = [](auto& in) { return in[0]; },
                   .cpu_only = true});
}

TEST(Lora, RowNormsOfEveryFormat) {
  const Tensor values = random_values({70, 64}, 3);
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    Weight weight = Weight::from(values);
    prepare_weight(weight, kCpuDevice, compute);
    const std::vector<float> sums = squared_row_norms(weight).to_vector<float>();
    for (size_t n = 0; n < sums.size(); ++n) {
      double want = 0;
      for (int64_t i = 0; i < 64; ++i)
        want += std::pow(values.data<float>()[static_cast<int64_t>(n) * 64 + i], 2);
      EXPECT_NEAR(sums[n], want, 1e-5 * want);
    }
  }
}

// |W + s B A| row by row, from the products that apply() has.
TEST(Lora, AdaptedRowNorms) {
  const int64_t n = 9, k = 32, r = 3;
  const Tensor w = random_values({n, k}, 1), a = random_values({r, k}, 2),
               b = random_values({n, r}, 3);
  const float scale = 0.7f;
  const Tensor norms =
      adapted_row_norms(squared_row_norms(Weight::from(w)), linear(a, Weight::from(w)),
                        linear(a, Weight::from(a)), b, scale);
  for (int64_t i = 0; i < n; ++i) {
    double want = 0;
    for (int64_t j = 0; j < k; ++j) {
      double v = w.data<float>()[i * k + j];
      for (int64_t l = 0; l < r; ++l)
        v += double{scale} * b.data<float>()[i * r + l] * a.data<float>()[l * k + j];
      want += v * v;
    }
    EXPECT_NEAR(norms.data<float>()[i], std::sqrt(want), 1e-5 * std::sqrt(want));
  }
}

// Rows of several adapters and of none, in any order; ranks below the tables'.
TEST(Lora, EveryRowHasItsOwnAdapter) {
  constexpr int64_t kSlots = 3, kRank = 6, kN = 37, kK = 33;
  for (const Device device : test_devices()) {
    if (!lora_rows_kernel.has(device.type)) continue;
    LoraStack stack = LoraStack::zeros(kSlots, kRank, kN, kK, kCpuDevice);
    stack.a = random_values({kSlots, kK, kRank}, 1);
    stack.b = random_values({kSlots, kRank, kN}, 2);
    stack.column_change = random_values({kSlots, kN}, 3);
    stack.ranks = Tensor::from_vector(std::vector<int32_t>{6, 0, 4});
    const Tensor bias = random_values({kN}, 4);
    const LoraStack moved{stack.a.to(device), stack.b.to(device), stack.column_change.to(device),
                          stack.ranks.to(device)};
    for (const std::vector<int32_t>& slots :
         {std::vector<int32_t>{0}, {-1}, {2, 2, 0, -1, 1, 0, 2}, std::vector<int32_t>(40, 2)}) {
      const auto t = static_cast<int64_t>(slots.size());
      const Tensor x = random_values({t, kK}, 5), y = random_values({t, 2 * kN}, 6);
      Doubles want = doubles(y);
      for (int64_t row = 0; row < t; ++row) {
        const int32_t s = slots[static_cast<size_t>(row)];
        if (s < 0 || stack.ranks.data<int32_t>()[s] == 0) continue;
        for (int64_t n = 0; n < kN; ++n) {
          double& out = want[static_cast<size_t>(row * 2 * kN + kN + n)];
          out += (out - bias.data<float>()[n]) * stack.column_change.data<float>()[s * kN + n];
          for (int64_t r = 0; r < stack.ranks.data<int32_t>()[s]; ++r) {
            double h = 0;
            for (int64_t k = 0; k < kK; ++k)
              h += double{x.data<float>()[row * kK + k]} *
                   stack.a.data<float>()[(s * kK + k) * kRank + r];
            out += h * stack.b.data<float>()[(s * kRank + r) * kN + n];
          }
        }
      }
      const Tensor result = y.to(device);
      Tensor columns = result.columns(kN, 2 * kN);
      add_lora_rows(columns, x.to(device), Tensor::from_vector(slots).to(device), moved,
                    bias.to(device));
      expect_close(result.to(kCpuDevice), want, 1e-5, "lora_rows", 30);
    }
  }
}

TEST(Dropout, ZeroesItsShareAndItsGradientHasTheSameMask) {
  const Tensor x = random_values({64, 130}, 1, 0.1f, 1.0f);
  const DropoutArgs args{.p = 0.25f, .factor = 2, .seed = 3, .stream = 4};
  const std::vector<float> y = dropout(x, args).to_vector<float>();
  int64_t zeros = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    if (y[i] == 0) {
      ++zeros;
    } else {
      EXPECT_FLOAT_EQ(y[i], x.data<float>()[i] * 2 / 0.75f);
    }
  }
  // Five standard deviations of a binomial.
  const double count = 64 * 130;
  EXPECT_NEAR(static_cast<double>(zeros), 0.25 * count, 5 * std::sqrt(count * 0.25 * 0.75));
  EXPECT_EQ(dropout(x, args).to_vector<float>(), y);
  // Of columns the mask is that of a tensor of their own.
  EXPECT_NE(dropout(x, {.p = 0.25f, .factor = 2, .seed = 3, .stream = 5}).to_vector<float>(), y);
  const Tensor probe = random_values({3, 5}, 9);
  const std::vector<float> kept =
      dropout(Tensor::from_vector(std::vector<float>(15, 1.0f), {3, 5}), args).to_vector<float>();
  check_gradients({.what = "dropout",
                   .inputs = {probe},
                   .op = [&](auto& in) { return dropout(in[0], args); },
                   .oracle =
                       [&](auto& in) {
                         Doubles out = in[0];
                         for (size_t i = 0; i < out.size(); ++i) out[i] *= double{kept[i]};
                         return out;
                       },
                   .cpu_only = true});
  EXPECT_THROW(dropout(x, {.p = 1}), Error);
}

TEST(Dropout, UniformNoise) {
  Tensor x = Tensor::zeros({2, 5000}, DType::kF32);
  add_uniform_noise(x, Tensor::from_vector(std::vector<float>{0.5f, 2.0f}), 1, 2);
  for (int64_t row = 0; row < 2; ++row) {
    const double scale = row == 0 ? 0.5 : 2;
    double sum = 0, square = 0;
    for (int64_t i = 0; i < 5000; ++i) {
      const double v = x.data<float>()[row * 5000 + i] / scale;
      EXPECT_LE(std::abs(v), 1);
      sum += v;
      square += v * v;
    }
    EXPECT_NEAR(sum / 5000, 0, 5 / std::sqrt(3.0 * 5000));
    EXPECT_NEAR(square / 5000, 1.0 / 3, 0.03);
  }
}

}  // namespace
}  // namespace reft
