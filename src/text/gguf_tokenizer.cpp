#include "text/gguf_tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/check.h"
#include "base/file.h"
#include "text/scanner.h"
#include "text/sentencepiece_file.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using Type = SentencePieceSpec;

// The lists that both kinds of vocabulary have.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int64_t> types;
  std::vector<double> scores;

  explicit Vocabulary(int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) tokens.push_back(fmt::format("[PAD{}]", i));
    types.assign(tokens.size(), Type::kUnused);
    scores.assign(tokens.size(), 0);
  }
  void set(int64_t id, std::string token, int64_t type, double score = 0) {
    check(id >= 0 && id < static_cast<int64_t>(tokens.size()),
          "the tokenizer has a token {}, the model only {} rows", id, tokens.size());
    const auto i = static_cast<size_t>(id);
    tokens[i] = std::move(token);
    types[i] = type;
    scores[i] = score;
  }
};

// A step of a pre-tokenizer in one line, to be compared with those that GGUF has names for.
void describe_steps(const Json& step, std::vector<std::string>* out) {
  if (step.is_null()) return;
  const auto type = json_get(step, "type", std::string());
  if (type == "Sequence") {
    for (const Json& inner : step.value("pretokenizers", Json::array())) describe_steps(inner, out);
  } else if (type == "Split") {
    const Json pattern = step.value("pattern", Json::object());
    out->push_back(json_get(pattern, "Regex", json_get(pattern, "String", std::string())));
  } else if (type == "Digits" && json_get(step, "individual_digits", false)) {
    out->push_back("digits");
  } else if (type == "ByteLevel") {
    if (json_get(step, "use_regex", true)) out->emplace_back(patterns::kGpt2);
  } else {
    out->push_back(type);
  }
}

// tokenizer.ggml.pre, which stands for how text is normalised and split.
std::string pre_name(const Json& file, const std::string& path) {
  std::vector<std::string> steps;
  describe_steps(file.value("pre_tokenizer", Json()), &steps);
  const Json normalizer = file.value("normalizer", Json());
  const bool nfc = normalizer.is_object() && json_get(normalizer, "type", std::string()) == "NFC";
  const bool whole_words = json_get(file.at("model"), "ignore_merges", false);
  using Steps = std::vector<std::string>;
  const std::pair<const char*, Steps> known[] = {
      {"gpt-2", {std::string(patterns::kGpt2)}},
      {"smollm", {"digits", std::string(patterns::kGpt2)}},
      {whole_words ? "llama-bpe" : "dbrx", {std::string(patterns::kLlama3)}},
      {nfc ? "qwen2" : "deepseek-r1-qwen", {std::string(patterns::kQwen2)}},
      {"qwen35", {std::string(patterns::kQwen35)}},
      {"gpt-4o", {std::string(patterns::kO200k)}},
      {"tekken", {std::string(patterns::kTekken)}},
      {"deepseek-v3",
       {std::string(patterns::kDeepseekDigits), std::string(patterns::kDeepseekCjk),
        std::string(patterns::kDeepseekText)}},
  };
  for (const auto& [name, wanted] : known) {
    if (steps == wanted) return name;
  }
  fail("{}: GGUF has no name for its way of splitting text ({})", path, fmt::join(steps, " | "));
}

std::string merge_text(const Json& merge) {
  if (merge.is_string()) return merge.get<std::string>();
  return merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>();
}

// Tokens that stand beside the model's own: special ones are control tokens.
void add_added_tokens(const Tokenizer& tokenizer, const Json& list, Vocabulary* vocabulary) {
  for (const Json& item : list) {
    const auto content = json_get(item, "content", std::string());
    const auto id = tokenizer.token_to_id(content);
    if (!id) continue;
    const bool special = tokenizer.is_special(*id);
    vocabulary->set(*id, content, special ? Type::kControl : Type::kUserDefined);
  }
}

