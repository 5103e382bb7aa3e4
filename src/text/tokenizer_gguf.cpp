// Vocabularies inside GGUF files (tokenizer.ggml.*).
#include <algorithm>
#include <map>
#include <string>

#include "base/check.h"
#include "tensor/gguf.h"
#include "text/bpe.h"
#include "text/scanner.h"
#include "text/tokenizer_pipeline.h"
#include "text/unicode.h"
#include "text/wordpiece.h"

namespace reft {
namespace {

using Spec = SentencePieceSpec;

// The metadata with types checked; an absent key gives the fallback.
class Metadata {
 public:
  explicit Metadata(const GgufReader& gguf) : map_(gguf.metadata()) {}

  template <class T>
  const T* find(const std::string& key) const {
    auto it = map_.find(key);
    if (it == map_.end()) return nullptr;
    const T* value = std::get_if<T>(&it->second);
    check(value != nullptr, "GGUF: {} has an unexpected type", key);
    return value;
  }
  template <class T>
  T get(const std::string& key, T fallback) const {
    const T* value = find<T>(key);
    return value ? *value : fallback;
  }
  bool has(const std::string& key) const { return map_.contains(key); }

 private:
  const std::map<std::string, GgufValue>& map_;
};

// How tokenizer.ggml.pre names the splitting of text.
struct PreKind {
  std::vector<std::string> patterns;
  bool ignore_merges = false;
  bool add_bos = false;
  bool nfc = false;
  bool single_digits = false;  // Digits before the GPT-2 pattern
};

constexpr const char* kCasedLetters =
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-"
    "\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}"
    "\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}"
    "\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-"
    "\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}"
    "\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-"
    "\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-"
    "\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-"
    "\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}"
    "\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}"
    "\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-"
    "\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-"
    "\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-"
    "\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-"
    "\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-"
    "\\x{118df}\\x{1e900}-\\x{1e943}";

PreKind pre_kind(const std::string& name) {
  const std::string gpt2(patterns::kGpt2), llama3(patterns::kLlama3), qwen2(patterns::kQwen2),
      qwen35(patterns::kQwen35), o200k(patterns::kO200k), tekken(patterns::kTekken);
  auto one_of = [&](std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&](const char* n) { return name == n; });
  };
  if (one_of({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0",
              "lfm2", "jina-v5-nano"})) {
    return {{llama3}, true, true};
  }
  if (one_of({"dbrx", "smaug-bpe", "chatglm-bpe"})) return {{llama3}};
  if (one_of({"glm4", "glm5"})) return {{llama3}, true};
  if (one_of({"qwen2"})) return {{qwen2}, false, false, true};
  if (one_of({"qwen35"})) return {{qwen35}, false, false, true};
  if (one_of({"deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "megrez",
              "solar-open", "grok-2"}))
    return {{qwen2}};
  if (one_of({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
              "mellum2"})) {
    return {{gpt2}, false, false, name == "command-r", true};
  }
  if (one_of({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
              "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code",
              "gigachat", "a.x-4.0", "mellum", "modern-bert", "roberta-bpe"})) {
    return {{gpt2}};
  }
  if (one_of({"gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"})) return {{o200k}, true};
  if (name == "tekken") return {{tekken}, true, true};
  if (one_of({"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"})) {
    return {{std::string(patterns::kDeepseekDigits), std::string(patterns::kDeepseekCjk),
             std::string(patterns::kDeepseekText)}};
  }
  if (name == "deepseek-llm") {
    return {{"[\r\n]", std::string("\\s?[") + kCasedLetters + "]+",
             "\\s?[!-/"
             ":-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
             "\\s+$", "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+", "\\p{N}+"}};
  }
  if (name == "deepseek-coder") {
    return {{"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
             "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+", "\\p{N}"}};
  }
  if (name == "falcon") return {{"[\\p{P}\\$\\+<=>\\^~\\|`]+", gpt2, "[0-9][0-9][0-9]"}};
  if (one_of({"poro-chat", "bloom", "gpt3-finnish"}))
    return {{" ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+"}};
  if (name == "viking")
    return {
        {" ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+", "\\p{N}"}};
  if (one_of({"bailingmoe", "bailingmoe2", "llada-moe"})) {
    return {
        {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| "
         "?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"}};
  }
  if (name == "seed-coder") {
    return {
        {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
         "?[^\\s\\p{L}\\p{N}\\r\\n]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}};
  }
  if (name == "exaone-moe") {
    return {
        {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: "
         "\\p{L}\\p{M}*)*)+|\\p{N}| "
         "?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"}};
  }
  if (name == "kimi-k2") {
    const std::string upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]";
    const std::string lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]";
    const std::string head = "[^\\r\\n\\p{L}\\p{N}]?", tail = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
    return {{"[\\p{Han}]+|" + head + upper + "*" + lower + "+" + tail + "|" + head + upper + "+" +
             lower + "*" + tail +
             "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}};
  }
  if (one_of({"tiny_aya", "cohere2moe"})) return {{"\\d{1,3}(?=(?:\\d{3})*\\b)", o200k}};
  if (name == "superbpe") return {{"\\p{N}+", "(?=(\\d{3})+(?!\\d))"}};
  if (name == "minicpm5") {
    return {{std::string(patterns::kDeepseekDigits),
             "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}+| "
             "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
            true};
  }
  if (name.empty() || name == "default") {
    return {{"[\\p{P}\\$\\+<=>\\^~\\|]+", gpt2, "\\p{N}+", "[0-9][0-9][0-9]"}};
  }
  fail("GGUF: tokenizer.ggml.pre '{}' is not supported", name);
}

struct Vocabulary {
  const std::vector<std::string>& tokens;
  std::vector<int64_t> types;
};

Vocabulary read_vocabulary(const Metadata& metadata) {
  const auto* tokens = metadata.find<std::vector<std::string>>("tokenizer.ggml.tokens");
  check(tokens != nullptr && !tokens->empty(), "GGUF: no tokenizer.ggml.tokens");
  check(tokens->size() <= size_t(TokenTable::kMaxId), "GGUF: {} tokens are too many",
        tokens->size());
  Vocabulary out{*tokens, std::vector<int64_t>(tokens->size(), Spec::kNormal)};
  if (const auto* types = metadata.find<std::vector<int64_t>>("tokenizer.ggml.token_type")) {
    check(types->size() == tokens->size(), "GGUF: {} token types for {} tokens", types->size(),
          tokens->size());
    out.types = *types;
  }
  return out;
}

void add_special_tokens(const Vocabulary& vocabulary, TokenizerParts& parts) {
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const int64_t type = vocabulary.types[i];
    if (type != Spec::kControl && type != Spec::kUnknown && type != Spec::kUserDefined) continue;
    AddedToken token;
    token.id = int32_t(i);
    token.content = vocabulary.tokens[i];
    token.special = type != Spec::kUserDefined;
    parts.added.add(std::move(token));
  }
}

void read_merges(const Metadata& metadata, Bpe& bpe) {
  const auto* merges = metadata.find<std::vector<std::string>>("tokenizer.ggml.merges");
  check(merges != nullptr, "GGUF: no tokenizer.ggml.merges");
  bpe.reserve_merges(merges->size());
  for (const std::string& merge : *merges) {
    const size_t space = merge.find(' ', 1);
    check(space != std::string::npos, "GGUF: merge '{}' is not two tokens", merge);
    const std::string_view view = merge;
    bpe.add_merge(view.substr(0, space), view.substr(space + 1), false);
  }
}

// Tokens of byte-level models are stored in the alphabet; user-defined and control ones as they
// are.
TokenizerParts byte_level_parts(const Metadata& metadata, const Vocabulary& vocabulary,
                                bool& add_bos) {
  const PreKind kind = pre_kind(metadata.get("tokenizer.ggml.pre", std::string()));
  add_bos = kind.add_bos;
  TokenTable table, raw;
  table.reserve(vocabulary.tokens.size(), vocabulary.tokens.size() * 8);
  std::string bytes;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string& token = vocabulary.tokens[i];
    check(unicode::valid_prefix(token) == token.size(), "GGUF: token {} is not valid UTF-8", i);
    const bool mapped = byte_alphabet::decode(token, bytes);
    (mapped ? table : raw).add(mapped ? bytes : token, int32_t(i));
  }
  BpeOptions options;
  options.byte_level = true;
  options.ignore_merges = kind.ignore_merges;
  auto bpe = std::make_unique<Bpe>(std::move(table), options);
  bpe->raw() = std::move(raw);
  read_merges(metadata, *bpe);
  bpe->finish();
  TokenizerParts parts;
  parts.model = std::move(bpe);
  if (kind.nfc) parts.normalizer = make_normalizer({{"type", "NFC"}});
  if (kind.single_digits) {
    Json steps = Json::array();
    steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
    steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}});
    bool byte_level = false;
    parts.pretokenizer =
        make_pretokenizer({{"type", "Sequence"}, {"pretokenizers", steps}}, &byte_level);
  } else {
    parts.pretokenizer = make_split_sequence(kind.patterns);
  }
  parts.decoder = make_token_decoder({{"type", "ByteLevel"}});
  return parts;
}

