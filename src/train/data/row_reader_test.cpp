#include "train/data/row_reader.h"

#include <gmock/gmock.h>
#include <zlib.h>
#include <zstd.h>

#include "train/data/test_files_test.h"

namespace reft {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string gzip(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(text.size() + 1024, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

// Every row as "place-without-folder value"; a bad row as "! message".
std::vector<std::string> read_all(RowReader& reader, const std::string& folder) {
  std::vector<std::string> rows;
  auto short_form = [&](std::string text) {
    const size_t at = folder.empty() ? std::string::npos : text.find(folder);
    if (at != std::string::npos) text.erase(at, folder.size());
    return text;
  };
  Row row;
  for (;;) {
    try {
      if (!reader.next(&row)) return rows;
      rows.push_back(short_form(row.place) + " " + row.value.dump());
    } catch (const RowError& e) {
      rows.push_back("! " + short_form(e.what()));
    }
  }
}

std::vector<std::string> read_file_rows(const TempFolder& folder, const std::string& name,
                                        const std::string& text, TextUnit unit = TextUnit::kLine) {
  const std::string path = folder.write(name, text);
  return read_all(*open_rows(path, unit), folder.path(""));
}

std::string error_of(const TempFolder& folder, const std::string& name, const std::string& text) {
  try {
    read_file_rows(folder, name, text);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(RowReader, JsonArray) {
  TempFolder folder;
  EXPECT_THAT(read_file_rows(folder, "a.json",
                             "\xEF\xBB\xBF[\n {\"a\": \"x, ] } \\\" y\"},\n\n"
                             "{\"b\": [1, {\"c\": \"[\"}]} , {\"d\":\n2}]\n"),
              ElementsAre("a.json:2 {\"a\":\"x, ] } \\\" y\"}",
                          "a.json:4 {\"b\":[1,{\"c\":\"[\"}]}", "a.json:4 {\"d\":2}"));
  EXPECT_THAT(read_file_rows(folder, "b.json", " [ ] "), ElementsAre());
  EXPECT_THAT(read_file_rows(folder, "c.json", ""), ElementsAre());
  EXPECT_THAT(read_file_rows(folder, "d.json", "{\"a\":1}\n{\"a\":\n2}{\"a\":3}"),
              ElementsAre("d.json:1 {\"a\":1}", "d.json:2 {\"a\":2}", "d.json:3 {\"a\":3}"));
}

TEST(RowReader, JsonArrayBadRows) {
  TempFolder folder;
  const auto rows = read_file_rows(folder, "a.json", "[{\"a\":1},\n{\"a\" 2},\n7, {\"a\":3}]");
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_THAT(rows[1], HasSubstr("! a.json:2: "));
  EXPECT_EQ(rows[2], "! a.json:3: a row must be a JSON object, this is a number");
  EXPECT_EQ(rows[3], "a.json:3 {\"a\":3}");
  EXPECT_THAT(error_of(folder, "b.json", "[{\"a\":1},\n{\"a\":"),
              HasSubstr("b.json:2: the file ends inside a value: it is truncated"));
  EXPECT_THAT(error_of(folder, "c.json", "[{\"a\":1}\n"),
              HasSubstr("c.json:2: the file ends inside the array"));
  EXPECT_THAT(error_of(folder, "d.json", "[{\"a\":1} {\"a\":1}]"), HasSubstr("expected ','"));
  EXPECT_THAT(error_of(folder, "e.json", "[{\"a\":1},]"), HasSubstr("ends in a comma"));
  EXPECT_THAT(error_of(folder, "f.json", "[] x"), HasSubstr("behind the array"));
}

TEST(RowReader, JsonLines) {
  TempFolder folder;
  const auto rows = read_file_rows(folder, "a.jsonl", "{\"a\":1}\r\n\n{\"a\":\n[1]\n{\"a\":\"é\"}");
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0], "a.jsonl:1 {\"a\":1}");
  EXPECT_THAT(rows[1], HasSubstr("! a.jsonl:3: "));
  EXPECT_EQ(rows[2], "! a.jsonl:4: a row must be a JSON object, this is an array");
  EXPECT_EQ(rows[3], "a.jsonl:5 {\"a\":\"é\"}");
}

TEST(RowReader, Csv) {
  TempFolder folder;
  EXPECT_THAT(
      read_file_rows(folder, "a.csv",
                     "name,text\r\nx,\"a, \"\"b\"\"\r\nc\"\r\n\r\ny,5\" pipe\nz,\nw,1,2\n\"v\","),
      ElementsAre(R"(a.csv:2 {"name":"x","text":"a, \"b\"\r\nc"})",
                  R"(a.csv:5 {"name":"y","text":"5\" pipe"})", R"(a.csv:6 {"name":"z","text":""})",
                  "! a.csv:7: the row has 3 fields, the header has 2",
                  R"(a.csv:8 {"name":"v","text":""})"));
  EXPECT_THAT(read_file_rows(folder, "b.tsv", "a\tb\n1,5\t\"2\t3\""),
              ElementsAre(R"(b.tsv:2 {"a":"1,5","b":"2\t3"})"));
  EXPECT_THAT(error_of(folder, "c.csv", "a,b\n1,\"2\n3"),
              HasSubstr("c.csv:2: a quoted field has no end"));
  EXPECT_THAT(error_of(folder, "d.csv", ""), HasSubstr("no header"));
}