// Tokens that only tokenizer_config.json names.
void add_config_tokens(const Tokenizer& tokenizer, const std::string& folder,
                       Vocabulary* vocabulary) {
  if (!fs::is_directory(folder)) return;
  Json list = Json::array();
  const Json config = read_tokenizer_config(folder).config;
  const Json tokens = config.value("added_tokens_decoder", Json::object());
  for (const auto& [id, item] : tokens.items()) {
    list.push_back(item);
  }
  add_added_tokens(tokenizer, list, vocabulary);
}

// SentencePiece merges the pair of the highest score; tokenizer.json lists the pairs in that order.
void add_spaced_bpe(const Json& model, Vocabulary* vocabulary) {
  std::map<std::string, double> scores;
  double rank = 0;
  for (const Json& merge : model.at("merges")) {
    std::string text = merge_text(merge);
    text.erase(text.find(' ', 1), 1);
    scores.try_emplace(std::move(text), --rank);
  }
  const auto unknown = json_get(model, "unk_token", std::string());
  for (const auto& [token, id] : model.at("vocab").items()) {
    const bool byte = token.size() == 6 && token.starts_with("<0x") && token.ends_with(">");
    const auto score = scores.find(token);
    vocabulary->set(id.get<int64_t>(), token,
                    byte               ? Type::kByte
                    : token == unknown ? Type::kUnknown
                                       : Type::kNormal,
                    score == scores.end() ? 0 : score->second);
  }
}

// Whether text gets a "▁" in front.
bool adds_prefix(const Json& file) {
  const std::string steps =
      file.value("normalizer", Json()).dump() + file.value("pre_tokenizer", Json()).dump();
  return steps.find("\"Prepend\"") != std::string::npos ||
         steps.find("\"prepend_scheme\":\"first\"") != std::string::npos ||
         steps.find("\"prepend_scheme\":\"always\"") != std::string::npos;
}

void write_json_tokenizer(const std::string& path, const Json& file, const Tokenizer& tokenizer,
                          Vocabulary* vocabulary, GgufMetadata* out) {
  const Json& model = file.at("model");
  check(json_get(model, "type", std::string("BPE")) == "BPE" && model.contains("merges"),
        "{}: a tokenizer of type {} cannot be written as GGUF: BPE can", path,
        json_get(model, "type", std::string("?")));
  if (json_get(model, "byte_fallback", false)) {
    add_spaced_bpe(model, vocabulary);
    (*out)["tokenizer.ggml.model"] = std::string("llama");
    (*out)["tokenizer.ggml.pre"] = std::string("default");
    (*out)["tokenizer.ggml.add_space_prefix"] = adds_prefix(file);
  } else {
    for (const auto& [token, id] : model.at("vocab").items()) {
      vocabulary->set(id.get<int64_t>(), token, Type::kNormal);
    }
    std::vector<std::string> merges;
    for (const Json& merge : model.at("merges")) merges.push_back(merge_text(merge));
    (*out)["tokenizer.ggml.model"] = std::string("gpt2");
    (*out)["tokenizer.ggml.pre"] = pre_name(file, path);
    (*out)["tokenizer.ggml.merges"] = std::move(merges);
  }
  add_added_tokens(tokenizer, file.value("added_tokens", Json::array()), vocabulary);
}

void write_sentencepiece(const std::string& path, Vocabulary* vocabulary, GgufMetadata* out) {
  const SentencePieceSpec spec = read_sentencepiece(read_file(path), path).spec;
  check(spec.bpe, "{}: a unigram tokenizer cannot be written as GGUF: BPE can", path);
  int64_t id = 0;
  for (const auto& piece : spec.pieces) vocabulary->set(id++, piece.text, piece.type, piece.score);
  (*out)["tokenizer.ggml.model"] = std::string("llama");
  (*out)["tokenizer.ggml.pre"] = std::string("default");
  (*out)["tokenizer.ggml.add_space_prefix"] = spec.add_dummy_prefix;
  (*out)["tokenizer.ggml.remove_extra_whitespaces"] = spec.remove_extra_whitespaces;
}

}  // namespace

