// What is written is what the reader reads, and quantisers are no worse than ggml's.
#include "tensor/gguf_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "base/error_of_test.h"
#include "base/json.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class GgufWriterTest : public testing::Test {
 protected:
  GgufWriterTest()
      : path_((fs::temp_directory_path() / fmt::format("reft_gguf_{}.gguf", ::getpid())).string()) {
  }
  ~GgufWriterTest() override { fs::remove(path_); }
  std::string path_;
};

GgufTensor tensor_of(const std::string& name, const Tensor& value) {
  return {name, value.dtype(), value.shape(), [value] { return value; }};
}

// The values of tools/make_export_golden.py.
std::vector<float> fixed_values(const std::string& kind) {
  uint32_t state = 12345;
  std::vector<float> values;
  for (int i = 0; i < 16 * 256; ++i) {
    double total = 0;
    for (int k = 0; k < 4; ++k) {
      state = state * 1664525u + 1013904223u;
      total += static_cast<double>(state) / 4294967296.0 - 0.5;
    }
    const double x = total * 0.05;
    values.push_back(static_cast<float>(kind == "bell"       ? x
                                        : kind == "outliers" ? x * (i % 97 == 0 ? 20 : 1)
                                        : kind == "shifted"  ? x + 0.04
                                                             : std::pow(total * 2, 3)));
  }
  return values;
}

TEST_F(GgufWriterTest, MetadataOfEveryTypeComesBack) {
  const GgufMetadata metadata = {
      {"general.architecture", std::string("llama")},
      {"a.flag", true},
      {"a.count", int64_t{4'000'000'000}},
      {"a.negative", int64_t{-5}},
      {"a.large", int64_t{1} << 40},
      {"a.number", 0.5},
      {"a.texts", std::vector<std::string>{"", "ä", std::string("\0x", 2)}},
      {"a.ids", std::vector<int64_t>{1, -2, 3}},
      {"a.numbers", std::vector<double>{1.5, -2.25}},
      {"a.flags", std::vector<bool>{true, false}},
  };
  write_gguf(path_, metadata, {});
  EXPECT_EQ(open_gguf(path_)->metadata(), metadata);
}

TEST_F(GgufWriterTest, TensorsOfEveryTypeComeBack) {
  const std::vector<float> values = fixed_values("bell");
  const Tensor source = Tensor::from_vector(values, {8, 512});
  std::vector<GgufTensor> tensors = {
      tensor_of("odd", Tensor::from_vector(std::vector<float>{1, 2, 3}))};
  const DType all[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ4_0, DType::kQ4_1,
                       DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ4_K};
  for (const DType dtype : all) {
    tensors.push_back(tensor_of(dtype_name(dtype), quantized(source, dtype)));
  }
  write_gguf(path_, {}, tensors);
  const auto reader = open_gguf(path_);
  ASSERT_EQ(reader->entries().size(), tensors.size());
  EXPECT_EQ(reader->read("odd").to_vector<float>(), (std::vector<float>{1, 2, 3}));
  for (const DType dtype : all) {
    const Tensor got = reader->read(dtype_name(dtype));
    EXPECT_EQ(got.dtype(), dtype);
    EXPECT_EQ(got.shape(), source.shape());
    const std::vector<float> expanded = got.to(DType::kF32).to_vector<float>();
    double error = 0, power = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      error += std::pow(double{expanded[i]} - double{values[i]}, 2);
      power += std::pow(double{values[i]}, 2);
    }
    // Half a step of 4 bits over the range of 32 values, about six deviations, is uniform noise of
    // a sixtieth of that range.
    EXPECT_LT(std::sqrt(error / power), is_block_format(dtype) ? 0.12 : 0.005) << dtype_name(dtype);
  }
}

TEST_F(GgufWriterTest, FaultsNameTheTensorAndLeaveNoFile) {
  const Tensor whole = Tensor::from_vector(std::vector<int32_t>{1});
  EXPECT_THAT(error_of([&] { write_gguf(path_, {}, {tensor_of("ints", whole)}); }),
              HasSubstr("'ints'"));
  const Tensor one = Tensor::from_vector(std::vector<float>{1});
  EXPECT_THAT(error_of([&] {
                write_gguf(path_, {}, {tensor_of("a", one), tensor_of("a", one)});
              }),
              HasSubstr("'a' is taken"));
  GgufTensor other = tensor_of("b", one);
  other.shape = {2};
  EXPECT_THAT(error_of([&] { write_gguf(path_, {}, {other}); }), HasSubstr("'b'"));
  EXPECT_FALSE(fs::exists(path_));
  EXPECT_THAT(error_of([&] {
                quantized(Tensor::from_vector(std::vector<float>{70000}, {1, 1}), DType::kF16);
              }),
              HasSubstr("float16"));
}

TEST(QuantizeQ4K, ErrorsAreNotAboveThoseOfGgml) {
  const Json golden = read_json_file(std::string(REFT_SOURCE_DIR) + "/tests/train/q4_k.json");
  for (const auto& [kind, theirs] : golden.items()) {
    const std::vector<float> values = fixed_values(kind);
    std::vector<uint8_t> blocks(values.size() / 256 * 144);
    std::vector<float> back(values.size());
    const auto count = static_cast<int64_t>(values.size());
    quantize_row(DType::kQ4_K, values.data(), blocks.data(), count);
    dequantize_row(DType::kQ4_K, blocks.data(), back.data(), count);
    double weighted = 0, squared = 0;
    for (size_t begin = 0; begin < values.size(); begin += 32) {
      double squares = 0;
      for (size_t i = begin; i < begin + 32; ++i) squares += double{values[i]} * double{values[i]};
      const double typical = std::sqrt(squares / 32);
      for (size_t i = begin; i < begin + 32; ++i) {
        const double error = double{back[i]} - double{values[i]};
        weighted += (typical + std::fabs(double{values[i]})) * error * error;
        squared += error * error;
      }
    }
    EXPECT_LE(weighted, theirs.at("weighted")) << kind;
    EXPECT_LE(squared, theirs.at("squared")) << kind;
  }
}

TEST(QuantizeQ4K, BlocksWithoutARangeAndBrokenValuesAreKeptFinite) {
  for (const float value : {0.0f, 3.5f, -3.5f, 1e-30f}) {
    const std::vector<float> values(256, value);
    std::vector<uint8_t> block(144);
    std::vector<float> back(256);
    quantize_row(DType::kQ4_K, values.data(), block.data(), 256);
    dequantize_row(DType::kQ4_K, block.data(), back.data(), 256);
    for (const float x : back) EXPECT_NEAR(x, value, 1e-2 * std::fabs(value) + 1e-7) << value;
  }
  std::vector<float> broken(256, 1.0f);
  broken[3] = NAN;
  broken[77] = INFINITY;
  std::vector<uint8_t> block(144);
  std::vector<float> back(256);
  quantize_row(DType::kQ4_K, broken.data(), block.data(), 256);
  dequantize_row(DType::kQ4_K, block.data(), back.data(), 256);
  for (const float x : back) EXPECT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace reft
