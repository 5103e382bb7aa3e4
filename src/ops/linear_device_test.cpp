// `linear` on devices other than the CPU (whose own test is linear_test.cpp): every kernel that a
// shape can choose, against the fp64 product of the rounded inputs.
#include <cmath>

#include "ops/linear.h"
#include "ops/op_cases.h"

namespace reft {
namespace {

const bool covered = cover_ops({"gated_linear"});

struct LinearCase {
  int64_t tokens, n, k;
};

// The fp64 product, and for each element the magnitude that rounding errors are relative to.
void product(const std::vector<double>& x, const std::vector<double>& w,
             const std::vector<double>& bias, const LinearCase& c, std::vector<double>& y,
             std::vector<double>& magnitude) {
  y.assign(static_cast<size_t>(c.tokens * c.n), 0.0);
  magnitude.assign(y.size(), 0.0);
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = bias.empty() ? 0.0 : bias[static_cast<size_t>(j)], size = std::abs(sum);
      for (int64_t i = 0; i < c.k; ++i) {
        const double term =
            x[static_cast<size_t>(t * c.k + i)] * w[static_cast<size_t>(j * c.k + i)];
        sum += term;
        size += std::abs(term);
      }
      y[static_cast<size_t>(t * c.n + j)] = sum;
      magnitude[static_cast<size_t>(t * c.n + j)] = size;
    }
  }
}

void run_case(const LinearCase& c, DType dtype, DType out_dtype, bool with_bias, Device device) {
  const Tensor x = random_values({c.tokens, c.k}, 1).to(dtype);
  const Tensor w = random_values({c.n, c.k}, 2, 0.1f).to(dtype);
  const Tensor bias = with_bias ? random_values({c.n}, 3) : Tensor();
  std::vector<double> want, magnitude;
  product(doubles(x), doubles(w), with_bias ? doubles(bias) : std::vector<double>(), c, want,
          magnitude);
  Weight weight = Weight::from(w);
  prepare_weight(weight, device, dtype);
  const Tensor y = linear(x.to(device), weight, with_bias ? bias.to(device) : Tensor(), out_dtype);
  const std::vector<double> got = doubles(y);
  // fp32 accumulation in some order, the rounding of the result, and that of the product before a
  // bias is added to it.
  const double rounding = out_dtype == DType::kF32   ? 0
                          : out_dtype == DType::kF16 ? 0x1p-10
                                                     : 0x1p-7;
  const std::vector<double> added =
      with_bias ? doubles(bias) : std::vector<double>(static_cast<size_t>(c.n), 0.0);
  for (size_t i = 0; i < want.size(); ++i) {
    const double before = want[i] - added[i % static_cast<size_t>(c.n)];
    ASSERT_NEAR(got[i], want[i],
                1e-6 * magnitude[i] + rounding * (std::abs(want[i]) + std::abs(before)))
        << "T " << c.tokens << " N " << c.n << " K " << c.k << " " << dtype_name(dtype) << " to "
        << dtype_name(out_dtype) << (with_bias ? " with bias" : "") << " [" << i << "]";
  }
}

TEST(LinearDevice, MatchesOracle) {
  for (const Device device : test_devices()) {
    if (device.type == DeviceType::kCpu) continue;
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      for (const LinearCase& c : {LinearCase{1, 1, 64},
                                  {1, 17, 128},
                                  {2, 16, 576},
                                  {7, 40, 64},
                                  {8, 33, 1024},
                                  {9, 48, 192},
                                  {16, 5, 2048},
                                  {17, 64, 320},
                                  {33, 31, 640},
                                  {64, 96, 128},
                                  {65, 64, 128},
                                  {130, 72, 256},
                                  {3, 20, 33},
                                  {70, 9, 100},
                                  {1, 5000, 64}}) {
        for (const bool with_bias : {false, true}) {
          run_case(c, dtype, dtype, with_bias, device);
          run_case(c, dtype, DType::kF32, with_bias, device);
        }
      }
    }
  }
}

// The fused kernel against the two ops that it stands for, on the same device.
TEST(GatedLinearDevice, MatchesTheOpsOneByOne) {
  struct Case {
    int64_t tokens, f, k;
    Activation activation = Activation::kSilu;
    bool with_bias = false;
  };
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const Case& c : {Case{1, 3072, 1024}, Case{1, 9728, 2560}, Case{3, 24, 64},
                            Case{8, 1000, 192, Activation::kGeluTanh, true},
                            Case{16, 520, 576, Activation::kGeluErf, true}, Case{17, 64, 128},
                            Case{2, 12, 64, Activation::kRelu, true}, Case{0, 8, 64}}) {
        SCOPED_TRACE(
            fmt::format("{} {} T {} F {} K {}", device, dtype_name(dtype), c.tokens, c.f, c.k));
        Weight weight = Weight::from(random_values({2 * c.f, c.k}, 1, 0.1f).to(dtype));
        prepare_weight(weight, device, dtype);
        const Tensor x = random_values({c.tokens, c.k}, 2).to(dtype).to(device);
        const Tensor bias = c.with_bias ? random_values({2 * c.f}, 3).to(device) : Tensor();
        const Tensor want = gated_activation(linear(x, weight, bias), c.activation);
        const Tensor y = gated_linear(x, weight, bias, c.activation);
        ASSERT_EQ(y.shape(), want.shape());
        ASSERT_EQ(y.dtype(), dtype);
        const std::vector<double> got = doubles(y), expected = doubles(want);
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_NEAR(got[i], expected[i], tolerance(dtype) * (std::abs(expected[i]) + 1e-2))
              << "[" << i << "]";
        }
      }
    }
  }
}

}  // namespace
}  // namespace reft
