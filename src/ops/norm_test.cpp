#include "ops/norm.h"

#include <cmath>

#include "ops/op_cases.h"

namespace reft {
namespace {

const bool covered = cover_ops({"rms_norm", "add_rms_norm", "add_into"});

std::vector<double> oracle(const std::vector<double>& x, int64_t n, const Tensor& weight,
                           double eps, NormKind kind) {
  std::vector<double> y(x.size());
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(n)) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[row + i] * x[row + i];
    const double scale = 1 / std::sqrt(sum / static_cast<double>(n) + eps);
    for (int64_t i = 0; i < n; ++i) {
      double w = weight.defined() ? weight.data<float>()[i] : 1.0;
      if (weight.defined() && kind == NormKind::kOnePlus) w += 1;
      y[row + i] = x[row + i] * scale * w;
    }
  }
  return y;
}

struct NormCase {
  int64_t tokens, dim;
  float scale;
  bool weighted = true;
};
const std::vector<NormCase> kCases = {{1, 1, 1},      {3, 5, 1},        {0, 64, 1},
                                      {2, 64, 1},     {7, 576, 1},      {1, 1023, 1e-3},
                                      {65, 1024, 30}, {2, 16385, 1},    {4, 128, 1e15},
                                      {4, 33, 1e-15}, {5, 96, 1, false}};

TEST(RmsNorm, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const auto& c : kCases) {
        if (dtype == DType::kF16 && (c.scale > 100 || c.scale < 1e-2)) continue;
        for (const NormKind kind : {NormKind::kPlain, NormKind::kFloat, NormKind::kOnePlus}) {
          for (const int64_t gap : {0, 7}) {
            const Tensor x = random_values({c.tokens, c.dim}, 1, c.scale).to(dtype).to(DType::kF32);
            const Tensor weight = c.weighted ? random_values({c.dim}, 2, 0.5f, 1.0f) : Tensor();
            const Tensor input = gap ? strided_copy(x, gap) : x;
            const Tensor moved =
                gap && device.type == DeviceType::kCpu ? input : x.to(dtype).to(device);
            const Tensor w = c.weighted ? weight.to(device) : Tensor();
            expect_close(rms_norm(moved, w, 1e-6f, kind),
                         oracle(doubles(x), c.dim, weight, 1e-6f, kind), tolerance(dtype),
                         fmt::format("{}x{} kind {} {}", c.tokens, c.dim, static_cast<int>(kind),
                                     dtype_name(dtype)),
                         1e-2);
          }
        }
      }
    }
  }
}

TEST(AddRmsNorm, MatchesOracleAndUpdatesTheResidual) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const auto& c : kCases) {
        if (dtype == DType::kF16 && (c.scale > 100 || c.scale < 1e-2)) continue;
        const Tensor x = random_values({c.tokens, c.dim}, 3, c.scale).to(dtype);
        const Tensor old = random_values({c.tokens, c.dim}, 4, c.scale).to(dtype);
        const Tensor weight = c.weighted ? random_values({c.dim}, 2, 0.5f, 1.0f) : Tensor();
        Tensor residual = Tensor::empty(old.shape(), dtype, device);
        if (old.numel() > 0) residual.copy_from(old);
        const Tensor y =
            add_rms_norm(residual, x.to(device), c.weighted ? weight.to(device) : Tensor(), 1e-5f);
        std::vector<double> sum = doubles(old);
        const std::vector<double> added = doubles(x);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += added[i];
        const std::string what = fmt::format("{}x{}", c.tokens, c.dim);
        expect_close(residual, sum, tolerance(dtype), what, c.scale);
        // the norm follows the residual as it was rounded
        expect_close(y, oracle(doubles(residual), c.dim, weight, 1e-5f, NormKind::kPlain),
                     tolerance(dtype), what, 1e-2);
      }
    }
  }
}

TEST(AddInto, Adds) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const int64_t n : {0, 1, 15, 16, 33, 100000}) {
        const Tensor a = random_values({n}, 1).to(dtype), b = random_values({n}, 2).to(dtype);
        Tensor sum = Tensor::empty({n}, dtype, device);
        if (n > 0) sum.copy_from(a);
        add_into(sum, b.to(device));
        std::vector<double> want = doubles(a);
        const std::vector<double> more = doubles(b);
        for (size_t i = 0; i < want.size(); ++i) want[i] += more[i];
        expect_close(sum, want, tolerance(dtype), fmt::format("{}", n));
        if (n > 1000) break;
      }
    }
  }
}

TEST(RmsNorm, ErrorsNameOpAndShapes) {
  const Tensor x = random_values({2, 8}, 1);
  Tensor residual = random_values({2, 8}, 1);
  try {
    rms_norm(x, random_values({9}, 1), 1e-6f);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("rms_norm"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("[9]"), std::string::npos);
  }
  EXPECT_THROW(rms_norm(x.reshape({16}), Tensor(), 1e-6f), Error);
  EXPECT_THROW(add_rms_norm(residual, random_values({2, 7}, 1), Tensor(), 1e-6f), Error);
  EXPECT_THROW(add_into(residual, random_values({3, 8}, 1)), Error);
  EXPECT_THROW(rms_norm(x, Tensor::from_vector<int32_t>({1, 2, 3, 4, 5, 6, 7, 8}), 1e-6f), Error);
}

TEST(RmsNorm, NanStaysInItsRow) {
  for (const Device device : test_devices()) {
    Tensor x = random_values({3, 40}, 1);
    x.data<float>()[45] = NAN;
    const std::vector<double> y = doubles(rms_norm(x.to(device), Tensor(), 1e-6f));
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i >= 40 && i < 80) << i;
  }
}

}  // namespace
}  // namespace reft
