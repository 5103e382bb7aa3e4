#include "train/data/loader.h"

#include <gmock/gmock.h>

#include <map>
#include <set>

#include "train/data/test_files_test.h"

namespace reft {
namespace {

using testing::HasSubstr;

const Tokenizer& tokenizer() {
  static const std::unique_ptr<Tokenizer> instance =
      load_tokenizer(std::string(REFT_SOURCE_DIR) + "/tests/train/data");
  return *instance;
}

const ChatEncoder& chat() {
  static const ChatEncoder encoder(resolve_chat_template("chatml"), tokenizer());
  return encoder;
}

ExampleEncoder make_encoder(Stage stage, int64_t cutoff_len = 64) {
  return ExampleEncoder(tokenizer(), &chat(), {.stage = stage, .cutoff_len = cutoff_len});
}

std::string words(SplitMix& random, uint64_t most) {
  static const char* const kWords[] = {"hello", "world", "日本語", "name", "line\n", "x=y", "café"};
  std::string text;
  for (uint64_t i = random.below(most) + 1; i > 0; --i)
    text += std::string(kWords[random.below(7)]) + " ";
  return text;
}

Json alpaca_row(SplitMix& random, int64_t number) {
  return {{"instruction", fmt::format("{} {}", number, words(random, 8))},
          {"input", random.below(2) == 0 ? "" : words(random, 3)},
          {"output", words(random, 10)}};
}

// Data of every kind below one folder.
struct Files {
  Files() {
    SplitMix random(3);
    std::string alpaca, texts, pairs, tags;
    for (int64_t i = 0; i < 150; ++i) {
      alpaca += alpaca_row(random, i).dump() + "\n";
      texts += Json{{"text", fmt::format("{} {}", i, words(random, 40))}}.dump() + "\n";
      pairs += Json{{"prompt", fmt::format("{} {}", i, words(random, 4))},
                    {"chosen", words(random, 5)},
                    {"rejected", words(random, 5)}}
                   .dump() +
               "\n";
      tags += Json{{"prompt", fmt::format("{} {}", i, words(random, 4))},
                   {"completion", words(random, 5)},
                   {"label", i % 3 == 0}}
                  .dump() +
              "\n";
    }
    folder.write("alpaca.jsonl", alpaca);
    folder.write("texts.jsonl", texts);
    folder.write("pairs.jsonl", pairs);
    folder.write("tags.jsonl", tags);
  }
  std::string path(const std::string& name) const { return folder.path(name); }
  TempFolder folder;
};

const Files& files() {
  static const Files instance;
  return instance;
}

LoaderOptions options_for(const std::vector<std::string>& datasets, int64_t batch_size = 4) {
  LoaderOptions options;
  for (const std::string& d : datasets) options.mix.datasets.push_back(parse_dataset(d));
  options.mix.seed = 11;
  options.mix.shuffle_rows = 40;
  options.batch_size = batch_size;
  options.num_threads = 2;
  return options;
}

// What the loader gives from where it stands, `count` answers of next() long; ends of epochs are
// "".
std::vector<std::string> take(DataLoader& loader, size_t count) {
  std::vector<std::string> out;
  TrainBatch batch;
  while (out.size() < count) out.push_back(loader.next(&batch) ? batch.to_json().dump() : "");
  return out;
}

std::string take_epoch(DataLoader& loader) {
  std::string out;
  TrainBatch batch;
  while (loader.next(&batch)) out += batch.to_json().dump();
  return out;
}

// Labels are the next tokens, positions restart, sequences lie end to end.
void check_batch(const TrainBatch& batch, int64_t cutoff_len) {
  const auto tokens = static_cast<size_t>(batch.num_tokens());
  ASSERT_EQ(batch.positions.size(), tokens);
  ASSERT_EQ(batch.labels.size(), tokens);
  ASSERT_EQ(batch.sequence_start.size(), batch.sequences.size() + 1);
  ASSERT_EQ(batch.sequence_start.front(), 0);
  ASSERT_EQ(batch.sequence_start.back(), static_cast<int32_t>(tokens));
  int64_t trained = 0;
  for (size_t s = 0; s < batch.sequences.size(); ++s) {
    const auto begin = static_cast<size_t>(batch.sequence_start[s]);
    const auto end = static_cast<size_t>(batch.sequence_start[s + 1]);
    ASSERT_LE(static_cast<int64_t>(end - begin), cutoff_len);
    for (size_t t = begin; t < end; ++t) {
      ASSERT_EQ(batch.positions[t], static_cast<int32_t>(t - begin));
      if (t + 1 == end) {
        ASSERT_EQ(batch.labels[t], kIgnored);
      } else if (batch.labels[t] != kIgnored) {
        ASSERT_EQ(batch.labels[t], batch.token_ids[t + 1]);
        ++trained;
      }
    }
  }
  ASSERT_EQ(trained, batch.num_trained);
}

TEST(Loader, EveryRowOncePerEpoch) {
  const ExampleEncoder encoder = make_encoder(Stage::kSft, 512);
  DataLoader loader(options_for({files().path("alpaca.jsonl"), files().path("texts.jsonl")}),
                    encoder);
  std::vector<std::string> orders;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    std::multiset<std::string> places;
    TrainBatch batch;
    std::string order;
    int64_t rows = 0;
    while (loader.next(&batch)) {
      check_batch(batch, 512);
      EXPECT_EQ(loader.epoch(), epoch);
      rows += batch.num_rows;
      for (const TrainBatch::Sequence& s : batch.sequences) {
        places.insert(s.place);
        order += s.place + " ";
      }
    }
    EXPECT_EQ(rows, 300);
    EXPECT_EQ(std::set<std::string>(places.begin(), places.end()).size(), 300u);
    orders.push_back(order);
  }
  EXPECT_NE(orders[0], orders[1]);
}

TEST(Loader, OrderIsAFunctionOfTheSeed) {
  const ExampleEncoder encoder = make_encoder(Stage::kSft);
  LoaderOptions options = options_for({files().path("alpaca.jsonl")});
  options.packing = true;
  std::map<int, std::string> runs;
  for (int threads : {1, 4}) {
    options.num_threads = threads;
    options.prefetch = threads;
    DataLoader loader(options, encoder);
    runs[threads] = take_epoch(loader);
  }
  EXPECT_EQ(runs[1], runs[4]);
  options.mix.seed = 12;
  DataLoader other(options, encoder);
  EXPECT_NE(take_epoch(other), runs[1]);
  options.mix.shuffle = false;
  options.packing = false;
  DataLoader plain(options, encoder);
  TrainBatch batch;
  ASSERT_TRUE(plain.next(&batch));
  EXPECT_TRUE(batch.sequences[3].place.ends_with(":4")) << batch.sequences[3].place;
}

// T17: one set as JSON, JSON lines, CSV and a folder of parts gives the same tokens.
TEST(Loader, SameTokensFromEveryKindOfFile) {
  TempFolder folder;
  SplitMix random(5);
  std::string array = "[", lines, csv = "instruction,input,output\n";
  auto quoted = [](const Json& value) {
    std::string out = "\"";
    for (char c : value.get<std::string>())
      out += c == '"' ? std::string("\"\"") : std::string(1, c);
    return out + "\"";
  };
  for (int64_t i = 0; i < 60; ++i) {
    const Json row = alpaca_row(random, i);
    array += (i > 0 ? ",\n" : "") + row.dump(i % 2 == 0 ? 2 : -1);
    lines += row.dump() + "\n";
    csv += quoted(row["instruction"]) + "," + quoted(row["input"]) + "," + quoted(row["output"]) +
           "\n";
    if (i == 29) folder.write("parts/1.jsonl", lines);
  }
  folder.write("a.json", array + "]");
  folder.write("a.jsonl", lines);
  folder.write("a.csv", csv);
  folder.write("parts/2.jsonl", lines.substr(folder.read("parts/1.jsonl").size()));
  const ExampleEncoder encoder = make_encoder(Stage::kSft);
  std::map<std::string, std::vector<int32_t>> streams;
  for (const char* name : {"a.json", "a.jsonl", "a.csv", "parts"}) {
    LoaderOptions options = options_for({folder.path(name)});
    options.mix.shuffle = false;
    DataLoader loader(options, encoder);
    TrainBatch batch;
    while (loader.next(&batch)) {
      streams[name].insert(streams[name].end(), batch.token_ids.begin(), batch.token_ids.end());
      streams[name].insert(streams[name].end(), batch.labels.begin(), batch.labels.end());
    }
    EXPECT_FALSE(streams[name].empty());
    EXPECT_EQ(streams[name], streams["a.json"]) << name;
  }
}

// The same of Parquet, against the JSON lines of the same rows.
TEST(Loader, SameTokensFromParquet) {
  const std::string folder = std::string(REFT_SOURCE_DIR) + "/tests/train/data/parquet/";
  const ExampleEncoder encoder = make_encoder(Stage::kSft);
  std::vector<int32_t> expected;
  for (const char* name : {"rows.jsonl", "snappy.parquet", "zstd.parquet", "gzip.parquet"}) {
    LoaderOptions options = options_for({folder + name});
    options.mix.shuffle = false;
    DataLoader loader(options, encoder);
    std::vector<int32_t> stream;
    TrainBatch batch;
    while (loader.next(&batch)) {
      stream.insert(stream.end(), batch.token_ids.begin(), batch.token_ids.end());
      stream.insert(stream.end(), batch.labels.begin(), batch.labels.end());
    }
    if (expected.empty()) expected = stream;
    EXPECT_EQ(stream, expected) << name;
  }
  EXPECT_FALSE(expected.empty());
}

TEST(Loader, MixesByWeight) {
  TempFolder folder;
  for (const auto& [name, rows] : {std::pair{"a", 40}, {"b", 400}, {"c", 3000}}) {
    std::string text;
    for (int i = 0; i < rows; ++i) text += "{\"text\": \"hi\"}\n";
    folder.write(std::string(name) + ".jsonl", text);
  }
  const ExampleEncoder encoder = make_encoder(Stage::kSft);
  DataLoader loader(
      options_for(
          {folder.path("a.jsonl#5"), folder.path("b.jsonl#2.5"), folder.path("c.jsonl#2.5")}, 1),
      encoder);
  // While rows are drawn from the buffer the shares are those of what went in.
  std::array<double, 3> seen{};
  TrainBatch batch;
  for (int i = 0; i < 6000; ++i) {
    ASSERT_TRUE(loader.next(&batch));
    seen[static_cast<size_t>(batch.sequences[0].dataset)] += 1.0 / 6000;
  }
  EXPECT_NEAR(seen[0], 0.5, 0.01);
  EXPECT_NEAR(seen[1], 0.25, 0.01);
  EXPECT_NEAR(seen[2], 0.25, 0.01);
  // The epoch ends once the set that takes longest, of 3000 rows at a quarter of all, has ended.
  int64_t left = 0;
  while (loader.next(&batch)) ++left;
  EXPECT_NEAR(static_cast<double>(6000 + left), 12000, 8);
}

TEST(Loader, MixesBySizeWithoutWeights) {
  TempFolder folder;
  std::string small, large;
  for (int i = 0; i < 100; ++i) small += "{\"text\": \"hi\"}\n";
  for (int i = 0; i < 900; ++i) large += "{\"text\": \"hi\"}\n";
  folder.write("small.jsonl", small);
  folder.write("large.jsonl", large);
  const ExampleEncoder encoder = make_encoder(Stage::kSft);
  LoaderOptions options =
      options_for({folder.path("small.jsonl"), folder.path("large.jsonl")}, 100);
  options.mix.shuffle = false;
  DataLoader loader(options, encoder);
  TrainBatch batch;
  int batches = 0;
  for (; loader.next(&batch); ++batches) {
    int64_t of_small = 0;
    for (const TrainBatch::Sequence& s : batch.sequences) of_small += s.dataset == 0 ? 1 : 0;
    EXPECT_EQ(of_small, 10);
  }
  EXPECT_EQ(batches, 10);
}

TEST(Loader, PacksWithoutContamination) {
  const ExampleEncoder encoder = make_encoder(Stage::kSft, 128);
  LoaderOptions options = options_for({files().path("alpaca.jsonl")}, 1);
  options.mix.shuffle = false;
  DataLoader plain(options, encoder);
  options.packing = true;
  DataLoader packed(options, encoder);
  std::multiset<std::vector<int32_t>> rows, packed_rows;
  auto collect = [](const TrainBatch& batch, std::multiset<std::vector<int32_t>>* into) {
    for (size_t s = 0; s < batch.sequences.size(); ++s) {
      std::vector<int32_t> row(batch.token_ids.begin() + batch.sequence_start[s],
                               batch.token_ids.begin() + batch.sequence_start[s + 1]);
      row.insert(row.end(), batch.labels.begin() + batch.sequence_start[s],
                 batch.labels.begin() + batch.sequence_start[s + 1]);
      into->insert(std::move(row));
    }
  };
  TrainBatch batch;
  while (plain.next(&batch)) collect(batch, &rows);
  int64_t bins = 0, tokens = 0;
  while (packed.next(&batch)) {
    check_batch(batch, 128);
    EXPECT_LE(batch.num_tokens(), 128);
    collect(batch, &packed_rows);
    ++bins;
    tokens += batch.num_tokens();
  }
  EXPECT_EQ(packed_rows, rows);
  EXPECT_GT(static_cast<double>(tokens) / static_cast<double>(bins * 128), 0.9);
  const EpochSize size = measure_epoch(options, encoder);
  EXPECT_EQ(size.batches, bins);
  EXPECT_EQ(size.tokens, tokens);
  EXPECT_EQ(size.sequences, 150);
}

TEST(Loader, CutsTextIntoBlocks) {
  TempFolder folder;
  folder.write("t.jsonl",
               "{\"text\": \"hello world\"}\n{\"text\": \"\"}\n{\"text\": \"日本語 name\"}\n");
  const ExampleEncoder encoder = make_encoder(Stage::kPretrain, 4);
  LoaderOptions options = options_for({folder.path("t.jsonl")}, 1);
  options.mix.shuffle = false;
  std::vector<int32_t> expected;
  for (const char* text : {"hello world", "日本語 name"}) {
    for (int32_t id : tokenizer().encode(text, {.add_special_tokens = false}))
      expected.push_back(id);
    expected.push_back(*tokenizer().eos_id());
  }
  DataLoader loader(options, encoder);
  std::vector<int32_t> ids;
  TrainBatch batch;
  while (loader.next(&batch)) {
    check_batch(batch, 4);
    EXPECT_EQ(batch.num_trained, batch.num_tokens() - 1);
    if (ids.size() + 4 <= expected.size()) {
      EXPECT_EQ(batch.num_tokens(), 4);
    }
    ids.insert(ids.end(), batch.token_ids.begin(), batch.token_ids.end());
  }
  // A last block of one token would have nothing to predict.
  if (expected.size() % 4 == 1) expected.pop_back();
  EXPECT_EQ(ids, expected);
  const RowCounts counts = loader.counts()[0].second;
  EXPECT_EQ(counts.read, 3);
  EXPECT_EQ(counts.kept, 2);
  EXPECT_EQ(counts.dropped, 1);
}

TEST(Loader, PairsAndTags) {
  const ExampleEncoder dpo = make_encoder(Stage::kDpo);
  DataLoader pairs(options_for({files().path("pairs.jsonl")}, 3), dpo);
  TrainBatch batch;
  ASSERT_TRUE(pairs.next(&batch));
  check_batch(batch, 64);
  ASSERT_EQ(batch.num_sequences(), 6);
  for (size_t i = 0; i < 6; i += 2) {
    EXPECT_EQ(batch.sequences[i].role, TrainBatch::Role::kChosen);
    EXPECT_EQ(batch.sequences[i + 1].role, TrainBatch::Role::kRejected);
    EXPECT_EQ(batch.sequences[i].place, batch.sequences[i + 1].place);
  }
  const ExampleEncoder kto = make_encoder(Stage::kKto);
  DataLoader tags(options_for({files().path("tags.jsonl")}, 3), kto);
  ASSERT_TRUE(tags.next(&batch));
  check_batch(batch, 64);
  ASSERT_EQ(batch.num_sequences(), 6);
  auto answer = [&](size_t s) {
    std::vector<int32_t> ids;
    for (int32_t t = batch.sequence_start[s]; t < batch.sequence_start[s + 1]; ++t) {
      const int32_t label = batch.labels[static_cast<size_t>(t)];
      if (label != kIgnored) ids.push_back(label);
    }
    return ids;
  };
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(batch.sequences[i].role, TrainBatch::Role::kTagged);
    EXPECT_EQ(batch.sequences[3 + i].role, TrainBatch::Role::kMismatch);
    EXPECT_EQ(batch.sequences[3 + i].place, batch.sequences[i].place);
    EXPECT_EQ(answer(3 + i), answer((i + 1) % 3));
  }
}

