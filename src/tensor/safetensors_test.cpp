#include "tensor/safetensors.h"
#include "base/error_of_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "tensor/checkpoint_reader.h"
#include "tensor/safetensors_writer.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// A folder that is removed with the test.
class Safetensors : public testing::Test {
 protected:
  Safetensors()
      : folder_(fs::temp_directory_path() / ("reft_safetensors_" + std::to_string(::getpid()))) {
    fs::create_directories(folder_);
  }
  ~Safetensors() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string put(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }

  fs::path folder_;
};

std::string file_of(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string out(reinterpret_cast<const char*>(&length), 8);
  return out + header + std::string(data_bytes, '\1');
}

std::vector<TensorEntry> parse(const std::string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), "test.safetensors");
}

std::string parse_error(const std::string& header, size_t data_bytes) {
  return error_of([&] { parse(file_of(header, data_bytes)); });
}

TEST_F(Safetensors, HeaderIsRead) {
  const auto entries = parse(file_of(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]},)"
      R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"empty":{"shape":[0,4],"dtype":"I64","data_offsets":[16,16]}}   )",
      16));
  ASSERT_EQ(entries.size(), 3U);
  EXPECT_EQ(entries[0].name, "a");
  EXPECT_EQ(entries[0].dtype, DType::kBF16);
  EXPECT_EQ(entries[0].shape, (Shape{2, 3}));
  EXPECT_EQ(entries[0].file, "test.safetensors");
  EXPECT_EQ(entries[1].shape.dims(), 0);
  EXPECT_EQ(entries[2].shape, (Shape{0, 4}));
}

TEST_F(Safetensors, HeaderLengthLies) {
  EXPECT_THAT(error_of([] { parse("short"); }),
              HasSubstr("test.safetensors: 5 bytes are too short"));
  std::string file = file_of("{}", 0);
  for (const uint64_t length : {uint64_t{3}, uint64_t{99'999'999}}) {
    std::memcpy(file.data(), &length, 8);
    EXPECT_THAT(error_of([&] { parse(file); }), HasSubstr("beyond the end of the file"));
  }
  for (const uint64_t length : {uint64_t{1} << 40, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    std::memcpy(file.data(), &length, 8);
    EXPECT_THAT(error_of([&] { parse(file); }), HasSubstr("over the limit"));
  }
  const uint64_t shorter = 1;
  std::memcpy(file.data(), &shorter, 8);
  EXPECT_THAT(error_of([&] { parse(file); }), HasSubstr("invalid JSON"));
  const uint64_t none = 0;
  std::memcpy(file.data(), &none, 8);
  EXPECT_THAT(error_of([&] { parse(file); }), HasSubstr("not a JSON object"));
}

TEST_F(Safetensors, ABadTensorIsNamed) {
  struct Case {
    const char* header;
    size_t data_bytes;
    const char* message;
  };
  const Case cases[] = {
      // overlap, in either order
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, "tensors 'x' and 'y' overlap"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       4, "tensors 'x' and 'y' overlap"},
      // out of range
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 3,
       "tensor 'x' ends at byte 4 of the data"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,0]}})", 4,
       "tensor 'x' has bad"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551610,18446744073709551614]}})",
       4, "tensor 'x' ends at byte 18446744073709551614"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}})", 4,
       "negative number in tensor 'x'"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4e0]}})", 4, "fraction in tensor 'x'"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,99999999999999999999]}})", 4,
       "fraction in tensor 'x'"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0]}})", 4,
       "tensor 'x' has bad data_offsets"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}})", 4,
       "tensor 'x' has bad data_offsets"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}})", 5,
       "unused bytes before tensor 'x'"},
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 6,
       "2 unused bytes after the last"},
      // duplicates
      {R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"x":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
       8, "'x' occurs twice"},
      {R"({"x":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4,
       "'dtype' occurs twice"},
      // dtype
      {R"({"x":{"dtype":"Q4","shape":[4],"data_offsets":[0,4]}})", 4,
       "tensor 'x' has the unknown dtype 'Q4'"},
      {R"({"x":{"dtype":7,"shape":[4],"data_offsets":[0,4]}})", 4,
       "unexpected a number in tensor 'x', 'dtype'"},
      // shape
      {R"({"x":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}})", 4,
       "tensor 'x' of float32 [4] needs 16 bytes"},
      {R"({"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "tensor 'x': the product"},
      {R"({"x":{"dtype":"F64","shape":[2305843009213693952,2],"data_offsets":[0,0]}})", 0,
       "tensor 'x': "},
      {R"({"x":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0,
       "tensor 'x': "},
      {R"({"x":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0,
       "tensor 'x': dimension"},
      {R"({"x":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[0,1]}})", 1,
       "tensor 'x': a tensor has at most"},
      {R"({"x":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1,
       "negative number in tensor 'x', 'shape'"},
      {R"({"x":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1,
       "unexpected an array in tensor 'x'"},
      // structure
      {R"({"x":{"dtype":"U8","shape":[1]}})", 1, "tensor 'x' lacks"},
      {R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":{"a":1}}})", 1,
       "unexpected an object"},
      {R"({"x":3})", 1, "unexpected a number in the header at 'x'"},
      {R"({"x":[1]})", 1, "unexpected an array in the header at 'x'"},
      {R"({"__metadata__":{"format":{}}})", 0, "unexpected an object"},
      {R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}} x)", 1, "invalid JSON"},
      {"{\"\xff\":{}}", 0, "invalid JSON"},
      {"[]", 0, "not a JSON object"},
  };
  for (const Case& c : cases) {
    const std::string error = parse_error(c.header, c.data_bytes);
    EXPECT_THAT(error, HasSubstr(c.message)) << c.header;
    EXPECT_THAT(error, testing::StartsWith("test.safetensors: ")) << c.header;
  }
}

