// Every kernel of `linear` that this machine can run, against the float64 product of the
// dequantised weight and the activations as the kernel must round them: what is left is the
// rounding of float32 sums, so that no other error can hide. And against the product of the
// activations themselves, which the kernel's rounding must not move by more than half a step each.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <set>

#include "backends/cpu/linear_pack.h"
#include "ops/linear.h"
#include "tensor/dequantize.h"

namespace reft::cpu {
namespace {

// Activations as models have them: a few are 1000 times the rest.
void add_outliers(Tensor& x, uint32_t seed) {
  std::mt19937 random(seed);
  for (int64_t t = 0; t < x.size(0); ++t) {
    const int64_t at = static_cast<int64_t>(random() % static_cast<uint64_t>(x.size(1)));
    x.data<float>()[t * x.stride(0) + at] = (random() % 2 == 0 ? 1000.0f : -1000.0f);
  }
}

Tensor random_floats(Shape shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Tensor t = Tensor::empty(shape, DType::kF32);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = normal(random);
  return t;
}

// Where a block keeps its 16-bit floats.
std::vector<int> half_offsets(DType dtype) {
  switch (dtype) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ2_K:
      return {80, 82};
    case DType::kQ3_K:
      return {108};
    case DType::kQ6_K:
      return {208};
    case DType::kMXFP4:
      return {};
    default:
      return {0};
  }
}

// Random bits, so that every code and every packed scale occurs, under scales of both signs.
Tensor random_weight(DType dtype, int64_t n, int64_t k, uint32_t seed) {
  if (!is_block_format(dtype)) return random_floats({n, k}, seed).to(dtype);
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> scale(-2.0f, 2.0f);
  Tensor t = Tensor::empty({n, k}, dtype);
  auto* bytes = reinterpret_cast<uint8_t*>(t.raw());
  const DTypeInfo& info = dtype_info(dtype);
  for (int64_t i = 0; i < t.nbytes(); ++i) bytes[i] = static_cast<uint8_t>(random());
  for (int64_t i = 0; i < t.nbytes(); i += info.block_bytes) {
    for (int offset : half_offsets(dtype)) {
      const f16 half = to_f16(scale(random));
      std::memcpy(bytes + i + offset, &half, 2);
    }
    if (dtype == DType::kMXFP4) bytes[i] = static_cast<uint8_t>(120 + random() % 16);
  }
  return t;
}

// The activations that the kernels of `layout` multiply by.
std::vector<double> rounded_activations(const Tensor& x, Layout layout) {
  const int64_t k = x.size(1);
  std::vector<double> out;
  for (int64_t t = 0; t < x.size(0); ++t) {
    const float* row = x.data<float>() + t * x.stride(0);
    for (int64_t i = 0; i < k; ++i) {
      if (layout == Layout::kBF16Dot) {
        out.push_back(to_float(to_bf16(row[i])));
      } else if (!layout_info(layout).integer) {
        out.push_back(row[i]);
      } else {
        float max = 0;
        for (int64_t j = i / kUnit * kUnit; j < i / kUnit * kUnit + kUnit; ++j) {
          max = std::max(max, std::abs(row[j]));
        }
        const float inverse = max > 0 ? kActivationMax / max : 0.0f;
        out.push_back(double{max / kActivationMax} * std::nearbyint(row[i] * inverse));
      }
    }
  }
  return out;
}

// The most by which rounding may move one activation: half a step of a unit, or of a bfloat16.
double rounding_bound(const float* row, int64_t i, Layout layout) {
  if (layout == Layout::kBF16Dot) return std::abs(row[i]) / 256.0;
  if (!layout_info(layout).integer) return 0.0;
  float max = 0;
  for (int64_t j = i / kUnit * kUnit; j < i / kUnit * kUnit + kUnit; ++j) {
    max = std::max(max, std::abs(row[j]));
  }
  // The float32 quotient and product before the rounding add a little to the half.
  return double{max} / kActivationMax * 0.505;
}

void expect_product(const Tensor& y, const Tensor& x, const Tensor& data, const Tensor& bias,
                    Layout layout, const std::string& what) {
  const int64_t k = x.size(1);
  const std::vector<double> rounded = rounded_activations(x, layout);
  std::vector<float> w(static_cast<size_t>(k));
  for (int64_t n = 0; n < data.size(0); ++n) {
    dequantize_row(data.dtype(), data.raw() + n * row_bytes(data.dtype(), data.stride(0)), w.data(),
                   k);
    float largest = 0;
    for (float value : w) largest = std::max(largest, std::abs(value));
    for (int64_t t = 0; t < x.size(0); ++t) {
      double want = bias.defined() ? bias.data<float>()[n] : 0.0;
      double exact = want;
      double moved = 0.0;
      double magnitude = std::abs(want);
      const float* row = x.data<float>() + t * x.stride(0);
      for (int64_t i = 0; i < k; ++i) {
        const double xi = rounded[static_cast<size_t>(t * k + i)];
        want += xi * w[static_cast<size_t>(i)];
        exact += double{row[i]} * w[static_cast<size_t>(i)];
        moved += rounding_bound(row, i, layout) * std::abs(w[static_cast<size_t>(i)]);
        magnitude += std::abs(xi) * largest;
      }
      const float got = y.data<float>()[t * y.stride(0) + n];
      ASSERT_NEAR(got, want, 1e-6 * magnitude) << what << " t " << t << " n " << n;
      ASSERT_NEAR(got, exact, moved + 1e-6 * magnitude) << what << " t " << t << " n " << n;
    }
  }
}

std::vector<std::string> runnable_levels() {
  std::vector<std::string> levels;
  std::set<std::string> seen;
  for (const char* level : {"scalar", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16",
                            "neon", "neon_dot", "neon_bf16"}) {
    const CpuFeatures features = limit_cpu_features(detect_cpu_features(), level);
    if (seen.insert(cpu_features_str(features)).second) levels.push_back(level);
  }
  return levels;
}

constexpr DType kWeightTypes[] = {DType::kF32,  DType::kF16,    DType::kBF16, DType::kQ4_0,
                                  DType::kQ4_1, DType::kQ5_0,   DType::kQ5_1, DType::kQ8_0,
                                  DType::kQ2_K, DType::kQ3_K,   DType::kQ4_K, DType::kQ5_K,
                                  DType::kQ6_K, DType::kIQ4_NL, DType::kMXFP4};

// Under a sanitizer each kernel sees few shapes: a part of a unit, several panels and the last row
// of a tile are in bounds or not whatever the rest is.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kFewShapes = true;
#else
constexpr bool kFewShapes = false;
#endif

TEST(CpuLinear, EveryKernelMatchesDouble) {
  std::set<const TileKernels*> tested;
  for (const std::string& level : runnable_levels()) {
    const CpuFeatures features = limit_cpu_features(detect_cpu_features(), level);
    for (DType dtype : kWeightTypes) {
      for (DType compute : {DType::kF32, DType::kBF16}) {
        const int64_t block = dtype_info(dtype).block_elems;
        std::vector<int64_t> ks = {block, 3 * block};
        if (block == 1) ks = {1, 33, 128};
        std::vector<int64_t> ns = {1, 37, 64};
        if (kFewShapes) {
          ks = {block == 1 ? 33 : block};
          ns = {37};
        }
        for (int64_t k : ks) {
          for (int64_t n : ns) {
            const Tensor data = random_weight(dtype, n, k, static_cast<uint32_t>(n + k));
            const auto packed = pack_weight(data, compute, features);
            tested.insert(&packed->kernels());
            // Every number of rows that a tile can have, and several tiles.
            const int64_t max_rows = packed->kernels().max_rows;
            for (int64_t t = 1; t <= 2 * max_rows + 1; ++t) {
              if (kFewShapes && t > max_rows + 1) break;
              Tensor x = random_floats({t, k}, static_cast<uint32_t>(t));
              if (t % 3 == 0 && layout_info(packed->layout()).integer)
                add_outliers(x, static_cast<uint32_t>(t));
              const Tensor bias = t % 2 == 0 ? random_floats({n}, 3) : Tensor();
              Tensor y = Tensor::empty({t, n}, DType::kF32);
              multiply_packed(y, x, *packed, bias);
              expect_product(y, x, data, bias, packed->layout(),
                             fmt::format("{} {} compute {} k {} T {}", level, dtype_name(dtype),
                                         dtype_name(compute), k, t));
              if (HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
  // Whatever a level of this machine offers must have been run.
  for (const std::string& level : runnable_levels()) {
    const CpuFeatures features = limit_cpu_features(detect_cpu_features(), level);
    for (int layout = 0; layout < kNumLayouts; ++layout) {
      const TileKernels* kernels = find_kernels(static_cast<Layout>(layout), features);
      EXPECT_TRUE(kernels == nullptr || tested.contains(kernels)) << level << " layout " << layout;
    }
  }
}

TEST(CpuLinear, StridedRowsAndManyChunks) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kQ4_1, DType::kQ8_0}) {
    const Tensor wide = random_floats({700, 1100}, 5);
    const Tensor x = wide.columns(50, 50 + 1024);
    const Tensor data = random_weight(dtype, 70, 1024, 6);
    const auto packed = pack_weight(data, DType::kBF16, cpu_features());
    Tensor out = Tensor::zeros({700, 100}, DType::kF32);
    Tensor y = out.columns(10, 80);
    multiply_packed(y, x, *packed, {});
    expect_product(y, x, data, {}, packed->layout(), dtype_name(dtype));
    for (int64_t t = 0; t < 700; ++t) {
      ASSERT_EQ(out.data<float>()[t * 100 + 9], 0.0f);
      ASSERT_EQ(out.data<float>()[t * 100 + 80], 0.0f);
    }
  }
}

// A row's result does not depend on the rows beside it: batches must not change what a sequence
// says.
TEST(CpuLinear, RowsAreIndependent) {
  for (DType dtype : kWeightTypes) {
    const Tensor x = random_floats({29, 256}, 1);
    const auto packed = pack_weight(random_weight(dtype, 45, 256, 2), DType::kBF16, cpu_features());
    Tensor all = Tensor::empty({29, 45}, DType::kF32);
    multiply_packed(all, x, *packed, {});
    for (int64_t t : {0, 7, 28}) {
      Tensor one = Tensor::empty({1, 45}, DType::kF32);
      multiply_packed(one, x.rows(t, t + 1), *packed, {});
      EXPECT_EQ(one.to_vector<float>(), all.rows(t, t + 1).to_vector<float>()) << dtype_name(dtype);
    }
  }
}

TEST(CpuLinear, NonFiniteActivationsDoNotCrash) {
  for (float bad : {INFINITY, -INFINITY, NAN}) {
    for (DType dtype : kWeightTypes) {
      Tensor x = random_floats({3, 256}, 1);
      x.data<float>()[300] = bad;
      const auto packed =
          pack_weight(random_weight(dtype, 33, 256, 2), DType::kBF16, cpu_features());
      Tensor y = Tensor::empty({3, 33}, DType::kF32);
      multiply_packed(y, x, *packed, {});
      EXPECT_TRUE(std::isfinite(y.data<float>()[0])) << dtype_name(dtype);
      EXPECT_FALSE(std::isfinite(y.data<float>()[33])) << dtype_name(dtype);
    }
  }
}

TEST(CpuFeatures, Levels) {
  const CpuFeatures all = {.avx2 = true, .avx512 = true, .avx512_vnni = true, .avx512_bf16 = true};
  EXPECT_EQ(cpu_features_str(limit_cpu_features(all, "scalar")), "scalar");
  EXPECT_EQ(cpu_features_str(limit_cpu_features(all, "avx2")), "avx2");
  EXPECT_EQ(cpu_features_str(limit_cpu_features(all, "avx512_vnni")), "avx2 avx512 avx512_vnni");
  EXPECT_EQ(limit_cpu_features(all, "avx512_bf16"), all);
  EXPECT_THROW(limit_cpu_features(all, "sse9"), Error);
}

}  // namespace
}  // namespace reft::cpu
