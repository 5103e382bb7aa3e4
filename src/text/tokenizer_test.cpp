#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include <unistd.h>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "text/regex.h"
#include "text/scanner.h"
#include "text/token_decoder.h"
#include "text/tokenizer_pipeline.h"
#include "text/unicode.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;
using testing::HasSubstr;

const std::string kGolden = std::string(REFT_SOURCE_DIR) + "/tests/golden/tokenizers/";

std::unique_ptr<Tokenizer> from_json(const std::string& text) {
  return make_tokenizer(parse_tokenizer_json(text, "test.json"));
}

std::string error_of(const std::string& json, const std::string& encode = "") {
  try {
    const auto tokenizer = from_json(json);
    if (!encode.empty()) tokenizer->encode(encode);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::vector<std::string> matches(const Matcher& matcher, std::string_view text) {
  std::vector<std::string> out;
  size_t from = 0, begin = 0, end = 0;
  while (from < text.size() && matcher.find(text, from, begin, end)) {
    out.emplace_back(std::to_string(begin) + ":" + std::string(text.substr(begin, end - begin)));
    from = std::max(end, from + 1);
  }
  return out;
}

// Characters of every class, and those that the patterns treat in a special way.
std::string random_text(std::mt19937& random) {
  static const std::vector<std::string> kParts = {"a",
                                                  "B",
                                                  "s",
                                                  "S",
                                                  "t",
                                                  "re",
                                                  "VE",
                                                  "ll",
                                                  "'",
                                                  "'s",
                                                  "'LL",
                                                  "\xC5\xBF",
                                                  " ",
                                                  "  ",
                                                  "\t",
                                                  "\n",
                                                  "\r\n",
                                                  "\r",
                                                  "\v",
                                                  "\xC2\xA0",
                                                  "\xE2\x80\x83",
                                                  "\xC2\x85",
                                                  "1",
                                                  "23",
                                                  "\xD9\xA3",
                                                  "\xC2\xBD",
                                                  "\xE2\x85\xAB",
                                                  ".",
                                                  "!!",
                                                  "/",
                                                  "$",
                                                  "+",
                                                  "\xE2\x82\xAC",
                                                  "\xE4\xB8\xAD",
                                                  "\xE3\x81\x82",
                                                  "\xED\x95\x9C",
                                                  "\xCC\x81",
                                                  "\xE0\xA5\x8D",
                                                  "\xC7\x85",
                                                  "\xCA\xB0",
                                                  "\xC2\xAA",
                                                  "\xF0\x9F\x98\x80",
                                                  "\xE2\x80\x8D",
                                                  "\x01",
                                                  "\xEF\xBF\xBD",
                                                  "_",
                                                  "\xD7\xA9",
                                                  "HTTP"};
  std::string text;
  for (int n = int(random() % 24) + 1; n > 0; --n) {
    if (random() % 5 == 0) {
      uint32_t c = random() % 0x110000;
      if (c >= 0xD800 && c < 0xE000) c = 'x';
      unicode::append(text, c);
    } else {
      text += kParts[random() % kParts.size()];
    }
  }
  return text;
}

TEST(TokenScanner, EqualsItsRegex) {
  std::mt19937 random(1);
  for (const auto pattern :
       {patterns::kGpt2, patterns::kLlama3, patterns::kQwen2, patterns::kQwen35, patterns::kO200k,
        patterns::kTekken, patterns::kDeepseekDigits, patterns::kDeepseekCjk,
        patterns::kDeepseekText, patterns::kSmollm}) {
    const auto fast = make_scanner(pattern);
    ASSERT_NE(fast, nullptr) << pattern;
    const auto regex = make_regex_matcher(std::string(pattern));
    for (int i = 0; i < 3000; ++i) {
      const std::string text = random_text(random);
      ASSERT_EQ(matches(*fast, text), matches(*regex, text)) << pattern << " on " << text;
    }
  }
  EXPECT_EQ(make_scanner("something else"), nullptr);
}

TEST(TokenRegex, OnigurumaSyntax) {
  auto found = [](const std::string& pattern, const std::string& text) {
    return matches(*make_regex_matcher(pattern), text);
  };
  using List = std::vector<std::string>;
  EXPECT_EQ(found("[a-z&&[^aeiou]]+", "hello"), (List{"0:h", "2:ll"}));
  EXPECT_EQ(found("[^(\\s|[.,!])]+", "ab (c|d).e"), (List{"0:ab", "4:c", "6:d", "9:e"}));
  EXPECT_EQ(found("\\h+", "xyz12fg"), (List{"3:12f"}));
  EXPECT_EQ(found("(?m:a.b)", "a\nb"), (List{"0:a\nb"}));
  EXPECT_EQ(found("a.b", "a\nb"), List{});
  EXPECT_EQ(found("^b", "a\nb"), (List{"2:b"}));
  EXPECT_EQ(found("\\p{^L}+", "ab12c"), (List{"2:12"}));
  EXPECT_EQ(found("(?i:[k])", "xKk"), (List{"1:K", "2:k"}));
  EXPECT_EQ(found("(?i:[^k])", "\xE2\x84\xAAK1"), (List{"4:1"}));
  EXPECT_EQ(found("a{,2}b", "aaab"), (List{"1:aab"}));
  EXPECT_EQ(found("(?:ab){2}+", "ababababab"), (List{"0:abababab"}));
  EXPECT_EQ(found("\\s+", "\xE1\xA0\x8E \xC2\x85"),
            (List{"3: \xC2\x85"}));  // U+180E is no white space
  EXPECT_EQ(found("[[:alpha:]]+", "1\xC3\xA9x2"), (List{"1:\xC3\xA9x"}));
  for (const char* bad :
       {"(", "[a", "\\p{Nope}", "a**(", "(?<=a+)b", "\\1", "[z-a]", "\\", "(?x)a"}) {
    EXPECT_THROW(make_regex_matcher(bad), Error) << bad;
  }
  // Backtracking without end is given up.
  EXPECT_THROW(found("(?:a|a|aa)*cb", std::string(2000, 'a') + "b"), Error);
}

TEST(TokenUnicode, SanitizesLikePython) {
  EXPECT_EQ(unicode::sanitize("a\xFF"
                              "b"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(unicode::sanitize("\xE4\xBD"), "\xEF\xBF\xBD");
  EXPECT_EQ(unicode::sanitize("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(unicode::sanitize("\xF0\x9F\x98x"), "\xEF\xBF\xBDx");
  EXPECT_EQ(unicode::sanitize("\xC0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(unicode::valid_prefix("abc\xE4\xBD\xA0\xF0\x9F"), 6u);
}

TEST(TokenUnicode, NfcByStretches) {
  // The shortcut over safe characters must equal composing everything.
  std::mt19937 random(2);
  const std::vector<uint32_t> kCodes = {'a',    'e',     0x301,   0x323,  0x334,  0x345,  0xE9,
                                        0x1100, 0x1161,  0x11A8,  0xAC00, 0x4E2D, 0x212B, 0x958,
                                        0x93C,  0x2F81A, 0x1F600, 0x5D0,  0x5BC};
  for (int i = 0; i < 5000; ++i) {
    std::string text;
    for (int n = int(random() % 12); n >= 0; --n)
      unicode::append(text, kCodes[random() % kCodes.size()]);
    const std::string nfc = unicode::normalize(text, unicode::Form::kNfc);
    EXPECT_EQ(nfc, unicode::normalize(unicode::normalize(text, unicode::Form::kNfd),
                                      unicode::Form::kNfc));
    EXPECT_EQ(unicode::normalize(nfc, unicode::Form::kNfd),
              unicode::normalize(text, unicode::Form::kNfd));
    EXPECT_EQ(unicode::normalize(nfc, unicode::Form::kNfc), nfc);
  }
}

TEST(Tokenizer, AddedTokenFlags) {
  const auto tokenizer = load_tokenizer(kGolden + "byte_level.json");
  const int32_t start = tokenizer->token_to_id("<|im_start|>").value();
  const int32_t think = tokenizer->token_to_id("<think>").value();
  EXPECT_TRUE(tokenizer->is_special(start));
  EXPECT_FALSE(tokenizer->is_special(think));
  EXPECT_EQ(tokenizer->encode("<|im_start|><think>"), (Ids{start, think}));
  // Plain: special tokens are text, the others still tokens.
  const Ids plain = tokenizer->encode("<|im_start|><think>",
                                      {.add_special_tokens = true, .parse_special = false});
  EXPECT_GT(plain.size(), 2u);
  EXPECT_EQ(plain.back(), think);
  EXPECT_EQ(tokenizer->decode(plain), "<|im_start|><think>");
  EXPECT_EQ(tokenizer->decode(Ids{start, think}, true), "<think>");
  EXPECT_EQ(tokenizer->decode(Ids{start, think}, false), "<|im_start|><think>");
  EXPECT_EQ(tokenizer->encode("  [LEFT]"), Ids{tokenizer->token_to_id("[LEFT]").value()});
  EXPECT_EQ(tokenizer->encode("[RIGHT] \n"), Ids{tokenizer->token_to_id("[RIGHT]").value()});
}

TEST(Tokenizer, LongWordsTakeNoQuadraticTime) {
  for (const char* name : {"byte_level", "byte_fallback", "unigram"}) {
    const auto tokenizer = load_tokenizer(kGolden + name + ".json");
    const auto start = std::chrono::steady_clock::now();
    const std::string text(1'000'000, 'a');
    const Ids ids = tokenizer->encode(text);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    EXPECT_LT(seconds, 20) << name;  // quadratic would be an hour
    EXPECT_EQ(tokenizer->decode(ids).size(), text.size()) << name;
  }
}

TEST(Tokenizer, InvalidUtf8IsReplaced) {
  const auto tokenizer = load_tokenizer(kGolden + "byte_level.json");
  EXPECT_EQ(tokenizer->encode("a\xFFz"), tokenizer->encode("a\xEF\xBF\xBDz"));
  EXPECT_EQ(tokenizer->encode(std::string_view("\0x", 2)).size(), 2u);
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreSkipped) {
  const auto tokenizer = load_tokenizer(kGolden + "byte_level.json");
  const Ids ids = tokenizer->encode("hi");
  Ids noisy = {-1, 1 << 30};
  noisy.insert(noisy.end(), ids.begin(), ids.end());
  noisy.push_back(int32_t(tokenizer->vocab_size()));
  EXPECT_EQ(tokenizer->decode(noisy), "hi");
  EXPECT_EQ(tokenizer->id_to_token(-5), "");
  EXPECT_EQ(tokenizer->token_bytes(1 << 30), "");
  EXPECT_FALSE(tokenizer->is_special(-1));
  EXPECT_EQ(tokenizer->token_to_id("no such token"), std::nullopt);
}

TEST(Tokenizer, TokenBytes) {
  const auto bytes = load_tokenizer(kGolden + "byte_level.json");
  for (int32_t id = 0; id < bytes->vocab_size(); ++id) {
    if (bytes->is_special(id)) continue;
    EXPECT_EQ(bytes->token_to_id(bytes->id_to_token(id)), id);
  }
  EXPECT_EQ(bytes->token_bytes(bytes->token_to_id("\xC4\xA0the").value()), " the");
  const auto fallback = load_tokenizer(kGolden + "byte_fallback.json");
  EXPECT_EQ(fallback->token_bytes(fallback->token_to_id("<0xE4>").value()), "\xE4");
  EXPECT_EQ(fallback->token_bytes(fallback->token_to_id("\xE2\x96\x81the\xE2\x96\x81").value()),
            " the ");
  const auto words = load_tokenizer(kGolden + "wordpiece.json");
  EXPECT_EQ(words->token_bytes(words->token_to_id("the").value()), " the");
  EXPECT_EQ(words->token_bytes(words->token_to_id("##s").value()), "s");
}

TEST(TokenStream, EqualsDecodeAndCutsNoCharacter) {
  std::mt19937 random(3);
  for (const char* name :
       {"byte_level.json", "byte_fallback.json", "metaspace_first.json", "unigram.json",
        "wordpiece.json", "word_suffix.json", "word_level.json", "spm_bpe.model"}) {
    const auto tokenizer = load_tokenizer(kGolden + name);
    for (int round = 0; round < 500; ++round) {
      Ids ids;
      for (int n = int(random() % 20); n >= 0; --n)
        ids.push_back(int32_t(random() % uint32_t(tokenizer->vocab_size())));
      const bool skip = round % 2;
      StreamDecoder stream(*tokenizer, {}, skip);
      std::string text;
      for (const int32_t id : ids) {
        const std::string part = stream.add(id);
        ASSERT_EQ(unicode::valid_prefix(part), part.size()) << name;
        text += part;
      }
      text += stream.finish();
      ASSERT_EQ(text, tokenizer->decode(ids, skip)) << name;
    }
  }
}

TEST(TokenStream, CharactersComeOutWhenComplete) {
  const auto tokenizer = load_tokenizer(kGolden + "byte_fallback.json");
  StreamDecoder stream(*tokenizer, {}, true);
  auto byte = [&](const char* token) { return stream.add(tokenizer->token_to_id(token).value()); };
  EXPECT_EQ(byte("<0xF0>"), "");
  EXPECT_EQ(byte("<0x9F>"), "");
  EXPECT_EQ(byte("<0x98>"), "");
  EXPECT_EQ(byte("<0x80>"), "\xF0\x9F\x98\x80");
  EXPECT_EQ(byte("<0xE4>"), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

TEST(TokenStream, PromptTailGivesTheLeftContext) {
  const auto tokenizer = load_tokenizer(kGolden + "byte_fallback.json");
  const int32_t the = tokenizer->token_to_id("\xE2\x96\x81the\xE2\x96\x81").value();
  StreamDecoder fresh(*tokenizer, {}, true);
  EXPECT_EQ(fresh.add(the), "the ");
  const Ids tail = {the};
  StreamDecoder behind(*tokenizer, tail, true);
  EXPECT_EQ(behind.add(the), " the ");
}

TEST(Tokenizer, ThreadsShareOneTokenizer) {
  const auto tokenizer = load_tokenizer(kGolden + "byte_level.json");
  const std::string text = read_file(kGolden + "corpus.json");
  const Ids want = tokenizer->encode(text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4, 0);
  for (size_t t = 0; t < equal.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) equal[t] += tokenizer->encode(text) == want;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(equal, std::vector<int>(4, 20));
}

class TokenizerFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        fs::path(testing::TempDir()) / ("reft_tokenizer_folder_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    fs::copy_file(kGolden + "byte_level.json", folder_ / "tokenizer.json",
                  fs::copy_options::overwrite_existing);
  }
  void TearDown() override { fs::remove_all(folder_); }
  void write(const char* name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  std::unique_ptr<Tokenizer> load() { return load_tokenizer(folder_.string()); }
  fs::path folder_;
};

TEST_F(TokenizerFolder, ConfigTokensAndTemplates) {
  write(
      "tokenizer_config.json",
      R"({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "pad_token": null, "add_bos_token": true,
            "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  write("special_tokens_map.json",
        R"({"pad_token": {"content": "<think>"}, "eos_token": "other"})");
  auto tokenizer = load();
  EXPECT_EQ(tokenizer->bos_id(), tokenizer->token_to_id("<|im_start|>"));
  EXPECT_EQ(tokenizer->eos_id(), tokenizer->token_to_id("<|im_end|>"));
  EXPECT_EQ(tokenizer->pad_id(), tokenizer->token_to_id("<think>"));
  EXPECT_EQ(tokenizer->chat_template(), "D");
  // Only some classes put bos in by themselves.
  EXPECT_NE(tokenizer->encode("hi").front(), tokenizer->bos_id());
  write("chat_template.jinja", "J");
  EXPECT_EQ(load()->chat_template(), "J");
  write(
      "tokenizer_config.json",
      R"({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_eos_token": true})");
  tokenizer = load();
  const Ids ids = tokenizer->encode("hi");
  EXPECT_EQ(ids.front(), tokenizer->bos_id());
  EXPECT_EQ(ids.back(), tokenizer->eos_id());
  EXPECT_EQ(tokenizer->encode("hi", {.add_special_tokens = false}).size(), ids.size() - 2);
}

TEST_F(TokenizerFolder, TiktokenTakesSpecialTokensFromTheConfig) {
  fs::remove(folder_ / "tokenizer.json");
  fs::copy_file(kGolden + "small.tiktoken", folder_ / "tokenizer.model");
  write(
      "tokenizer_config.json",
      R"({"added_tokens_decoder": {"2000": {"content": "<|end|>", "special": true}}, "eos_token": "<|end|>"})");
  const auto tokenizer = load();
  EXPECT_EQ(tokenizer->eos_id(), 2000);
  EXPECT_EQ(tokenizer->encode("<|end|>"), Ids{2000});
}

TEST_F(TokenizerFolder, MissingAndBrokenFilesAreNamed) {
  write("tokenizer_config.json", "{");
  EXPECT_THROW(load(), Error);
  fs::remove(folder_ / "tokenizer_config.json");
  fs::remove(folder_ / "tokenizer.json");
  try {
    load();
    FAIL();
  } catch (const NoTokenizer& e) {
    EXPECT_THAT(e.what(), HasSubstr("no tokenizer.json"));
  }
  write("tokenizer.model", "\x0a\x05\x0a\x50garbage");
  EXPECT_THROW(load(), Error);
  write("tokenizer.model", "not base64 !!\n");
  EXPECT_THROW(load(), Error);
}

TEST(TokenizerJson, BadFilesAreErrors) {
  const std::string tail =
      R"(, "pre_tokenizer": null, "normalizer": null, "decoder": null, "added_tokens": []})";
  auto model = [&](const std::string& m) { return "{\"model\": " + m + tail; };
  EXPECT_THAT(error_of("{"), HasSubstr("invalid JSON"));
  EXPECT_THAT(error_of("[]"), HasSubstr("invalid JSON"));
  EXPECT_THAT(error_of("{}"), HasSubstr("no model"));
  EXPECT_THAT(error_of(model(R"({"type": "BPE"})")), HasSubstr("no vocab"));
  EXPECT_THAT(error_of(model(R"({"type": "Magic", "vocab": {}})")),
              HasSubstr("'Magic' is not supported"));
  EXPECT_THAT(error_of(model(R"({"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []})")),
              HasSubstr("two tokens have the id 0"));
  EXPECT_THAT(error_of(model(R"({"type": "BPE", "vocab": {"a": -1}, "merges": []})")),
              HasSubstr("id -1"));
  EXPECT_THAT(error_of(model(R"({"type": "BPE", "vocab": {"a": 99999999999}, "merges": []})")),
              HasSubstr("id 99999999999"));
  EXPECT_THAT(error_of(model(R"({"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]})")),
              HasSubstr("'b' is not in the vocabulary"));
  EXPECT_THAT(error_of(model(R"({"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]})")),
              HasSubstr("'aa' is not in the vocabulary"));
  EXPECT_THAT(error_of(model(R"({"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]})")),
              HasSubstr("merge of one token"));
  EXPECT_THAT(
      error_of(model(R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "<unk>"})"),
               "xyz"),
      HasSubstr("'<unk>' is not in the vocabulary"));
  EXPECT_THAT(
      error_of(model(R"({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"})"), "b"),
      HasSubstr("'<unk>' is not in the vocabulary"));
  EXPECT_THAT(error_of(model(R"({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7})")),
              HasSubstr("unk_id 7"));
  EXPECT_THAT(error_of(model(R"({"type": "Unigram", "vocab": [["a", 0.0]]})"), "b"),
              HasSubstr("no unknown token"));
  const std::string good = R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, )";
  EXPECT_THAT(error_of(good + R"("normalizer": {"type": "Odd"}})"),
              HasSubstr("normalizer type 'Odd'"));
  EXPECT_THAT(error_of(good + R"("pre_tokenizer": {"type": "Odd"}})"),
              HasSubstr("pre_tokenizer type 'Odd'"));
  EXPECT_THAT(error_of(good + R"("decoder": {"type": "Odd"}})"), HasSubstr("decoder type 'Odd'"));
  EXPECT_THAT(error_of(good + R"("post_processor": {"type": "Odd"}})"),
              HasSubstr("post_processor type 'Odd'"));
  EXPECT_THAT(
      error_of(
          good +
          R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated"}})"),
      HasSubstr("regex '(('"));
  const std::string huge(100'000, '(');
  EXPECT_THAT(error_of(good + R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex": ")" +
                       huge + R"("}}})"),
              HasSubstr("longer than"));
  EXPECT_THAT(error_of(good + "\"added_tokens\": 3}"), HasSubstr("added_tokens is not a list"));
  EXPECT_THAT(error_of(good + "\"x\": \"\xFF\"}"), HasSubstr("not valid UTF-8"));
  // A merge that makes one of its own parts is only a merge that never ends up anywhere else.
  EXPECT_EQ(
      error_of(
          model(R"({"type": "BPE", "vocab": {"a": 0, "": 1}, "merges": [["a", ""], ["", "a"]]})"),
          "aaa"),
      "no error");
}

TEST(TokenDecoder, BadBytesBecomeOneReplacementEach) {
  const auto decoder = make_token_decoder({{"type", "ByteFallback"}});
  std::string out;
  const auto stream = decoder->start();
  for (const char* token : {"<0xE4>", "<0xBD>", "x", "<0xFF>", "<0x41>", "<0xZZ>"})
    stream->add(token, out);
  stream->finish(out);
  EXPECT_EQ(out,
            "\xEF\xBF\xBD\xEF\xBF\xBDx\xEF\xBF\xBD"
            "A<0xZZ>");
}

}  // namespace
}  // namespace reft