TEST(Loader, HoldsRowsOut) {
  const ExampleEncoder encoder = make_encoder(Stage::kSft);
  LoaderOptions options = options_for({files().path("alpaca.jsonl")}, 1);
  options.mix.validation_fraction = 0.2;
  std::map<bool, std::set<std::string>> places;
  for (bool validation : {false, true}) {
    options.mix.validation = validation;
    DataLoader loader(options, encoder);
    TrainBatch batch;
    while (loader.next(&batch)) places[validation].insert(batch.sequences[0].place);
  }
  EXPECT_EQ(places[false].size() + places[true].size(), 150u);
  for (const std::string& place : places[true]) EXPECT_EQ(places[false].count(place), 0u);
  EXPECT_NEAR(static_cast<double>(places[true].size()), 30, 12);
}

struct ResumeCase {
  const char* name;
  Stage stage;
  bool packing;
  const char* file;
};

// T5, the data's part: stopped at any batch, a new loader goes on with what would have come.
TEST(Loader, ResumesBitExact) {
  for (const ResumeCase& c : {ResumeCase{"plain", Stage::kSft, false, "alpaca.jsonl"},
                              {"packed", Stage::kSft, true, "alpaca.jsonl"},
                              {"blocks", Stage::kPretrain, false, "texts.jsonl"},
                              {"pairs", Stage::kDpo, false, "pairs.jsonl"},
                              {"tags", Stage::kKto, false, "tags.jsonl"}}) {
    const ExampleEncoder encoder = make_encoder(c.stage);
    LoaderOptions options = options_for({files().path(c.file)});
    options.packing = c.packing;
    DataLoader whole(options, encoder);
    const std::vector<std::string> all = take(whole, 90);
    SplitMix random(17);
    for (size_t stop :
         {size_t{0}, size_t{1}, random.below(30), random.below(60), random.below(80)}) {
      Json saved;
      {
        DataLoader first(options, encoder);
        take(first, stop);
        saved = Json::parse(first.state().dump());
      }
      DataLoader second(options, encoder);
      second.restore(saved);
      EXPECT_EQ(take(second, 90 - stop),
                std::vector<std::string>(all.begin() + static_cast<ptrdiff_t>(stop), all.end()))
          << c.name << " at " << stop;
    }
  }
}

