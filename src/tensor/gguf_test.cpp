#include "tensor/gguf.h"
#include "base/error_of_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "base/file.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string fixture(const std::string& name) {
  return std::string(REFT_SOURCE_DIR "/src/tensor/testdata/") + name;
}

// Builds a GGUF file field by field, so that each can lie.
class Builder {
 public:
  uint32_t magic = 0x46554747;
  uint32_t version = 3;
  uint64_t num_tensors = 0;
  uint64_t num_values = 0;
  size_t data_bytes = 0;

  template <class T>
  Builder& number(T value) {
    body_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Builder& text(const std::string& value) {
    number<uint64_t>(value.size());
    body_ += value;
    return *this;
  }
  Builder& key(const std::string& name, uint32_t type) {
    ++num_values;
    return text(name).number(type);
  }
  Builder& tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type,
                  uint64_t offset) {
    ++num_tensors;
    text(name).number(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) number(dim);
    return number(type).number(offset);
  }
  std::string file(uint64_t alignment = 32) const {
    std::string out;
    const auto put = [&](auto value) {
      out.append(reinterpret_cast<const char*>(&value), sizeof(value));
    };
    put(magic);
    put(version);
    put(num_tensors);
    put(num_values);
    out += body_;
    if (data_bytes > 0)
      out.resize((out.size() + alignment - 1) / alignment * alignment + data_bytes, '\1');
    return out;
  }
  std::string error(uint64_t alignment = 32) const {
    const std::string bytes = file(alignment);
    return error_of([&] { parse_gguf(std::as_bytes(std::span(bytes)), "test.gguf"); });
  }

 private:
  std::string body_;
};

constexpr uint32_t kUint32 = 4, kBool = 7, kString = 8, kArray = 9, kUint64 = 10;

