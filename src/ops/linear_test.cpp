#include "ops/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "ops/embedding.h"
#include "ops/op_cases.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

const bool covered = cover_ops({"linear", "prepare_weight", "embedding", "gather_rows"});

Tensor random_tensor(Shape shape, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  Tensor t = Tensor::empty(shape, DType::kF32);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = normal(random);
  return t;
}

TEST(Linear, FloatTypesMatchDouble) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t k : {1, 33, 64, 576}) {
      const Tensor x = random_tensor({5, k}, 1);
      const Tensor data = random_tensor({7, k}, 2).to(dtype);
      const Tensor bias = random_tensor({7}, 3);
      Weight weight = Weight::from(data);
      prepare_weight(weight, kCpuDevice, DType::kF32);
      const Tensor y = linear(x, weight, bias);
      const Tensor w = data.to(DType::kF32);
      for (int64_t t = 0; t < 5; ++t) {
        for (int64_t n = 0; n < 7; ++n) {
          double want = bias.data<float>()[n];
          for (int64_t i = 0; i < k; ++i) {
            want += double{x.data<float>()[t * k + i]} * w.data<float>()[n * k + i];
          }
          EXPECT_NEAR(y.data<float>()[t * 7 + n], want, 1e-5 * std::sqrt(k)) << dtype_name(dtype);
        }
      }
    }
  }
}

TEST(Linear, ChecksShapes) {
  Weight weight = Weight::from(random_tensor({4, 8}, 1));
  prepare_weight(weight, kCpuDevice, DType::kF32);
  EXPECT_THROW(linear(random_tensor({2, 7}, 1), weight), Error);
  EXPECT_THROW(linear(random_tensor({2, 8}, 1), weight, random_tensor({5}, 1)), Error);
  EXPECT_THROW(Weight::from(random_tensor({4}, 1)), Error);
  EXPECT_EQ(linear(Tensor::empty({0, 8}, DType::kF32), weight).size(0), 0);
}

TEST(Embedding, LooksUpScalesAndChecks) {
  const Tensor data = random_tensor({10, 64}, 1).to(DType::kBF16);
  Weight table = Weight::from(data);
  prepare_weight(table, kCpuDevice, DType::kBF16, true);
  const Tensor ids = Tensor::from_vector<int32_t>({3, 9, 0});
  const Tensor out = embedding(ids, table, DType::kF32, 2.0f);
  const Tensor expanded = data.to(DType::kF32);
  for (int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(out.data<float>()[i], 2.0f * expanded.data<float>()[3 * 64 + i]);
    EXPECT_EQ(out.data<float>()[64 + i], 2.0f * expanded.data<float>()[9 * 64 + i]);
  }
  EXPECT_EQ(embedding(ids, table, DType::kBF16).dtype(), DType::kBF16);
  EXPECT_THROW(embedding(Tensor::from_vector<int32_t>({10}), table, DType::kF32), Error);
  EXPECT_THROW(embedding(Tensor::from_vector<int32_t>({-1}), table, DType::kF32), Error);
}

TEST(Embedding, GatherRows) {
  const Tensor x = random_tensor({4, 6}, 1);
  const Tensor out = gather_rows(x.columns(2, 5), Tensor::from_vector<int32_t>({3, 1}));
  EXPECT_EQ(out.size(1), 3);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(out.data<float>()[i], x.data<float>()[3 * 6 + 2 + i]);
    EXPECT_EQ(out.data<float>()[3 + i], x.data<float>()[6 + 2 + i]);
  }
  EXPECT_THROW(gather_rows(x, Tensor::from_vector<int32_t>({4})), Error);
}

}  // namespace
}  // namespace reft
