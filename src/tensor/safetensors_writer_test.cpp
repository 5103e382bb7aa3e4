#include "tensor/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "base/json.h"
#include "tensor/checkpoint_reader.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class SafetensorsWriter : public testing::Test {
 protected:
  SafetensorsWriter()
      : folder_((fs::temp_directory_path() / fmt::format("reft_safetensors_writer_{}", ::getpid()))
                    .string()) {
    fs::create_directories(folder_);
  }
  ~SafetensorsWriter() override { fs::remove_all(folder_); }
  std::string folder_;
};

NamedTensors some_tensors() {
  return {{"a", Tensor::from_vector<float>(std::vector<float>(10, 1))},   // 40 bytes
          {"b", Tensor::from_vector<uint8_t>({1, 2, 3})},                 // 3
          {"c", Tensor::from_vector<float>(std::vector<float>(100, 3))},  // 400
          {"d", Tensor::from_vector<int64_t>({-4})},                      // 8
          {"e", Tensor::from_vector<float>({5, 6}).to(DType::kBF16)}};    // 4
}

std::vector<std::byte> bytes_of(const Tensor& t) { return {t.raw(), t.raw() + t.nbytes()}; }

void expect_reads_back(const std::string& folder) {
  const auto reader = open_checkpoint(folder);
  EXPECT_EQ(reader->entries().size(), 5U);
  for (const auto& [name, tensor] : some_tensors()) {
    const Tensor read = reader->read(name);
    EXPECT_EQ(read.dtype(), tensor.dtype());
    EXPECT_EQ(read.shape(), tensor.shape());
    EXPECT_EQ(bytes_of(read), bytes_of(tensor)) << name;
  }
}

TEST_F(SafetensorsWriter, WhatFitsIsOneFile) {
  EXPECT_THAT(write_safetensors_shards(folder_, "model", some_tensors(), 455),
              ElementsAre("model.safetensors"));
  expect_reads_back(folder_);
}

TEST_F(SafetensorsWriter, ShardsHaveAnIndexAndKeepTheOrder) {
  EXPECT_THAT(write_safetensors_shards(folder_, "model", some_tensors(), 43),
              ElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                          "model-00003-of-00003.safetensors", "model.safetensors.index.json"));
  expect_reads_back(folder_);
  const Json index = read_json_file(folder_ + "/model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 455);
  const Json& map = index["weight_map"];
  EXPECT_EQ(map["a"], map["b"]);
  EXPECT_EQ(map["c"], "model-00002-of-00003.safetensors");  // larger than a shard, alone
  EXPECT_EQ(map["d"], map["e"]);
}

TEST_F(SafetensorsWriter, DataIsAlignedAndTheFormatIsNamed) {
  write_safetensors(folder_ + "/x.safetensors", some_tensors());
  const std::string file = read_file(folder_ + "/x.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  EXPECT_EQ((8 + length) % 64, 0U);
  const Json header = parse_json(file.substr(8, length), "header");
  EXPECT_EQ(header["__metadata__"]["format"], "pt");
  EXPECT_EQ(header["d"]["data_offsets"], Json::parse("[0,8]"));  // the widest elements first
  EXPECT_EQ(header["b"]["data_offsets"][1].get<uint64_t>(), file.size() - 8 - length);
}

TEST(ParseByteSize, KnowsTheUnits) {
  EXPECT_EQ(parse_byte_size("5GB", "max_shard_size"), 5'000'000'000);
  EXPECT_EQ(parse_byte_size("1.5 mb", "max_shard_size"), 1'500'000);
  EXPECT_EQ(parse_byte_size("2GiB", "max_shard_size"), int64_t{2} << 30);
  EXPECT_EQ(parse_byte_size("12345", "max_shard_size"), 12345);
  for (const char* bad : {"", "GB", "5XB", "-1GB", "0", "nan", "1e300GB", "5GB5"}) {
    try {
      parse_byte_size(bad, "max_shard_size");
      ADD_FAILURE() << bad;
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("--max_shard_size must be a size"));
    }
  }
}

}  // namespace
}  // namespace reft