TEST(Gguf, ReadsWhatThePythonWriterWrites) {
  const auto file = open_gguf(fixture("small.gguf"));
  EXPECT_EQ(file->require<std::string>("general.architecture"), "llama");
  EXPECT_EQ(file->require<int64_t>("test.uint8"), 200);
  EXPECT_EQ(file->require<int64_t>("test.int8"), -100);
  EXPECT_EQ(file->require<int64_t>("test.uint16"), 60000);
  EXPECT_EQ(file->require<int64_t>("test.int16"), -30000);
  EXPECT_EQ(file->require<int64_t>("test.uint32"), 4000000000);
  EXPECT_EQ(file->require<int64_t>("test.int32"), -2000000000);
  EXPECT_EQ(file->require<int64_t>("test.uint64"), int64_t{1} << 40);
  EXPECT_EQ(file->require<int64_t>("test.int64"), -(int64_t{1} << 40));
  EXPECT_EQ(file->require<double>("test.float32"), 0.5);
  EXPECT_EQ(file->require<double>("test.float64"), 0.1);
  EXPECT_EQ(file->require<bool>("test.bool"), true);
  EXPECT_EQ(file->require<std::string>("test.string"), "grüße");
  EXPECT_EQ(file->require<std::vector<int64_t>>("test.ints"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(file->require<std::vector<double>>("test.floats"), (std::vector<double>{0.5, -1.5}));
  EXPECT_EQ(file->require<std::vector<std::string>>("test.strings"),
            (std::vector<std::string>{"a", "", "日本"}));
  EXPECT_EQ(file->require<std::vector<bool>>("test.bools"), (std::vector<bool>{true, false, true}));

  ASSERT_EQ(file->entries().size(), 5U);
  const auto expect_entry = [&](size_t i, const char* name, DType dtype, const Shape& shape) {
    EXPECT_EQ(file->entries()[i].name, name);
    EXPECT_EQ(file->entries()[i].dtype, dtype);
    EXPECT_EQ(file->entries()[i].shape, shape) << file->entries()[i].shape.str();
  };
  expect_entry(0, "a.weight", DType::kQ8_0, {4, 32});
  expect_entry(1, "b.weight", DType::kQ6_K, {2, 256});
  expect_entry(2, "c.bias", DType::kF32, {7});
  expect_entry(3, "d.weight", DType::kF16, {3, 5});
  expect_entry(4, "e.ids", DType::kI32, {2, 3, 2});
  EXPECT_EQ(file->read("c.bias").to_vector<float>(), (std::vector<float>{0, 1, 2, 3, 4, 5, 6}));
  std::vector<int32_t> ids(12);
  std::iota(ids.begin(), ids.end(), 0);
  EXPECT_EQ(file->read("e.ids").to_vector<int32_t>(), ids);
  EXPECT_EQ(open_checkpoint(fixture("small.gguf"))->entries().size(), 5U);
}

TEST(Gguf, MetadataIsWidenedAndTyped) {
  const auto file = open_gguf(fixture("small.gguf"));
  EXPECT_EQ(file->get<int64_t>("test.bool", 7), 1);
  EXPECT_EQ(file->get<double>("test.uint8", 0), 200.0);
  EXPECT_EQ(file->get<std::vector<double>>("test.ints", {}), (std::vector<double>{1, -2, 3}));
  EXPECT_EQ(file->get<std::vector<int64_t>>("test.bools", {}), (std::vector<int64_t>{1, 0, 1}));
  EXPECT_EQ(file->get<int64_t>("absent", 7), 7);
  EXPECT_EQ(file->get<std::string>("absent", "x"), "x");
  EXPECT_THAT(error_of([&] { file->get<int64_t>("test.string", 0); }),
              HasSubstr("small.gguf: metadata 'test.string' has the wrong type"));
  EXPECT_THAT(error_of([&] { file->get<int64_t>("test.float32", 0); }), HasSubstr("wrong type"));
  EXPECT_THAT(error_of([&] { file->get<bool>("test.uint8", false); }), HasSubstr("wrong type"));
  EXPECT_THAT(error_of([&] { file->get<std::vector<std::string>>("test.ints", {}); }),
              HasSubstr("wrong type"));
  EXPECT_THAT(error_of([&] { file->require<int64_t>("absent"); }),
              HasSubstr("no metadata 'absent'"));
}

TEST(Gguf, SplitFilesLoadFromAnyOfThem) {
  for (const char* name : {"split-00001-of-00002.gguf", "split-00002-of-00002.gguf"}) {
    const auto file = open_gguf(fixture(name));
    EXPECT_EQ(file->entries().size(), 3U);
    EXPECT_EQ(file->require<std::string>("test.string"), "first");
    EXPECT_EQ(file->read("d.weight").shape(), (Shape{3, 5}));
    EXPECT_EQ(file->path(), fixture("split-00001-of-00002.gguf"));
  }
}

class GgufFolder : public testing::Test {
 protected:
  GgufFolder() : folder_(fs::temp_directory_path() / ("reft_gguf_" + std::to_string(::getpid()))) {
    fs::create_directories(folder_);
  }
  ~GgufFolder() override { fs::remove_all(folder_); }
  void copy(const char* from, const char* to) const { fs::copy_file(fixture(from), folder_ / to); }
  std::string open_error(const char* name = "") const {
    return error_of([&] { open_checkpoint((folder_ / name).string()); });
  }

  fs::path folder_;
};

TEST_F(GgufFolder, HoldsOneModel) {
  copy("split-00001-of-00002.gguf", "x-00001-of-00002.gguf");
  EXPECT_THAT(open_error(), HasSubstr("x-00002-of-00002.gguf' is missing, the file 2 of 2"));
  copy("split-00002-of-00002.gguf", "x-00002-of-00002.gguf");
  copy("small.gguf", "mmproj-F16.gguf");
  EXPECT_EQ(open_checkpoint(folder_.string())->entries().size(), 3U);
  copy("small.gguf", "y.gguf");
  EXPECT_THAT(open_error(),
              HasSubstr("several GGUF models: name one of x-00001-of-00002.gguf, y.gguf"));
}

TEST_F(GgufFolder, SplitsMustAgree) {
  copy("split-00001-of-00002.gguf", "x.gguf");
  EXPECT_THAT(open_error("x.gguf"), HasSubstr("must be named like 'name-00001-of-00002.gguf'"));
  copy("split-00001-of-00002.gguf", "y-00001-of-00002.gguf");
  copy("split-00001-of-00002.gguf", "y-00002-of-00002.gguf");
  EXPECT_THAT(open_error("y-00001-of-00002.gguf"), HasSubstr("tensor 'a.weight' is already in"));
  copy("split-00002-of-00002.gguf", "z-00001-of-00002.gguf");
  copy("split-00002-of-00002.gguf", "z-00002-of-00002.gguf");
  EXPECT_THAT(open_error("z-00001-of-00002.gguf"),
              HasSubstr("does not say that it is the file 1 of 2"));
}

TEST_F(GgufFolder, ATruncatedFileIsNamed) {
  copy("small.gguf", "x.gguf");
  const auto size = fs::file_size(folder_ / "x.gguf");
  for (uintmax_t left = 0; left < size; left += left < 1400 ? 7 : 1) {
    fs::resize_file(folder_ / "x.gguf", size);
    fs::remove(folder_ / "x.gguf");
    copy("small.gguf", "x.gguf");
    fs::resize_file(folder_ / "x.gguf", left);
    // The file ends with padding that no tensor needs.
    if (left >= size - 32) continue;
    EXPECT_THAT(open_error("x.gguf"), HasSubstr("x.gguf")) << left;
  }
}

TEST(GgufBad, Headers) {
  Builder b;
  EXPECT_EQ(b.error(), "");
  b.version = 2;
  EXPECT_EQ(b.error(), "");
  for (const uint32_t version : {0U, 1U, 4U}) {
    b.version = version;
    EXPECT_THAT(b.error(),
                HasSubstr(fmt::format("test.gguf: GGUF version {} is not supported", version)));
  }
  b.version = 0x03000000;
  EXPECT_THAT(b.error(), HasSubstr("big-endian"));
  b.version = 3;
  b.magic = 0;
  EXPECT_THAT(b.error(), HasSubstr("not a GGUF file"));
  b.magic = 0x46554747;
  for (const uint64_t count : {uint64_t{1}, uint64_t{1} << 63, UINT64_MAX}) {
    b.num_tensors = count;
    EXPECT_THAT(b.error(),
                HasSubstr(fmt::format("test.gguf: {} tensors cannot be in a file", count)));
    b.num_tensors = 0;
    b.num_values = count;
    EXPECT_THAT(b.error(),
                HasSubstr(fmt::format("test.gguf: {} metadata values cannot be in a file", count)));
    b.num_values = 0;
  }
}

TEST(GgufBad, Strings) {
  for (const uint64_t length : {uint64_t{100}, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 31}) {
    Builder key;
    key.num_values = 1;
    key.number(length).text("padding");
    EXPECT_THAT(key.error(), HasSubstr("a metadata key at byte 32 needs")) << length;
    Builder value;
    value.key("k", kString).number(length).text("padding");
    EXPECT_THAT(value.error(), HasSubstr("test.gguf: k at byte 45 needs")) << length;
    Builder name;
    name.num_tensors = 1;
    name.number(length).text("padding padding padding");
    EXPECT_THAT(name.error(), HasSubstr("a tensor name at byte 32 needs")) << length;
  }
}

TEST(GgufBad, Values) {
  EXPECT_THAT(Builder().key("k", kArray).number(kArray).number<uint64_t>(1).number(kUint32).error(),
              HasSubstr("'k' is an array of arrays"));
  EXPECT_THAT(Builder().key("k", kArray).number(uint32_t{13}).number<uint64_t>(1).error(),
              HasSubstr("'k' has the unknown value type 13"));
  EXPECT_THAT(Builder().key("k", 13).number<uint64_t>(1).error(),
              HasSubstr("'k' has the unknown value type 13"));
  for (const uint32_t type : {0U, kUint32, kBool, kString, kUint64}) {
    for (const uint64_t count : {uint64_t{20}, uint64_t{1} << 61, uint64_t{1} << 63, UINT64_MAX}) {
      EXPECT_THAT(Builder().key("k", kArray).number(type).number(count).number<uint64_t>(0).error(),
                  HasSubstr("more than the file holds"))
          << type << " " << count;
    }
  }
  EXPECT_THAT(Builder().key("k", kUint64).number(UINT64_MAX).error(),
              HasSubstr("'k' is too large"));
  EXPECT_EQ(Builder().key("k", kUint64).number(uint64_t{INT64_MAX}).error(), "");
  EXPECT_THAT(Builder().key("k", kBool).number(uint8_t{2}).number(UINT64_MAX).error(),
              HasSubstr("k is the boolean 2"));
  EXPECT_THAT(Builder()
                  .key("k", kBool)
                  .number(uint8_t{1})
                  .key("k", kBool)
                  .number(uint8_t{1})
                  .number(1)
                  .error(),
              HasSubstr("'k' occurs twice"));
}

TEST(GgufBad, Alignment) {
  for (const uint32_t alignment : {0U, 3U, 48U, 1U << 31}) {
    EXPECT_THAT(Builder().key("general.alignment", kUint32).number(alignment).error(),
                HasSubstr("general.alignment is not a power of two"));
  }
  EXPECT_THAT(Builder().key("general.alignment", kString).text("32").error(),
              HasSubstr("not a power of two"));
  Builder b;
  b.data_bytes = 4096;
  b.key("general.alignment", kUint32).number(uint32_t{1024});
  b.tensor("x", {4}, 0, 1024);
  EXPECT_EQ(b.error(1024), "");
  b.tensor("y", {4}, 0, 32);
  EXPECT_THAT(b.error(1024),
              HasSubstr("tensor 'y' lies at offset 32, which is not a multiple of 1024"));
}

TEST(GgufBad, Tensors) {
  struct Case {
    std::vector<uint64_t> dims;
    uint32_t type;
    uint64_t offset;
    const char* message;
  };
  const uint64_t big = uint64_t{1} << 32;
  const Case cases[] = {
      {{4}, 0, 64, "ends at byte 80 of the data, which has only 64 bytes"},
      {{17}, 0, 0, "ends at byte 68 of the data"},
      {{4}, 0, 7, "not a multiple of 32"},
      {{4}, 0, uint64_t{1} << 63, "ends at byte 9223372036854775824"},
      {{4}, 0, UINT64_MAX - 31, "ends at byte 18446744073709551600"},
      {{8}, 0, UINT64_MAX - 31, "overflows"},
      {{big, big}, 0, 0, "the product of the dimensions overflows"},
      {{big, big, big, big}, 0, 0, "the product of the dimensions overflows"},
      {{uint64_t{1} << 61, 2}, 0, 0, "overflows"},
      {{uint64_t{1} << 62}, 0, 0, "overflow"},
      {{uint64_t{1} << 63}, 0, 0, "has a dimension of"},
      {{UINT64_MAX}, 0, 0, "has a dimension of"},
      {{1, 1, 1, 1, 1}, 0, 0, "5 dimensions, over the limit of 4"},
      {{4}, 4, 0, "ggml type 4 (unknown)"},
      {{4}, UINT32_MAX, 0, "ggml type 4294967295 (unknown)"},
      {{256}, 23, 0, "ggml type 23 (IQ4_XS)"},
      {{31}, 2, 0, "31 elements are not whole Q4_0 blocks"},
      {{32, 255}, 12, 0, "32 elements are not whole Q4_K blocks"},
  };
  for (const Case& c : cases) {
    Builder b;
    b.data_bytes = 64;
    b.tensor("x", c.dims, c.type, c.offset);
    EXPECT_THAT(b.error(), HasSubstr(c.message));
    EXPECT_THAT(b.error(), HasSubstr("test.gguf: tensor 'x'"));
  }
}

TEST(GgufBad, OverlapsAndDuplicates) {
  Builder b;
  b.data_bytes = 96;
  b.tensor("x", {9}, 0, 0);
  b.tensor("y", {4}, 0, 32);
  EXPECT_THAT(b.error(), HasSubstr("tensors 'x' and 'y' overlap"));
  Builder same;
  same.data_bytes = 96;
  same.tensor("x", {4}, 0, 0);
  same.tensor("x", {4}, 0, 32);
  EXPECT_THAT(same.error(), HasSubstr("tensor 'x' is already in 'test.gguf'"));
}

TEST(Gguf, OddButValidFiles) {
  Builder b;
  b.data_bytes = 64;
  b.tensor("scalar", {}, 0, 32);
  b.tensor("empty", {0, 3}, 0, 0);
  b.tensor("x", {4, 2}, 0, 0);
  const std::string bytes = b.file();
  const auto file = parse_gguf(std::as_bytes(std::span(bytes)), "odd.gguf");
  EXPECT_EQ(file->read("scalar").numel(), 1);
  EXPECT_EQ(file->read("empty").shape(), (Shape{3, 0}));
  EXPECT_EQ(file->read("x").shape(), (Shape{2, 4}));
}

}  // namespace
}  // namespace reft