// The same with weights, where sets end at different times and start over.
TEST(Loader, ResumesMixtures) {
  const ExampleEncoder encoder = make_encoder(Stage::kSft);
  const LoaderOptions options =
      options_for({"a@" + files().path("alpaca.jsonl#1"), "t@" + files().path("texts.jsonl#2.5")});
  DataLoader whole(options, encoder);
  const std::vector<std::string> all = take(whole, 300);
  for (size_t stop : {40, 77, 131, 260}) {
    DataLoader first(options, encoder);
    take(first, stop);
    DataLoader second(options, encoder);
    second.restore(Json::parse(first.state().dump()));
    EXPECT_EQ(take(second, 300 - stop),
              std::vector<std::string>(all.begin() + static_cast<ptrdiff_t>(stop), all.end()));
  }
}

TEST(Loader, Errors) {
  TempFolder folder;
  const std::string bad = folder.write(
      "bad.jsonl", "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \"c\"}\n");
  const ExampleEncoder encoder = make_encoder(Stage::kSft);
  TrainBatch batch;
  auto message = [&](const LoaderOptions& options, const ExampleEncoder& e) -> std::string {
    try {
      DataLoader loader(options, e);
      while (loader.next(&batch)) {
      }
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message(options_for({bad}), encoder), HasSubstr("bad.jsonl:2: 'output' is missing"));
  LoaderOptions lenient = options_for({bad});
  lenient.mix.skip_bad_rows = true;
  DataLoader loader(lenient, encoder);
  ASSERT_TRUE(loader.next(&batch));
  EXPECT_EQ(batch.num_rows, 1);
  ASSERT_FALSE(loader.next(&batch));
  EXPECT_EQ(loader.counts()[0].second.bad, 1);
  EXPECT_THAT(describe_counts({{"a", {5, 1, 3, 2, 1}}}),
              HasSubstr("a: 5 rows read, 3 kept (2 truncated), 1 dropped, 1 bad"));

  EXPECT_THAT(message(options_for({folder.write("e.jsonl", "")}), encoder),
              HasSubstr("nothing to train on"));
  EXPECT_THAT(message(options_for({}), encoder), HasSubstr("--datasets"));
  EXPECT_THAT(message(options_for({bad, bad}), encoder), HasSubstr("two data sets"));
  LoaderOptions packed = options_for({files().path("pairs.jsonl")});
  packed.packing = true;
  const ExampleEncoder dpo = make_encoder(Stage::kDpo);
  EXPECT_THAT(message(packed, dpo), HasSubstr("--packing"));
  EXPECT_THAT(message(options_for({files().path("alpaca.jsonl")}), dpo), HasSubstr("--stage"));
  DataLoader fresh(options_for({files().path("alpaca.jsonl")}), encoder);
  EXPECT_THROW(fresh.restore(Json::object()), Error);
}

int64_t resident_bytes() {
  int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

TEST(Loader, MemoryDoesNotGrowWithTheFile) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer keeps freed memory";
#endif
  TempFolder folder;
  {
    std::ofstream lines(folder.path("large.jsonl")), array(folder.path("large.json"));
    array << "[";
    const std::string row = Json{{"text", std::string(8000, 'x')}}.dump();
    for (int i = 0; i < 8000; ++i) {
      lines << row << "\n";
      array << (i > 0 ? "," : "") << row;
    }
    array << "]";
  }
  for (const char* name : {"large.jsonl", "large.json"}) {
    DatasetRows rows(parse_dataset(folder.path(name)), TextUnit::kLine, false, std::nullopt);
    Example example;
    ASSERT_TRUE(rows.next(&example));
    const int64_t before = resident_bytes();
    int64_t seen = 1;
    while (rows.next(&example)) ++seen;
    EXPECT_EQ(seen, 8000);
    EXPECT_LT(resident_bytes() - before, 16 << 20) << name;
  }
}

}  // namespace
}  // namespace reft
