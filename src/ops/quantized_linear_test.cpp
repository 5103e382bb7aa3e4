// Products with quantised weights on every device: block formats and fp8 with scales for rows and
// for blocks, against the fp64 product of the numbers that the weights stand for.
#include <cmath>
#include <cstring>

#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/op_cases.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

const bool covered = cover_ops({"quantize_fp8"});

constexpr DType kBlockTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,   DType::kQ5_1,
                                 DType::kQ8_0, DType::kQ2_K, DType::kQ3_K,   DType::kQ4_K,
                                 DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL, DType::kMXFP4};

// Random codes; scales of a size that gives weights of about 1.
Tensor random_blocks(Shape shape, DType dtype, uint32_t seed) {
  std::mt19937 random(seed);
  Tensor t = Tensor::empty(shape, dtype);
  auto* bytes = reinterpret_cast<uint8_t*>(t.raw());
  for (int64_t i = 0; i < t.nbytes(); ++i) bytes[i] = static_cast<uint8_t>(random());
  const auto half = [&](uint8_t* at, float size) {
    const f16 value = to_f16(size * (0.5f + static_cast<float>(random() % 1024) / 1024));
    std::memcpy(at, &value, 2);
  };
  const int block = dtype_info(dtype).block_bytes;
  for (uint8_t* b = bytes; b < bytes + t.nbytes(); b += block) {
    switch (dtype) {
      case DType::kQ4_1:
      case DType::kQ5_1:
        half(b, 0.1f);
        half(b + 2, -0.7f);
        break;
      case DType::kQ2_K:
        half(b + 80, 0.05f);
        half(b + 82, 0.05f);
        break;
      case DType::kQ3_K:
        half(b + 108, 0.01f);
        break;
      case DType::kQ4_K:
      case DType::kQ5_K:
        half(b, 0.003f);
        half(b + 2, 0.02f);
        break;
      case DType::kQ6_K:
        half(b + 208, 0.0005f);
        break;
      case DType::kMXFP4:
        b[0] = static_cast<uint8_t>(125 + random() % 4);
        break;
      default:
        half(b, dtype == DType::kQ8_0 || dtype == DType::kIQ4_NL ? 0.01f : 0.1f);
    }
  }
  return t;
}

// Some scales of rows or blocks, and codes of all magnitudes.
Weight random_fp8(int64_t n, int64_t k, bool blocks, uint32_t seed) {
  const Tensor codes = random_values({n, k}, seed, 30.0f).to(DType::kF8E4M3);
  const auto count = [](int64_t x) { return (x + kFp8Block - 1) / kFp8Block; };
  const Shape shape = blocks ? Shape{count(n), count(k)} : Shape{n};
  const Tensor scales = Tensor::empty(shape, DType::kF32);
  std::mt19937 random(seed + 1);
  for (int64_t i = 0; i < scales.numel(); ++i)
    scales.data<float>()[i] = 0.01f + 0.05f * static_cast<float>(random() % 1000) / 1000;
  return Weight::from(codes, scales);
}

Tensor values_of(const Weight& weight) {
  return weight.scales.defined() ? expand_scaled(weight.data, weight.scales, DType::kF32)
                                 : weight.data.to(DType::kF32);
}

struct Product {
  std::vector<double> y;
  std::vector<double> magnitude;  // Σ |x| times the largest weight of the row: of rounding errors
};

Product product(const std::vector<double>& x, const std::vector<double>& w,
                const std::vector<double>& bias, int64_t tokens, int64_t n, int64_t k) {
  Product p;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias.empty() ? 0 : bias[static_cast<size_t>(j)], largest = 0, size = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double a = x[static_cast<size_t>(t * k + i)], b = w[static_cast<size_t>(j * k + i)];
        sum += a * b;
        size += std::abs(a);
        largest = std::max(largest, std::abs(b));
      }
      p.y.push_back(sum);
      p.magnitude.push_back(size * largest);
    }
  }
  return p;
}

