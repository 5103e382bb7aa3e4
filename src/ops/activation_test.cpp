#include "ops/activation.h"

#include <cmath>

#include "ops/op_cases.h"

namespace reft {
namespace {

const bool covered = cover_ops({"gated_activation", "soft_cap"});

double oracle(double x, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kClampedSwiglu:
      return std::min(x, 7.0) / (1 + std::exp(-1.702 * std::min(x, 7.0)));
  }
  return 0;
}

double gated_oracle(double gate, double up, Activation activation) {
  if (activation == Activation::kClampedSwiglu) up = std::clamp(up, -7.0, 7.0) + 1;
  return oracle(gate, activation) * up;
}

constexpr Activation kAll[] = {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf,
                               Activation::kRelu, Activation::kClampedSwiglu};

TEST(GatedActivation, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const Activation activation : kAll) {
        for (const auto& [tokens, features] : std::vector<std::pair<int64_t, int64_t>>{
                 {0, 8}, {1, 1}, {3, 7}, {2, 16}, {5, 1536}, {40, 257}}) {
          for (const float scale : {1.0f, 20.0f}) {
            const Tensor x = random_values({tokens, 2 * features}, 1, scale).to(dtype);
            std::vector<double> want;
            const std::vector<double> in = doubles(x);
            for (int64_t t = 0; t < tokens; ++t) {
              for (int64_t i = 0; i < features; ++i) {
                const size_t at = static_cast<size_t>(t * 2 * features + i);
                want.push_back(gated_oracle(in[at], in[at + features], activation));
              }
            }
            const std::string what = fmt::format("{} of {}x{} {}", static_cast<int>(activation),
                                                 tokens, features, dtype_name(dtype));
            expect_close(gated_activation(x.to(device), activation), want, tolerance(dtype), what,
                         0.2 * scale);
            if (device.type == DeviceType::kCpu) {
              expect_close(gated_activation(strided_copy(x, 6), activation), want, tolerance(dtype),
                           what, 0.2 * scale);
            }
          }
        }
      }
    }
  }
}

TEST(GatedActivation, SmallValuesKeepTheirRelativeError) {
  for (const Device device : test_devices()) {
    const Tensor x =
        Tensor::from_vector<float>({1e-3f, -1e-3f, 1e-6f, -1e-6f, 0, 1, 1, 1, 1, 1}, {1, 10});
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      const std::vector<double> y = doubles(gated_activation(x.to(device), activation));
      for (size_t i = 0; i < 5; ++i) {
        const double want = oracle(x.data<float>()[i], activation);
        EXPECT_NEAR(y[i], want, 1e-6 * std::abs(want));
      }
    }
  }
}

TEST(GatedActivation, ExtremesAndNan) {
  const float inf = INFINITY;
  for (const Device device : test_devices()) {
    for (const Activation activation : kAll) {
      const Tensor x = Tensor::from_vector<float>(
          {inf, 1e30f, -1e30f, 100, -100, NAN, 1, 1, 1, 1, 1, 1}, {1, 12});
      const std::vector<double> y = doubles(gated_activation(x.to(device), activation));
      if (activation == Activation::kClampedSwiglu) {
        const double limit = 2 * 7 / (1 + std::exp(-7 * 1.702));  // up is 1
        for (const size_t i : {0, 1, 3}) EXPECT_NEAR(y[i], limit, 1e-5);
        EXPECT_NEAR(y[2] + y[4], 0, 1e-30);
        EXPECT_TRUE(std::isnan(y[5]));
        continue;
      }
      EXPECT_EQ(y[0], inf);
      EXPECT_EQ(y[1], static_cast<double>(1e30f));
      EXPECT_EQ(y[2], 0);
      EXPECT_EQ(y[3], 100);
      EXPECT_NEAR(y[4], 0, 1e-30);
      EXPECT_TRUE(std::isnan(y[5])) << static_cast<int>(activation);
    }
  }
}

// Where exp(−x) leaves the range of floats.
TEST(GatedActivation, SiluAtTheEndOfTheRange) {
  std::vector<float> values;
  for (int i = 0; i < 400; ++i) values.push_back(-86.0f - 0.01f * static_cast<float>(i));
  const auto n = static_cast<int64_t>(values.size());
  values.resize(values.size() * 2, 1.0f);
  for (const Device device : test_devices()) {
    const Tensor x = Tensor::from_vector(values, {1, 2 * n});
    for (const double y : doubles(gated_activation(x.to(device), Activation::kSilu)))
      EXPECT_NEAR(y, 0, 1e-34);
  }
}

TEST(SoftCap, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const int64_t n : {0, 1, 17, 5000}) {
      for (const float cap : {0.5f, 30.0f, 50.0f}) {
        const Tensor x = random_values({n}, 1, 60.0f);
        Tensor y = Tensor::empty({n}, DType::kF32, device);
        if (n > 0) y.copy_from(x);
        soft_cap_(y, cap);
        std::vector<double> want = doubles(x);
        for (double& value : want) value = cap * std::tanh(value / cap);
        expect_close(y, want, 2e-6, fmt::format("{} cap {}", n, cap), cap / 30);
      }
    }
  }
  Tensor x = random_values({4}, 1);
  EXPECT_THROW(soft_cap_(x, 0.0f), Error);
  Tensor wild = Tensor::from_vector<float>({INFINITY, -INFINITY, NAN, 1e-4f});
  soft_cap_(wild, 30.0f);
  EXPECT_EQ(wild.data<float>()[0], 30);
  EXPECT_EQ(wild.data<float>()[1], -30);
  EXPECT_TRUE(std::isnan(wild.data<float>()[2]));
  EXPECT_NEAR(wild.data<float>()[3], 1e-4, 1e-9);
}

TEST(Activation, NamesOfConfigs) {
  EXPECT_EQ(parse_activation("silu"), Activation::kSilu);
  EXPECT_EQ(parse_activation("gelu_new"), Activation::kGeluTanh);
  EXPECT_EQ(parse_activation("gelu"), Activation::kGeluErf);
  EXPECT_EQ(parse_activation("relu"), Activation::kRelu);
  EXPECT_THROW(parse_activation("selu"), Error);
  EXPECT_THROW(gated_activation(random_values({2, 7}, 1), Activation::kSilu), Error);
}

}  // namespace
}  // namespace reft