TEST_F(Safetensors, DeepNestingIsRefused) {
  EXPECT_NE(parse_error("{\"x\":" + std::string(1'000'000, '[') + "}", 0), "");
  EXPECT_NE(
      error_of([&] {
        open_safetensors(put("a.index.json", R"({"weight_map":)" + std::string(1'000'000, '{')));
      }),
      "");
}

TEST_F(Safetensors, WrittenFilesReadBack) {
  const Tensor a = Tensor::from_vector<float>({1, 2, 3, 4, 5, 6}, {3, 2});
  const Tensor b = Tensor::from_vector<uint8_t>({7, 8, 9});
  write_safetensors(path("w.safetensors"), {{"b", b},
                                            {"a\n\"é", a},
                                            {"half", a.to(DType::kBF16)},
                                            {"view", a.columns(1, 2)},
                                            {"none", Tensor::empty({0, 3}, DType::kF16)},
                                            {"scalar", Tensor::from_vector<int64_t>({-5}, {})}});
  const auto file = open_checkpoint(path("w.safetensors"));
  EXPECT_EQ(file->entries().size(), 6U);
  EXPECT_EQ(file->read("a\n\"é").to_vector<float>(), a.to_vector<float>());
  EXPECT_EQ(file->read("b").to_vector<uint8_t>(), b.to_vector<uint8_t>());
  EXPECT_EQ(file->read("half").to(DType::kF32).to_vector<float>(), a.to_vector<float>());
  EXPECT_EQ(file->read("view").to_vector<float>(), (std::vector<float>{2, 4, 6}));
  EXPECT_EQ(file->read("none").shape(), (Shape{0, 3}));
  EXPECT_EQ(file->read("scalar").to_vector<int64_t>(), (std::vector<int64_t>{-5}));
  EXPECT_TRUE(file->contains("b"));
  EXPECT_FALSE(file->contains("c"));
  EXPECT_THAT(error_of([&] { file->read("c"); }), HasSubstr("has no tensor 'c'"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1) << "a temporary file was left";
}

TEST_F(Safetensors, WriterErrorsLeaveTheOldFile) {
  const Tensor a = Tensor::from_vector<float>({1});
  write_safetensors(path("w.safetensors"), {{"a", a}});
  EXPECT_THAT(error_of([&] {
                write_safetensors(path("w.safetensors"), {{"a", a}, {"a", a}});
              }),
              HasSubstr("name 'a' is taken"));
  EXPECT_THAT(
      error_of([&] {
        write_safetensors(path("w.safetensors"), {{"q", Tensor::empty({32}, DType::kQ4_0)}});
      }),
      HasSubstr("tensor 'q' is Q4_0, which safetensors cannot hold"));
  EXPECT_THAT(error_of([&] {
                write_safetensors(path("no/w.safetensors"), {{"a", a}});
              }),
              HasSubstr("cannot create"));
  EXPECT_EQ(open_checkpoint(path("w.safetensors"))->read("a").to_vector<float>(),
            std::vector<float>{1});
}

TEST_F(Safetensors, AFullDiskIsNamed) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  // The temporary name of the writer, redirected to a device that is always full.
  fs::create_symlink("/dev/full", path("w.safetensors") + ".tmp-" + std::to_string(::getpid()));
  EXPECT_THAT(error_of([&] {
                write_safetensors(path("w.safetensors"), {{"a", Tensor::from_vector<float>({1})}});
              }),
              HasSubstr("No space left on device"));
  EXPECT_FALSE(fs::exists(path("w.safetensors")));
}

