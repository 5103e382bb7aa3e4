#include "tensor/dequantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "tensor/checkpoint_reader.h"
#include "tensor/float_types.h"

namespace reft {
namespace {

std::string fixture(const std::string& name) {
  return std::string(REFT_SOURCE_DIR "/src/tensor/testdata/") + name;
}

DType dtype_named(const std::string& name) {
  for (int i = 0; i < static_cast<int>(DType::kCount); ++i) {
    if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
  }
  fail("no dtype {}", name);
}

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(wanted[i])) {
      EXPECT_TRUE(std::isnan(got[i])) << i;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(wanted[i]))
          << "element " << i << ": " << got[i] << ", not " << wanted[i];
    }
  }
}

class Blocks : public testing::TestWithParam<const char*> {};

TEST_P(Blocks, ExpandAsThePythonPackageDoes) {
  const auto file = open_checkpoint(fixture("dequantize.safetensors"));
  const std::string name = GetParam();
  const Tensor blocks = file->read(name + ".blocks");
  const std::vector<float> wanted = file->read(name + ".values").to_vector<float>();
  std::vector<float> got(wanted.size());
  dequantize_row(dtype_named(name), blocks.raw(), got.data(), static_cast<int64_t>(got.size()));
  expect_same_bits(got, wanted);
}
INSTANTIATE_TEST_SUITE_P(All, Blocks,
                         testing::Values("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K",
                                         "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4"),
                         [](const auto& info) { return std::string(info.param); });

class Quantiser : public testing::TestWithParam<const char*> {};

TEST_P(Quantiser, MatchesThePythonPackageBitForBit) {
  const auto file = open_checkpoint(fixture("dequantize.safetensors"));
  const std::string name = GetParam();
  const std::vector<float> input = file->read(name + ".input").to_vector<float>();
  const std::vector<uint8_t> wanted = file->read(name + ".quantised").to_vector<uint8_t>();
  std::vector<uint8_t> got(wanted.size());
  quantize_row(dtype_named(name), input.data(), got.data(), static_cast<int64_t>(input.size()));
  EXPECT_EQ(got, wanted);
}

TEST_P(Quantiser, SurvivesValuesThatAreNotFinite) {
  const DType dtype = dtype_named(GetParam());
  for (const float bad :
       {std::nanf(""), INFINITY, -INFINITY, std::numeric_limits<float>::max(), 1e-45f}) {
    std::vector<float> input(32, 1.0f);
    input[3] = bad;
    input[20] = -bad;
    std::vector<uint8_t> out(static_cast<size_t>(row_bytes(dtype, 32)));
    quantize_row(dtype, input.data(), out.data(), 32);
    dequantize_row(dtype, out.data(), input.data(), 32);
  }
}
INSTANTIATE_TEST_SUITE_P(All, Quantiser, testing::Values("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Dequantize, EveryFp8CodeEqualsPyTorch) {
  const auto file = open_checkpoint(fixture("dequantize.safetensors"));
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i);
  std::vector<float> got(256);
  dequantize_row(DType::kF8E4M3, codes.data(), got.data(), 256);
  expect_same_bits(got, file->read("e4m3.values").to_vector<float>());
  dequantize_row(DType::kF8E5M2, codes.data(), got.data(), 256);
  expect_same_bits(got, file->read("e5m2.values").to_vector<float>());
}

TEST(Dequantize, EveryHalfEqualsTheScalarConversion) {
  std::vector<f16> halves(0x10000);
  std::vector<float> wanted(halves.size());
  for (size_t i = 0; i < halves.size(); ++i) {
    halves[i].bits = static_cast<uint16_t>(i);
    wanted[i] = to_float(halves[i]);
  }
  std::vector<float> got(halves.size());
  dequantize_row(DType::kF16, halves.data(), got.data(), static_cast<int64_t>(got.size()));
  expect_same_bits(got, wanted);
}

TEST(Dequantize, DoublesAreRounded) {
  const double values[] = {0.1, -1e300, 2.0};
  float got[3];
  dequantize_row(DType::kF64, values, got, 3);
  EXPECT_EQ(got[0], 0.1f);
  EXPECT_EQ(got[1], -INFINITY);
  EXPECT_EQ(got[2], 2.0f);
}

TEST(Dequantize, RefusesIntegersAndBrokenBlocks) {
  const int64_t values[64] = {};
  float out[64];
  for (const DType dtype :
       {DType::kI8, DType::kU8, DType::kI16, DType::kI32, DType::kI64, DType::kBool}) {
    EXPECT_THROW(dequantize_row(dtype, values, out, 4), Error);
  }
  EXPECT_THROW(dequantize_row(DType::kQ4_0, values, out, 33), Error);
  uint8_t blocks[256];
  EXPECT_THROW(quantize_row(DType::kQ6_K, out, blocks, 256), Error);
  EXPECT_THROW(quantize_row(DType::kQ8_0, out, blocks, 31), Error);
}

TEST(Dequantize, TensorConversionGoesThroughIt) {
  const Tensor x = Tensor::from_vector<float>(std::vector<float>(64, 0.5f), {2, 32});
  const Tensor back = x.to(DType::kQ8_0).to(DType::kF32);
  for (const float value : back.to_vector<float>()) EXPECT_NEAR(value, 0.5f, 1e-3f);
}

}  // namespace
}  // namespace reft