TEST(RowReader, Text) {
  TempFolder folder;
  const std::string text = "one\r\ntwo\n \nthree\nfour";
  EXPECT_THAT(read_file_rows(folder, "a.txt", text),
              ElementsAre(R"(a.txt:1 {"text":"one"})", R"(a.txt:2 {"text":"two"})",
                          R"(a.txt:4 {"text":"three"})", R"(a.txt:5 {"text":"four"})"));
  EXPECT_THAT(read_file_rows(folder, "a.txt", text, TextUnit::kParagraph),
              ElementsAre(R"(a.txt:1 {"text":"one\ntwo"})", R"(a.txt:4 {"text":"three\nfour"})"));
  EXPECT_THAT(read_file_rows(folder, "a.txt", text, TextUnit::kDocument),
              ElementsAre(R"(a.txt:1 {"text":"one\r\ntwo\n \nthree\nfour"})"));
}

TEST(RowReader, Compressed) {
  TempFolder folder;
  std::string text;
  for (int i = 0; i < 40000; ++i) text += fmt::format("{{\"n\": {}}}\n", i * 7919);
  const auto plain = read_file_rows(folder, "a.jsonl", text);
  ASSERT_EQ(plain.size(), 40000u);
  for (const auto& [name, data] :
       {std::pair{"a.jsonl.gz", gzip(text)}, {"a.jsonl.zst", zstd(text)}}) {
    const auto rows = read_file_rows(folder, name, data);
    ASSERT_EQ(rows.size(), plain.size());
    EXPECT_THAT(rows.back(), HasSubstr(plain.back().substr(plain.back().find(' '))));
    EXPECT_THAT(error_of(folder, name, data.substr(0, data.size() / 2)), HasSubstr("truncated"));
  }
  EXPECT_THAT(error_of(folder, "b.jsonl.zst", text), HasSubstr("cannot decompress"));
}

// From every place between two rows, another reader gives the rows that are left.
TEST(RowReader, CursorRestores) {
  TempFolder folder;
  const std::string lines = "{\"a\":1}\n{\"a\" 2}\n\n{\"a\":3}\n{\"a\":4}\n";
  const std::vector<std::pair<std::string, std::string>> files = {
      {"a.jsonl", lines},
      {"a.jsonl.gz", gzip(lines)},
      {"a.jsonl.zst", zstd(lines)},
      {"a.json", "[{\"a\":1},\n{\"a\" 2}, {\"a\":3}\n, {\"a\":4}]\n"},
      {"b.json", lines},
      {"a.csv", "x,y\n1,\"2\n3\"\n4,5,6\n7,8\n"},
      {"a.txt", "one\ntwo\n\nthree\n"},
  };
  for (const auto& [name, data] : files) {
    const std::string path = folder.write(name, data);
    const auto all = read_all(*open_rows(path), folder.path(""));
    ASSERT_GE(all.size(), 3u) << name;
    auto reader = open_rows(path);
    for (size_t i = 0; i <= all.size(); ++i) {
      auto other = open_rows(path);
      other->seek(Json::parse(reader->cursor().dump()));
      const auto rest = read_all(*other, folder.path(""));
      EXPECT_EQ(rest, std::vector<std::string>(all.begin() + static_cast<ptrdiff_t>(i), all.end()))
          << name << " from row " << i;
      Row row;
      try {
        reader->next(&row);
      } catch (const RowError&) {
      }
    }
  }
}

