#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <cmath>

namespace reft {
namespace {

TEST(Tensor, ViewsShareStorage) {
  Tensor t = Tensor::from_vector<float>({0, 1, 2, 3, 4, 5}, {3, 2});
  Tensor middle = t.rows(1, 3);
  EXPECT_EQ(middle.to_vector<float>(), (std::vector<float>{2, 3, 4, 5}));
  middle.data<float>()[0] = 9;
  EXPECT_EQ(t.data<float>()[2], 9);
  Tensor right = t.columns(1, 2);
  EXPECT_FALSE(right.is_contiguous());
  EXPECT_EQ(right.to_vector<float>(), (std::vector<float>{1, 3, 5}));
  EXPECT_EQ(t.reshape({2, 3}).size(1), 3);
  EXPECT_THROW(t.reshape({4, 2}), Error);
  EXPECT_THROW(right.reshape({3}), Error);
  EXPECT_THROW(t.rows(2, 4), Error);
}

TEST(Tensor, ShapeRefusesOverflowAndNegatives) {
  EXPECT_THROW((Shape{-1}), Error);
  EXPECT_THROW((Shape{int64_t{1} << 40, int64_t{1} << 40}), Error);
  EXPECT_EQ((Shape{2, 0, 3}.numel()), 0);
}

TEST(Tensor, StorageBoundsAreChecked) {
  Tensor t = Tensor::empty({4}, DType::kF32);
  EXPECT_THROW(Tensor(t.storage(), 4, DType::kF32, {4}), Error);
}

TEST(FloatTypes, RoundTripEveryHalf) {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const f16 h{static_cast<uint16_t>(i)};
    const float x = to_float(h);
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(to_float(to_f16(x))));
    } else {
      EXPECT_EQ(to_f16(x).bits, h.bits) << i;
    }
    const bf16 b{static_cast<uint16_t>(i)};
    const float y = to_float(b);
    if (std::isnan(y)) {
      EXPECT_TRUE(std::isnan(to_float(to_bf16(y))));
    } else {
      EXPECT_EQ(to_bf16(y).bits, b.bits) << i;
    }
  }
}

TEST(FloatTypes, RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.00390625f).bits, to_bf16(1.0f).bits);  // half way, even below
  EXPECT_EQ(to_float(to_bf16(1.01171875f)), 1.015625f);      // half way, even above
  EXPECT_EQ(to_float(to_f16(65520.0f)), INFINITY);
  EXPECT_EQ(to_float(to_f16(1.00048828125f)), 1.0f);
  EXPECT_EQ(to_f16(0x1p-25f).bits, 0);
  EXPECT_EQ(to_f16(0x1.8p-25f).bits, 1);
}

}  // namespace
}  // namespace reft