TEST_F(Safetensors, MisalignedTensorsAreCopied) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  const auto file = open_checkpoint(put("m.safetensors", file_of(header, 5)));
  const Tensor b = file->read("b");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.raw()) % 4, 0U);
  const std::string bytes(4, '\1');
  float wanted;
  std::memcpy(&wanted, bytes.data(), 4);
  EXPECT_EQ(b.to_vector<float>()[0], wanted);
}

TEST_F(Safetensors, TensorsOutliveTheReaderAndTheName) {
  write_safetensors(path("w.safetensors"), {{"a", Tensor::from_vector<float>({1, 2})}});
  const Tensor a = open_checkpoint(path("w.safetensors"))->read("a");
  fs::remove(path("w.safetensors"));
  EXPECT_EQ(a.to_vector<float>(), (std::vector<float>{1, 2}));
}

TEST_F(Safetensors, AFileThatChangesDuringLoadIsAnError) {
  write_safetensors(path("w.safetensors"),
                    {{"a", Tensor::from_vector<float>(std::vector<float>(4096, 1))}});
  const auto file = open_checkpoint(path("w.safetensors"));
  fs::resize_file(path("w.safetensors"), 100);
  EXPECT_THAT(error_of([&] { file->read("a"); }),
              HasSubstr("changed while it was being loaded (tensor 'a')"));
}

class Shards : public Safetensors {
 protected:
  Shards() {
    write_safetensors(path("m-1.safetensors"), {{"a", Tensor::from_vector<float>({1})}});
    write_safetensors(path("m-2.safetensors"), {{"b", Tensor::from_vector<float>({2})}});
  }
  std::string put_index(const std::string& map) {
    return put("model.safetensors.index.json",
               R"({"metadata":{"total_size":8,"nested":[{"x":null}]},"weight_map":{)" + map + "}}");
  }
};

TEST_F(Shards, LoadThroughTheIndex) {
  put_index(R"("a":"m-1.safetensors","b":"m-2.safetensors")");
  for (const std::string& name : {folder_.string(), path("model.safetensors.index.json")}) {
    const auto file = open_checkpoint(name);
    ASSERT_EQ(file->entries().size(), 2U);
    EXPECT_EQ(file->read("a").to_vector<float>()[0], 1);
    EXPECT_EQ(file->read("b").to_vector<float>()[0], 2);
    EXPECT_EQ(file->entries()[1].file, path("m-2.safetensors"));
  }
}