GgufMetadata gguf_tokenizer(const std::string& path, const Tokenizer& tokenizer, int64_t rows) {
  const bool folder = fs::is_directory(path);
  std::string file = path;
  if (folder) {
    // SentencePiece's own file says more than what was made of it.
    file = path + (fs::exists(path + "/tokenizer.model") ? "/tokenizer.model" : "/tokenizer.json");
  }
  check(fs::exists(file), "'{}' has neither tokenizer.json nor tokenizer.model", path);
  GgufMetadata out;
  Vocabulary vocabulary(std::max(rows, tokenizer.vocab_size()));
  if (file.ends_with(".model") && looks_like_sentencepiece(read_file(file))) {
    write_sentencepiece(file, &vocabulary, &out);
    const std::string beside = path + "/tokenizer.json";
    if (folder && fs::exists(beside)) {
      const Json json = read_json_file(beside);
      add_added_tokens(tokenizer, json.value("added_tokens", Json::array()), &vocabulary);
    }
  } else if (file.ends_with(".json")) {
    write_json_tokenizer(file, read_json_file(file), tokenizer, &vocabulary, &out);
  } else {
    fail("{}: only tokenizer.json and tokenizer.model can be written as GGUF", file);
  }
  add_config_tokens(tokenizer, path, &vocabulary);
  if (std::get<std::string>(out["tokenizer.ggml.model"]) == "llama") {
    out["tokenizer.ggml.scores"] = std::move(vocabulary.scores);
  }
  out["tokenizer.ggml.tokens"] = std::move(vocabulary.tokens);
  out["tokenizer.ggml.token_type"] = std::move(vocabulary.types);
  const auto id = [&](const char* key, std::optional<int32_t> value) {
    if (value) out[std::string("tokenizer.ggml.") + key] = int64_t{*value};
  };
  // A tokenizer.json alone says what begins and ends a text, but not what it is called.
  const std::vector<int32_t> around = tokenizer.encode("a");
  const bool begins = !around.empty() && tokenizer.is_special(around.front());
  const bool ends = around.size() > 1 && tokenizer.is_special(around.back());
  std::optional<int32_t> bos = tokenizer.bos_id(), eos = tokenizer.eos_id();
  if (!bos && begins) bos = around.front();
  if (!eos && ends) eos = around.back();
  id("bos_token_id", bos);
  id("eos_token_id", eos);
  id("padding_token_id", tokenizer.pad_id());
  out["tokenizer.ggml.add_bos_token"] = begins && bos == around.front();
  out["tokenizer.ggml.add_eos_token"] = ends && eos == around.back();
  if (!tokenizer.chat_template().empty()) {
    out["tokenizer.chat_template"] = tokenizer.chat_template();
  }
  return out;
}

GgufMetadata gguf_tokenizer(const GgufReader& gguf) {
  GgufMetadata out;
  for (const auto& [key, value] : gguf.metadata()) {
    if (key.starts_with("tokenizer.")) out[key] = value;
  }
  check(!out.contains("tokenizer.ggml.precompiled_charsmap"),
        "{}: tokenizer.ggml.precompiled_charsmap cannot be written", gguf.path());
  return out;
}

void check_same_tokens(const Tokenizer& written, const Tokenizer& source) {
  for (const char* text :
       {"", "Hello, world!", "  two  spaces\n\n\tand lines\r\n", "I'll say it's 12345.678 o'CLOCK",
        "Grüße, naïve café, Ελληνικά, русский", "你好，世界。日本語のテキスト 한국어",
        "for (int i = 0; i < n; ++i) { x[i] += y; }", "🙂👩‍👩‍👧 ½ ² \xCC\x81",
        "https://example.org/a?b=c&d=%20"}) {
    check(written.encode(text) == source.encode(text),
          "the tokenizer of the written file encodes '{}' differently: this one cannot be written "
          "as GGUF",
          text);
  }
}

}  // namespace reft