// Gemma 4: merges over plain text with ▁ for the space and a byte fallback.
TokenizerParts spaced_bpe_parts(const Metadata& metadata, const Vocabulary& vocabulary) {
  TokenTable table;
  table.reserve(vocabulary.tokens.size(), vocabulary.tokens.size() * 8);
  std::string unk;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string& token = vocabulary.tokens[i];
    check(unicode::valid_prefix(token) == token.size(), "GGUF: token {} is not valid UTF-8", i);
    table.add(token, int32_t(i));
    if (vocabulary.types[i] == Spec::kUnknown) unk = token;
  }
  BpeOptions options;
  options.byte_fallback = true;
  options.fuse_unk = true;
  options.unk_token = unk;
  auto bpe = std::make_unique<Bpe>(std::move(table), options);
  read_merges(metadata, *bpe);
  bpe->finish();
  TokenizerParts parts;
  parts.model = std::move(bpe);
  parts.normalizer = make_replace(" ", "\xE2\x96\x81");
  Json decoders = Json::array();
  decoders.push_back(
      {{"type", "Replace"}, {"pattern", {{"String", "\xE2\x96\x81"}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  parts.decoder = make_token_decoder({{"type", "Sequence"}, {"decoders", decoders}});
  return parts;
}

TokenizerParts sentencepiece_parts(const Metadata& metadata, const Vocabulary& vocabulary,
                                   bool bpe) {
  Spec spec;
  spec.bpe = bpe;
  const auto* scores = metadata.find<std::vector<double>>("tokenizer.ggml.scores");
  check(scores != nullptr && scores->size() == vocabulary.tokens.size(),
        "GGUF: no tokenizer.ggml.scores for all tokens");
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    spec.pieces.push_back({vocabulary.tokens[i], (*scores)[i], vocabulary.types[i]});
  }
  spec.add_dummy_prefix = metadata.get("tokenizer.ggml.add_space_prefix", true);
  spec.remove_extra_whitespaces = metadata.get("tokenizer.ggml.remove_extra_whitespaces", false);
  if (const auto* map =
          metadata.find<std::vector<int64_t>>("tokenizer.ggml.precompiled_charsmap")) {
    for (const int64_t byte : *map) spec.charsmap += char(byte);
  }
  return make_sentencepiece(std::move(spec), "GGUF");
}

// BERT: words begin with ▁, what continues a word is written bare.
TokenizerParts bert_parts(const Metadata& metadata, const Vocabulary& vocabulary) {
  constexpr std::string_view kMark = "\xE2\x96\x81";
  TokenTable table;
  table.reserve(vocabulary.tokens.size(), vocabulary.tokens.size() * 10);
  std::string unk = "[UNK]";
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string& token = vocabulary.tokens[i];
    check(unicode::valid_prefix(token) == token.size(), "GGUF: token {} is not valid UTF-8", i);
    if (vocabulary.types[i] == Spec::kUnknown) unk = token;
    const bool word = token.compare(0, kMark.size(), kMark) == 0;
    const bool plain = vocabulary.types[i] == Spec::kNormal;
    table.add(word ? token.substr(kMark.size()) : plain ? "##" + token : token, int32_t(i));
  }
  TokenizerParts parts;
  parts.model = std::make_unique<WordPiece>(std::move(table), unk, "##", 100);
  parts.normalizer =
      make_normalizer({{"type", "BertNormalizer"},
                       {"lowercase", metadata.get("tokenizer.ggml.normalizer.lowercase", true)}});
  parts.pretokenizer = make_pretokenizer({{"type", "BertPreTokenizer"}}, nullptr);
  parts.decoder = make_token_decoder({{"type", "WordPiece"}});
  return parts;
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const GgufReader& gguf) {
  const Metadata metadata(gguf);
  const auto model = metadata.get("tokenizer.ggml.model", std::string());
  if (model.empty()) throw NoTokenizer("GGUF: no tokenizer (tokenizer.ggml.model)");
  const Vocabulary vocabulary = read_vocabulary(metadata);
  TokenizerParts parts;
  bool add_bos = false, add_eos = false;
  if (model == "gpt2") {
    parts = byte_level_parts(metadata, vocabulary, add_bos);
  } else if (model == "llama") {
    parts = sentencepiece_parts(metadata, vocabulary, true);
    add_bos = true;
  } else if (model == "t5") {
    parts = sentencepiece_parts(metadata, vocabulary, false);
    add_eos = true;
  } else if (model == "gemma4") {
    parts = spaced_bpe_parts(metadata, vocabulary);
    add_bos = true;
  } else if (model == "bert") {
    parts = bert_parts(metadata, vocabulary);
    add_bos = true;
  } else {
    fail("GGUF: tokenizer model '{}' is not supported (gpt2, llama, gemma4, t5 and bert are)",
         model);
  }
  add_special_tokens(vocabulary, parts);
  auto id = [&](const char* key) -> std::optional<int32_t> {
    const auto* value = metadata.find<int64_t>(std::string("tokenizer.ggml.") + key);
    if (value == nullptr || *value < 0 || *value >= int64_t(vocabulary.tokens.size()))
      return std::nullopt;
    return int32_t(*value);
  };
  parts.bos = id(model == "bert" && metadata.has("tokenizer.ggml.cls_token_id") ? "cls_token_id"
                                                                                : "bos_token_id");
  parts.eos = id("eos_token_id");
  parts.pad = id("padding_token_id");
  add_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos);
  add_eos = metadata.get("tokenizer.ggml.add_eos_token", add_eos);
  if (add_bos && parts.bos) parts.prefix.push_back(*parts.bos);
  if (add_eos && parts.eos) parts.suffix.push_back(*parts.eos);
  const auto separator =
      id(metadata.has("tokenizer.ggml.seperator_token_id") ? "seperator_token_id"
                                                           : "separator_token_id");
  if (model == "bert" && separator) parts.suffix.push_back(*separator);
  parts.chat_template = metadata.get("tokenizer.chat_template", std::string());
  return make_tokenizer(std::move(parts));
}

}  // namespace reft