std::string parquet(const std::string& name) {
  return std::string(REFT_SOURCE_DIR) + "/tests/train/data/parquet/" + name;
}

// Codecs, page versions, several row groups and pages, nulls, lists of structs and of lists.
TEST(RowReader, Parquet) {
  std::vector<Json> expected;
  auto lines = open_rows(parquet("rows.jsonl"));
  Row row;
  while (lines->next(&row)) expected.push_back(row.value);
  ASSERT_EQ(expected.size(), 60u);
  for (const char* name : {"snappy", "zstd", "gzip", "plain"}) {
    const std::string path = parquet(std::string(name) + ".parquet");
    auto reader = open_rows(path);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_TRUE(reader->next(&row)) << name << " " << i;
      EXPECT_EQ(row.value, expected[i]) << name << " " << i;
      EXPECT_EQ(row.place, fmt::format("{}: row {}", path, i + 1));
      auto other = open_rows(path);
      other->seek(Json::parse(reader->cursor().dump()));
      Row following;
      ASSERT_EQ(other->next(&following), i + 1 < expected.size()) << name << " " << i;
      if (i + 1 < expected.size()) {
        EXPECT_EQ(following.value, expected[i + 1]) << name << " " << i;
      }
    }
    EXPECT_FALSE(reader->next(&row));
  }
}

// T15: cut anywhere or with a byte changed, a file gives an error that names it, or the rows.
TEST(RowReader, DamagedParquet) {
  TempFolder folder;
  std::ifstream file(parquet("zstd.parquet"), std::ios::binary);
  const std::string data{std::istreambuf_iterator<char>(file), {}};
  ASSERT_GT(data.size(), 4000u);
  auto read = [&](const std::string& bytes) -> std::string {
    const std::string path = folder.write("cut.parquet", bytes);
    try {
      auto reader = open_rows(path);
      Row row;
      while (reader->next(&row)) {
      }
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(read(data), "no error");
  for (size_t size : {size_t{0}, size_t{3}, size_t{100}, data.size() / 2, data.size() - 1}) {
    EXPECT_THAT(read(data.substr(0, size)), HasSubstr("cut.parquet")) << size;
  }
  for (size_t at = 0; at < data.size(); at += 13) {
    std::string changed = data;
    changed[at] = static_cast<char>(changed[at] ^ 0x55);
    const std::string error = read(changed);
    if (error != "no error") {
      EXPECT_THAT(error, HasSubstr("cut.parquet")) << at;
    }
  }
}

TEST(RowReader, ListsFiles) {
  TempFolder folder;
  folder.write("set/b.jsonl", "");
  folder.write("set/part/a.jsonl.gz", "");
  folder.write("set/.cache/c.jsonl", "");
  folder.write("set/README.md", "");
  folder.write("set/dataset_info.json", "{}");
  EXPECT_THAT(list_data_files(folder.path("set")),
              ElementsAre(folder.path("set/b.jsonl"), folder.path("set/part/a.jsonl.gz")));
  folder.write("set/LICENSE.txt", "");
  auto message = [&](const std::string& path) -> std::string {
    try {
      list_data_files(path);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_THAT(message(folder.path("set")), HasSubstr("several kinds"));
  EXPECT_THAT(list_data_files(folder.path("set/*.jsonl")), ElementsAre(folder.path("set/b.jsonl")));
  EXPECT_THAT(message(folder.path("nothing")), HasSubstr("does not exist"));
  EXPECT_THAT(message(folder.path("set/*.csv")), HasSubstr("no data files"));
  EXPECT_THROW(open_rows(folder.write("a.bin", "")), Error);
}

TEST(RowReader, SharedSets) {
  for (const auto& [name, count] :
       {std::pair{"alpaca_en_demo.json", 999}, {"c4_demo.jsonl", 300}, {"identity.json", 91}}) {
    const std::string path = shared_dataset(name);
    if (path.empty()) GTEST_SKIP() << "no ../shared/datasets beside the repository";
    EXPECT_EQ(read_all(*open_rows(path), "").size(), static_cast<size_t>(count)) << name;
  }
}

}  // namespace
}  // namespace reft
