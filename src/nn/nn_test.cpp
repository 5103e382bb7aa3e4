// Modules: names, fused weights, embedding.
#include <gtest/gtest.h>

#include <random>

#include "nn/causal_lm.h"
#include "nn/linear.h"
#include "nn/mlp.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

Tensor random_tensor(Shape shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Tensor t = Tensor::empty(shape, DType::kF32);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = normal(random);
  return t;
}

Tensor quantized(const Tensor& values, DType dtype) {
  Tensor t = Tensor::empty(values.shape(), dtype);
  quantize_row(dtype, values.data<float>(), t.raw(), values.numel());
  return t;
}

// x Wᵀ + b in double.
Tensor reference(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Tensor w = weight.to(DType::kF32);
  Tensor y = Tensor::empty({x.size(0), w.size(0)}, DType::kF32);
  for (int64_t t = 0; t < x.size(0); ++t) {
    for (int64_t n = 0; n < w.size(0); ++n) {
      double sum = bias.defined() ? bias.data<float>()[n] : 0.0;
      for (int64_t k = 0; k < w.size(1); ++k) {
        sum += static_cast<double>(x.data<float>()[t * w.size(1) + k]) *
               w.data<float>()[n * w.size(1) + k];
      }
      y.data<float>()[t * w.size(0) + n] = static_cast<float>(sum);
    }
  }
  return y;
}

void set_parameter(Module& module, const std::string& wanted, const Tensor& value) {
  int found = 0;
  module.visit([&](const std::string& name, Parameter& parameter) {
    if (name != wanted) return;
    EXPECT_EQ(parameter.shape.str(), value.shape().str()) << name;
    parameter.set(value);
    ++found;
  });
  EXPECT_EQ(found, 1) << wanted;
}

std::vector<std::string> names_of(Module& module) {
  std::vector<std::string> names;
  module.visit([&](const std::string& name, Parameter&) { names.push_back(name); });
  return names;
}

TEST(Module, ParametersHaveTheirHuggingFaceNamesInOrder) {
  Module root;
  Module layer(&root, "model.layers.3");
  Norm norm(&layer, "norm", 4, 1e-6f);
  Mlp mlp(&layer, "mlp", 4, 8, Activation::kSilu, /*bias=*/true);
  const std::vector<std::string> want = {
      "model.layers.3.norm.weight",        "model.layers.3.mlp.gate_proj.weight",
      "model.layers.3.mlp.gate_proj.bias", "model.layers.3.mlp.up_proj.weight",
      "model.layers.3.mlp.up_proj.bias",   "model.layers.3.mlp.down_proj.weight",
      "model.layers.3.mlp.down_proj.bias"};
  EXPECT_EQ(names_of(root), want);
}

class FusedLinear : public testing::TestWithParam<std::vector<DType>> {};

TEST_P(FusedLinear, IsItsPartsSideBySide) {
  const std::vector<DType>& dtypes = GetParam();
  constexpr int64_t kIn = 64;
  const std::vector<int64_t> rows = {32, 16, 24};
  Module root;
  Linear linear(&root, kIn, {{"q_proj", rows[0]}, {"k_proj", rows[1]}, {"v_proj", rows[2]}},
                /*bias=*/true);
  const char* names[] = {"q_proj", "k_proj", "v_proj"};
  std::vector<Tensor> weights, biases;
  for (size_t i = 0; i < 3; ++i) {
    const auto seed = static_cast<uint32_t>(i);
    weights.push_back(quantized(random_tensor({rows[i], kIn}, seed), dtypes[i]));
    biases.push_back(random_tensor({rows[i]}, 100 + seed));
    set_parameter(root, names[i] + std::string(".weight"), weights.back());
    set_parameter(root, names[i] + std::string(".bias"), biases.back());
  }
  linear.finish_loading(kCpuDevice, DType::kF32);
  EXPECT_EQ(linear.out_features(), 72);
  EXPECT_GT(linear.weight_bytes(), 0);
  for (const int64_t tokens : {1, 5}) {
    const Tensor x = random_tensor({tokens, kIn}, 9);
    const Tensor y = linear(x);
    int64_t begin = 0;
    for (size_t i = 0; i < 3; ++i) {
      const Tensor want = reference(x, weights[i], biases[i]);
      const Tensor got = y.columns(begin, begin + rows[i]).contiguous();
      for (int64_t j = 0; j < want.numel(); ++j) {
        EXPECT_NEAR(got.data<float>()[j], want.data<float>()[j], 2e-5f)
            << names[i] << " element " << j;
      }
      begin += rows[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, FusedLinear,
                         testing::Values(std::vector{DType::kF32, DType::kF32, DType::kF32},
                                         std::vector{DType::kQ4_1, DType::kQ4_1, DType::kQ4_1},
                                         std::vector{DType::kQ4_0, DType::kQ4_0, DType::kQ8_0},
                                         std::vector{DType::kQ8_0, DType::kF16, DType::kBF16}));

TEST(Linear, QuantizedAtLoadIsTheProductOfItsCodes) {
  const Tensor up = random_tensor({24, 64}, 1), down = random_tensor({16, 64}, 2);
  Module root;
  Linear linear(&root, 64, {{"up", 24}, {"down", 16}});
  set_parameter(root, "up.weight", up.to(DType::kBF16));
  set_parameter(root, "down.weight", down.to(DType::kBF16));
  root.visit([](const std::string&, Parameter& parameter) { parameter.quantize = true; });
  linear.finish_loading(kCpuDevice, DType::kF32);
  const Tensor x = random_tensor({3, 64}, 3), y = linear(x);
  int64_t begin = 0;
  for (const Tensor& part : {up, down}) {
    Weight weight = Weight::from(part.to(DType::kBF16));
    quantize_weight(weight, kCpuDevice);
    const Tensor values = expand_scaled(weight.data, weight.scales, DType::kF32);
    const Tensor want = reference(x, values, Tensor::zeros({part.size(0)}, DType::kF32));
    const Tensor got = y.columns(begin, begin + part.size(0)).contiguous();
    for (int64_t i = 0; i < want.numel(); ++i)
      EXPECT_NEAR(got.data<float>()[i], want.data<float>()[i], 2e-5f) << i;
    begin += part.size(0);
  }
}

TEST(Embedding, ScaleIsRoundedToTheTablesDtype) {
  const Tensor table = random_tensor({5, 32}, 3);
  const float scale = std::sqrt(3456.0f);  // 58.79 is 58.75 in bfloat16
  for (const auto& [dtype, want] : {std::pair(DType::kF32, scale), std::pair(DType::kBF16, 58.75f),
                                    std::pair(DType::kQ8_0, scale)}) {
    Module root;
    Embedding embedding(&root, "embed", 5, 32, scale, /*is_head=*/false);
    const Tensor own = quantized(table, dtype);
    set_parameter(root, "embed.weight", own);
    embedding.finish_loading(kCpuDevice, dtype == DType::kF32 ? DType::kF32 : DType::kBF16);
    const Tensor y = embedding(Tensor::from_vector<int32_t>({4, 0}));
    const Tensor values = own.to(DType::kF32);
    for (int64_t i = 0; i < 32; ++i) {
      EXPECT_FLOAT_EQ(y.data<float>()[i], values.data<float>()[4 * 32 + i] * want)
          << dtype_name(dtype);
    }
  }
}

}  // namespace
}  // namespace reft