TEST_F(Shards, AMissingShardIsNamed) {
  put_index(R"("a":"m-1.safetensors","b":"m-3.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }),
              HasSubstr("m-3.safetensors' is missing"));
}

TEST_F(Shards, ATruncatedShardIsNamed) {
  put_index(R"("a":"m-1.safetensors","b":"m-2.safetensors")");
  fs::resize_file(path("m-2.safetensors"), fs::file_size(path("m-2.safetensors")) - 1);
  const std::string error = error_of([&] { open_checkpoint(folder_.string()); });
  EXPECT_THAT(error, HasSubstr("m-2.safetensors: tensor 'b'"));
  EXPECT_THAT(error, HasSubstr("cut short"));
}

TEST_F(Shards, ADanglingEntryIsNamed) {
  put_index(R"("a":"m-1.safetensors","b":"m-2.safetensors","c":"m-2.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }),
              HasSubstr("tensor 'c' is not in 'm-2.safetensors'"));
}

TEST_F(Shards, DuplicatesAcrossShardsNeedTheIndex) {
  write_safetensors(path("m-2.safetensors"), {{"a", Tensor::from_vector<float>({3})},
                                              {"b", Tensor::from_vector<float>({2})}});
  put_index(R"("a":"m-2.safetensors","b":"m-2.safetensors","z":"m-1.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }), HasSubstr("tensor 'z'"));
  write_safetensors(path("m-1.safetensors"), {{"a", Tensor::from_vector<float>({1})},
                                              {"z", Tensor::from_vector<float>({4})}});
  EXPECT_EQ(open_checkpoint(folder_.string())->read("a").to_vector<float>()[0], 3);
  put_index(R"("b":"m-2.safetensors","z":"m-1.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }),
              HasSubstr("tensor 'a' is already in"));
}

TEST_F(Shards, ABadIndexIsRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("a":"../m-1.safetensors")", "not a file name"},
      {R"("a":"/etc/passwd")", "not a file name"},
      {R"("a":"")", "not a file name"},
      {R"("a":"m-1.safetensors","a":"m-1.safetensors")", "'a' occurs twice"},
      {R"("a":3)", "unexpected a number"},
      {R"("a":null)", "unexpected null"},
  };
  for (const auto& [map, message] : cases) {
    put_index(map);
    EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }), HasSubstr(message)) << map;
  }
  put("model.safetensors.index.json", "{}");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }), HasSubstr("no 'weight_map'"));
  put("model.safetensors.index.json", "[1]");
  EXPECT_NE(error_of([&] { open_checkpoint(folder_.string()); }), "");
  put("model.safetensors.index.json", R"({"weight_map":{"a":)");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }), HasSubstr("invalid JSON"));
}

TEST_F(Safetensors, FoldersAndPathsAreExplained) {
  EXPECT_THAT(error_of([&] { open_checkpoint(path("no")); }), HasSubstr("No such file"));
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }),
              HasSubstr("holds no .safetensors"));
  put("pytorch_model.bin", "x");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }),
              HasSubstr("pickle files (pytorch_model.bin)"));
  EXPECT_THAT(error_of([&] { open_checkpoint(path("pytorch_model.bin")); }),
              HasSubstr("a checkpoint is"));
  write_safetensors(path("one.safetensors"), {{"a", Tensor::from_vector<float>({1})}});
  EXPECT_EQ(open_checkpoint(folder_.string())->entries().size(), 1U);
  write_safetensors(path("two.safetensors"), {{"a", Tensor::from_vector<float>({1})}});
  EXPECT_THAT(error_of([&] { open_checkpoint(folder_.string()); }),
              HasSubstr("one.safetensors, two.safetensors"));
  fs::create_symlink("loop.safetensors", path("loop.safetensors"));
  EXPECT_THAT(error_of([&] { open_checkpoint(path("loop.safetensors")); }),
              HasSubstr("loop.safetensors"));
}

}  // namespace
}  // namespace reft