// Of each of `rows` rows the largest error beyond what `relative` of the magnitude and the result's
// rounding explain.
std::vector<double> excess(const std::vector<double>& got, const Product& want,
                           const std::vector<double>& bias, double relative, DType dtype,
                           int64_t rows) {
  // The result is rounded, and before a bias is added the product may be.
  const double rounding = dtype == DType::kF32 ? 0 : dtype == DType::kF16 ? 0x1p-10 : 0x1p-7;
  std::vector<double> worst(static_cast<size_t>(rows), -INFINITY);
  for (size_t i = 0; i < got.size(); ++i) {
    double& of_row = worst[i / (got.size() / worst.size())];
    const double before = bias.empty() ? 0 : want.y[i] - bias[i % bias.size()];
    const double allowed =
        relative * want.magnitude[i] + rounding * (std::abs(want.y[i]) + std::abs(before));
    const double error = std::abs(got[i] - want.y[i]);
    of_row = std::max(of_row, std::isnan(error) ? INFINITY : error - allowed);
  }
  return worst;
}

// x with fp8 in its place, as products of two fp8 operands take it.
std::vector<double> through_fp8(const Tensor& x, bool blocks) {
  const Tensor values = x.to(DType::kF32);
  const int64_t k = x.size(1), group = blocks ? kFp8Block : k;
  std::vector<double> result;
  for (int64_t t = 0; t < x.size(0); ++t) {
    const float* row = values.data<float>() + t * k;
    for (int64_t at = 0; at < k; at += group) {
      const int64_t end = std::min(k, at + group);
      float largest = 0;
      for (int64_t i = at; i < end; ++i) largest = std::max(largest, std::abs(row[i]));
      const float scale = largest > 0 ? largest / 448.0f : 1.0f;
      for (int64_t i = at; i < end; ++i) {
        float value = row[i] / scale;
        uint8_t code;
        quantize_row(DType::kF8E4M3, &value, &code, 1);
        dequantize_row(DType::kF8E4M3, &code, &value, 1);
        result.push_back(double{value} * scale);
      }
    }
  }
  return result;
}

void run_case(const Weight& weight, int64_t tokens, bool with_bias, DType dtype, DType out_dtype,
              Device device) {
  const int64_t n = weight.out_features, k = weight.in_features;
  const bool on_cpu = device.type == DeviceType::kCpu, fp8 = weight.scales.defined();
  SCOPED_TRACE(fmt::format("{} {} T {} N {} K {} {} to {}{}", device, dtype_name(weight.dtype),
                           tokens, n, k, dtype_name(dtype), dtype_name(out_dtype),
                           with_bias ? " with bias" : ""));
  const std::vector<double> w = doubles(values_of(weight));
  const Tensor x = random_values({tokens, k}, 1).to(dtype);
  const Tensor bias = with_bias ? random_values({n}, 3) : Tensor();
  const std::vector<double> added = with_bias ? doubles(bias) : std::vector<double>();
  const Product want = product(doubles(x), w, added, tokens, n, k);
  Weight prepared = weight;
  prepare_weight(prepared, device, on_cpu ? DType::kBF16 : dtype);
  // Columns of a wider result, whose neighbours stay as they were.
  const Tensor wide = Tensor::zeros({tokens, n + 16}, out_dtype, device);
  Tensor y = wide.columns(8, 8 + n);
  linear_into(y, x.to(device), prepared, with_bias ? bias.to(device) : Tensor());
  const std::vector<double> all = doubles(wide);
  std::vector<double> got;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto column = static_cast<int64_t>(i % static_cast<size_t>(n + 16));
    if (column >= 8 && column < 8 + n) {
      got.push_back(all[i]);
    } else {
      ASSERT_EQ(all[i], 0) << "beside the result";
    }
  }
  // fp32 sums of exact terms; or weights rounded to 16 bits (the activations, on the CPU). Half an
  // ulp each.
  const double exact = 1e-6, rounded = dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
  const bool streams = tokens <= 64 && k % 64 == 0;
  const double relative = dtype == DType::kF32 || (!on_cpu && (streams || !fp8) && tokens <= 64)
                              ? (on_cpu ? rounded : exact)
                              : rounded;
  std::vector<double> worst = excess(got, want, added, relative, out_dtype, tokens);
  if (fp8 && !on_cpu && tokens > 32) {
    // Rows may have been multiplied in fp8 altogether: sums in the precision of that instruction.
    const Product other =
        product(through_fp8(x, weight.scales.dims() == 2), w, added, tokens, n, k);
    const std::vector<double> second = excess(got, other, added, 0x1p-11, out_dtype, tokens);
    for (size_t t = 0; t < worst.size(); ++t) worst[t] = std::min(worst[t], second[t]);
  }
  for (size_t t = 0; t < worst.size(); ++t) EXPECT_LE(worst[t], 0) << "row " << t;
}

