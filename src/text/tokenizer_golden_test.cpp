// Ids against the Python libraries, on committed small tokenizers of every kind and on the
// published large ones.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/file.h"
#include "base/json.h"
#include "tensor/gguf.h"
#include "text/tokenizer.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

const std::string kGolden = std::string(REFT_SOURCE_DIR) + "/tests/golden/tokenizers/";

using Ids = std::vector<int32_t>;

const std::vector<std::string>& corpus() {
  static const auto texts = read_json_file(kGolden + "corpus.json").get<std::vector<std::string>>();
  return texts;
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids, bool skip) {
  StreamDecoder stream(tokenizer, {}, skip);
  std::string out;
  for (const int32_t id : ids) out += stream.add(id);
  return out + stream.finish();
}

void expect_ids(const Tokenizer& tokenizer, const Json& want, const EncodeOptions& options = {}) {
  ASSERT_EQ(want.size(), corpus().size());
  for (size_t i = 0; i < want.size(); ++i) {
    if (want[i].is_null()) continue;
    EXPECT_EQ(tokenizer.encode(corpus()[i], options), want[i].get<Ids>())
        << "text " << i << ": " << corpus()[i];
  }
}

class SmallTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(SmallTokenizer, EqualsHuggingFace) {
  const Json golden = read_json_file(kGolden + "small.ids.json").at(GetParam());
  const auto tokenizer = load_tokenizer(kGolden + GetParam() + ".json");
  expect_ids(*tokenizer, golden["ids"]);
  for (size_t i = 0; i < corpus().size(); ++i) {
    const auto ids = golden["ids"][i].get<Ids>();
    const auto want = golden["text"][i].get<std::string>();
    EXPECT_EQ(tokenizer->decode(ids, true), want) << "text " << i;
    EXPECT_EQ(streamed(*tokenizer, ids, true), want) << "text " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SmallTokenizer,
                         testing::Values("byte_level", "byte_fallback", "metaspace_first",
                                         "unigram", "wordpiece", "word_suffix", "word_level"),
                         [](const auto& info) { return std::string(info.param); });

TEST(TokenizerGolden, SentencePieceModels) {
  const Json golden = read_json_file(kGolden + "small.ids.json");
  EncodeOptions plain;
  plain.add_special_tokens = false;
  for (const char* name : {"spm_bpe", "spm_unigram"}) {
    SCOPED_TRACE(name);
    const auto tokenizer = load_tokenizer(kGolden + name + ".model");
    expect_ids(*tokenizer, golden[name]["plain"], plain);
    for (size_t i = 0; i < corpus().size(); ++i) {
      if (golden[name]["plain"][i].is_null()) continue;
      const auto ids = golden[name]["plain"][i].get<Ids>();
      EXPECT_EQ(streamed(*tokenizer, ids, true), tokenizer->decode(ids)) << "text " << i;
    }
    for (const Json& pair : golden[name]["user_defined"]) {
      const auto text = pair[0].get<std::string>();
      EXPECT_EQ(tokenizer->encode(text, plain), pair[1].get<Ids>()) << "'" << text << "'";
    }
    EXPECT_EQ(tokenizer->bos_id(), 1);
    EXPECT_EQ(tokenizer->eos_id(), 2);
    EXPECT_TRUE(tokenizer->is_special(1));
    EXPECT_FALSE(tokenizer->is_special(*tokenizer->token_to_id("<think>")));
  }
  EXPECT_EQ(load_tokenizer(kGolden + "spm_bpe.model")->encode("Hello").front(), 1);
  EXPECT_EQ(load_tokenizer(kGolden + "spm_unigram.model")->encode("Hello").back(), 2);
}

TEST(TokenizerGolden, Tiktoken) {
  const Json golden = read_json_file(kGolden + "small.ids.json");
  const auto tokenizer = load_tokenizer(kGolden + "small.tiktoken");
  expect_ids(*tokenizer, golden["tiktoken"]["plain"]);
}

TEST(TokenizerGolden, GgufVocabularies) {
  const auto gpt2_file = open_gguf(kGolden + "gpt2.gguf");
  const auto gpt2 = load_tokenizer(*gpt2_file);
  const auto reference = load_tokenizer(kGolden + "byte_level.json");
  EXPECT_EQ(gpt2->vocab_size(), reference->vocab_size());
  EXPECT_EQ(gpt2->bos_id(), reference->token_to_id("<|im_start|>"));
  EXPECT_EQ(gpt2->eos_id(), reference->token_to_id("<|im_end|>"));
  EXPECT_EQ(gpt2->chat_template(), "{{ messages }}");
  // The file cannot say that this vocabulary was trained on NFC, nor that tokens strip white space.
  for (const char* text : {"Hello  world\r\n\r\n\tnext", "It's DON'T 12345",
                           "<|im_start|>user\nhi<|im_end|>\n<think>x"}) {
    EXPECT_EQ(gpt2->encode(text), reference->encode(text)) << text;
  }
  const auto llama_file = open_gguf(kGolden + "llama.gguf");
  const auto llama = load_tokenizer(*llama_file);
  EncodeOptions plain;
  plain.add_special_tokens = false;
  expect_ids(*llama, read_json_file(kGolden + "small.ids.json")["spm_bpe"]["plain"], plain);
  EXPECT_EQ(llama->encode("Hi").front(), llama->bos_id());
}

// Folder of the large tokenizers; empty when absent.
std::string shared_tokenizers() {
  const char* root = std::getenv("REFT_SHARED");
  const std::string folder =
      (root ? std::string(root) : std::string(REFT_SOURCE_DIR) + "/../shared") + "/tokenizers";
  return fs::is_directory(folder) ? folder : "";
}

class LargeTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(LargeTokenizer, EqualsHuggingFace) {
  const std::string shared = shared_tokenizers();
  if (shared.empty())
    GTEST_SKIP() << "no folder with the large tokenizers (REFT_SHARED or ../shared)";
  const fs::path folder =
      fs::path(testing::TempDir()) / (std::string("reft_tokenizer_") + GetParam());
  fs::create_directories(folder);
  const std::string file = (folder / "tokenizer.json").string();
  const std::string command =
      "zstd -dqcf '" + shared + "/" + GetParam() + "/tokenizer.json.zst' > '" + file + "'";
  if (std::system(command.c_str()) != 0) GTEST_SKIP() << "zstd could not unpack " << GetParam();
  const auto tokenizer = load_tokenizer(file);
  expect_ids(*tokenizer, read_json_file(kGolden + "large.ids.json").at(GetParam()));
  for (const auto& text : corpus()) {
    const Ids ids = tokenizer->encode(text, {.add_special_tokens = false, .parse_special = true});
    EXPECT_EQ(streamed(*tokenizer, ids, false), tokenizer->decode(ids, false)) << text;
  }
  fs::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Published, LargeTokenizer,
                         testing::Values("qwen3", "qwen2_5", "gptoss", "deepseek_v3", "gemma",
                                         "gemma3", "llama3_1"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace reft