template <class Make>
void run_cases(Device device, int64_t k_step, Make make) {
  struct Case {
    int64_t tokens, n, k;
  };
  for (const DType dtype : activation_dtypes(device)) {
    if (device.type != DeviceType::kCpu && dtype == DType::kF32) continue;
    for (const Case& c :
         {Case{1, 16, 256}, Case{2, 33, 512}, Case{8, 7, 256}, Case{9, 24, 768}, Case{16, 40, 256},
          Case{17, 17, 1280}, Case{40, 20, 256}, Case{64, 9, 256}, Case{65, 48, 256},
          Case{100, 160, 512}, Case{1, 130, 4096}, Case{3, 8, k_step}, Case{70, 21, 3 * k_step},
          Case{5, 19, 5 * k_step}}) {
      const Weight weight = make(c.n, c.k);
      for (const bool with_bias : {false, true})
        run_case(weight, c.tokens, with_bias, dtype, dtype, device);
      run_case(weight, c.tokens, false, dtype, DType::kF32, device);
    }
  }
}

TEST(QuantizedLinear, BlocksMatchOracle) {
  for (const Device device : test_devices()) {
    for (const DType type : kBlockTypes) {
      run_cases(device, dtype_info(type).block_elems, [&](int64_t n, int64_t k) {
        return Weight::from(random_blocks({n, k}, type, 2));
      });
    }
  }
}

TEST(QuantizedLinear, Fp8MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const bool blocks : {false, true}) {
      for (const int64_t step : {64, 16, 11})
        run_cases(device, step, [&](int64_t n, int64_t k) { return random_fp8(n, k, blocks, 2); });
    }
  }
}

TEST(QuantizedLinear, Float32ExpandsExactly) {
  for (const Device device : test_devices()) {
    std::vector<Weight> weights = {random_fp8(30, 96, false, 1), random_fp8(140, 192, true, 1)};
    for (const DType type : kBlockTypes)
      weights.push_back(Weight::from(random_blocks({12, 256}, type, 1)));
    for (Weight& weight : weights) {
      const int64_t n = weight.out_features, k = weight.in_features;
      const Tensor x = random_values({5, k}, 2);
      const Product want = product(doubles(x), doubles(values_of(weight)), {}, 5, n, k);
      const DType type = weight.dtype;
      prepare_weight(weight, device, DType::kF32);
      const Tensor y = linear(x.to(device), weight);
      for (const double worst : excess(doubles(y), want, {}, 1e-6, DType::kF32, 5))
        EXPECT_LE(worst, 0) << dtype_name(type);
    }
  }
}

// The fused kernels against the two ops that they stand for.
TEST(QuantizedLinear, GatedMatchesTheOpsOneByOne) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      if (device.type != DeviceType::kCpu && dtype == DType::kF32) continue;
      std::vector<std::pair<int64_t, Weight>> cases;
      for (const DType type : kBlockTypes) {
        cases.emplace_back(1, Weight::from(random_blocks({2 * 40, 256}, type, 1)));
        cases.emplace_back(13, Weight::from(random_blocks({2 * 24, 512}, type, 1)));
      }
      for (const bool blocks : {false, true}) {
        cases.emplace_back(2, random_fp8(2 * 136, 256, blocks, 1));
        cases.emplace_back(20, random_fp8(2 * 264, 192, blocks, 1));
        cases.emplace_back(3, random_fp8(2 * 12, 64, blocks, 1));  // no fused form
      }
      for (auto& [tokens, weight] : cases) {
        SCOPED_TRACE(fmt::format("{} {} T {} {}", device, dtype_name(weight.dtype), tokens,
                                 dtype_name(dtype)));
        const int64_t n = weight.out_features, k = weight.in_features;
        prepare_weight(weight, device, dtype == DType::kF32 ? DType::kBF16 : dtype);
        const Tensor x = random_values({tokens, k}, 2, 0.05f).to(dtype).to(device);
        const Tensor bias = random_values({n}, 3).to(device);
        const Tensor want = gated_activation(linear(x, weight, bias), Activation::kSilu);
        const std::vector<double> expected = doubles(want);
        const std::vector<double> got = doubles(gated_linear(x, weight, bias, Activation::kSilu));
        ASSERT_EQ(got.size(), expected.size());
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_NEAR(got[i], expected[i], tolerance(dtype) * (std::abs(expected[i]) + 1e-2))
              << "[" << i << "]";
        }
      }
    }
  }
}

TEST(QuantizedLinear, EmbeddingLooksBlocksUp) {
  for (const Device device : test_devices()) {
    const DType dtype = activation_dtypes(device).back();
    for (const DType type : kBlockTypes) {
      for (const int64_t k : {int64_t{dtype_info(type).block_elems}, int64_t{768}}) {
        const Tensor blocks = random_blocks({21, k}, type, 1);
        Weight table = Weight::from(blocks);
        prepare_weight(table, device, DType::kBF16, /*keep_data=*/true);
        const std::vector<int32_t> ids = {20, 0, 7, 8, 9, 7};
        const Tensor out = embedding(Tensor::from_vector(ids).to(device), table, dtype, 2.0f);
        const std::vector<double> values = doubles(blocks.to(DType::kF32));
        std::vector<double> want;
        for (const int32_t id : ids) {
          for (int64_t i = 0; i < k; ++i)
            want.push_back(2 * values[static_cast<size_t>(id * k + i)]);
        }
        expect_close(out, want, tolerance(dtype), dtype_name(type));
      }
    }
  }
}

TEST(QuantizeFp8, IsTheNearestCodeOfTheScaledValue) {
  for (const Device device : test_devices()) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const int64_t k : {1, 7, 128, 200, 1024, 4104}) {
        for (const int64_t group : {int64_t{0}, kFp8Block}) {
          Tensor x = random_values({5, k}, static_cast<uint32_t>(k));
          std::fill_n(x.data<float>() + k, k, 0.0f);  // a row of zeros
          x = x.to(dtype);
          const int64_t groups = group == 0 ? 1 : (k + group - 1) / group;
          Tensor codes = Tensor::empty({5, k}, DType::kF8E4M3, device);
          Tensor scales =
              Tensor::empty(group == 0 ? Shape{5} : Shape{groups, 5}, DType::kF32, device);
          quantize_fp8(x.to(device), group, codes, scales);
          const std::vector<double> got = doubles(codes), scale = doubles(scales);
          const std::vector<double> want = through_fp8(x, group != 0);
          for (size_t i = 0; i < want.size(); ++i) {
            const size_t row = i / static_cast<size_t>(k), column = i % static_cast<size_t>(k);
            const size_t at = (group == 0 ? 0 : column / kFp8Block * 5) + row;
            ASSERT_NEAR(got[i] * scale[at], want[i], 1e-7 * std::abs(want[i]))
                << fmt::format("{} ", device) << dtype_name(dtype) << " K " << k << " group "
                << group << " [" << i << "]";
          }
        }
      }
    }
  }
}

TEST(QuantizeFp8, WeightsKeepTheirSizeOfError) {
  for (const Device device : test_devices()) {
    const Tensor data = random_values({20, 96}, 1).to(DType::kBF16);
    Weight weight = Weight::from(data);
    quantize_weight(weight, device);
    EXPECT_EQ(weight.dtype, DType::kF8E4M3);
    const std::vector<double> got = doubles(expand_scaled(weight.data, weight.scales, DType::kF32));
    // Half a step is 1/16 of a value, or of the smallest normal where it is below (2^-6 of 448).
    const std::vector<double> want = doubles(data), scales = doubles(weight.scales);
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_NEAR(got[i], want[i],
                  std::max(std::abs(want[i]), 0x1p-6 * scales[i / 96]) * 0x1.001p-4);
    }
  }
}

TEST(QuantizedLinear, RefusesBadScales) {
  const Tensor codes = random_values({6, 32}, 1).to(DType::kF8E4M3);
  EXPECT_THROW(Weight::from(codes, random_values({5}, 1)), Error);
  EXPECT_THROW(Weight::from(codes, random_values({1, 2}, 1)), Error);
  EXPECT_THROW(Weight::from(random_values({6, 32}, 1), random_values({6}, 1)), Error);
  Weight blocks = Weight::from(random_blocks({2, 32}, DType::kQ4_0, 1));
  EXPECT_THROW(quantize_weight(blocks, kCpuDevice), Error);
}

}  // namespace
}  // namespace reft
