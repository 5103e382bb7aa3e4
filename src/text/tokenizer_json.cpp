// tokenizer.json of Hugging Face's `tokenizers`.
#include <map>

#include "base/check.h"
#include "text/bpe.h"
#include "text/json_scanner.h"
#include "text/tokenizer_pipeline.h"
#include "text/unicode.h"
#include "text/unigram.h"
#include "text/wordpiece.h"

namespace reft {
namespace {

// Members of an object as text.
using Fields = std::map<std::string, std::string_view>;

Fields read_fields(std::string_view object, const std::string& what) {
  JsonScanner scanner(object, what);
  Fields fields;
  scanner.enter('{');
  std::string_view key;
  while (scanner.next_key(key)) {
    std::string name(key);
    fields[name] = scanner.value();
  }
  scanner.end();
  return fields;
}

Json field(const Fields& fields, const char* key, const std::string& what) {
  auto it = fields.find(key);
  return it == fields.end() ? Json() : parse_json(it->second, what + ": " + key);
}

// The options of a model: everything but its large members.
Json small_fields(const Fields& fields, const std::string& what) {
  Json out = Json::object();
  for (const auto& [key, value] : fields) {
    if (key != "vocab" && key != "merges")
      out[key] = parse_json(value, fmt::format("{}: model.{}", what, key));
  }
  return out;
}

// Calls add(token, id) for each member of {"token": id, …}.
template <class Add>
void read_vocab(std::string_view vocab, const std::string& what, Add&& add) {
  JsonScanner scanner(vocab, what + ": model.vocab");
  scanner.enter('{');
  std::string_view key;
  while (scanner.next_key(key)) {
    const std::string token(key);
    const int64_t id = scanner.integer();
    check(id >= 0 && id <= TokenTable::kMaxId, "{}: token '{}' has the id {}", what, token, id);
    add(token, int32_t(id));
  }
  scanner.end();
}

TokenTable read_table(std::string_view vocab, const std::string& what) {
  TokenTable table;
  table.reserve(vocab.size() / 20, vocab.size());
  read_vocab(vocab, what, [&](const std::string& token, int32_t id) {
    check(table.add(token, id), "{}: two tokens have the id {}", what, id);
  });
  return table;
}

void read_merges(std::string_view merges, const std::string& what, Bpe& bpe) {
  JsonScanner scanner(merges, what + ": model.merges");
  bpe.reserve_merges(merges.size() / 16);
  scanner.enter('[');
  while (scanner.next_item()) {
    if (scanner.peek() == '"') {
      const std::string_view pair = scanner.string();
      const size_t space = pair.find(' ');
      check(space != std::string_view::npos && pair.find(' ', space + 1) == std::string_view::npos,
            "{}: merge '{}' is not two tokens", what, pair);
      bpe.add_merge(pair.substr(0, space), pair.substr(space + 1));
      continue;
    }
    scanner.enter('[');
    check(scanner.next_item(), "{}: empty merge", what);
    const std::string_view left = scanner.string();
    check(scanner.next_item(), "{}: merge of one token", what);
    const std::string_view right = scanner.string();
    bpe.add_merge(left, right);
    check(!scanner.next_item(), "{}: merge of more than two tokens", what);
  }
  scanner.end();
}

std::unique_ptr<TokenModel> read_bpe(const Fields& fields, bool byte_level,
                                     const std::string& what) {
  const Json config = small_fields(fields, what);
  BpeOptions options;
  options.byte_level = byte_level;
  options.ignore_merges = json_get(config, "ignore_merges", false);
  options.byte_fallback = json_get(config, "byte_fallback", false) && !byte_level;
  options.fuse_unk = json_get(config, "fuse_unk", false);
  options.unk_token = json_get(config, "unk_token", std::string());
  options.continuing_subword_prefix = json_get(config, "continuing_subword_prefix", std::string());
  options.end_of_word_suffix = json_get(config, "end_of_word_suffix", std::string());
  TokenTable table, raw;
  const std::string_view vocab = fields.at("vocab");
  table.reserve(vocab.size() / 20, vocab.size());
  std::string bytes;
  read_vocab(vocab, what, [&](const std::string& token, int32_t id) {
    const bool mapped = byte_level && byte_alphabet::decode(token, bytes);
    TokenTable& to = byte_level && !mapped ? raw : table;
    check(!table.has(id) && !raw.has(id), "{}: two tokens have the id {}", what, id);
    to.add(mapped ? bytes : token, id);
  });
  auto bpe = std::make_unique<Bpe>(std::move(table), std::move(options));
  bpe->raw() = std::move(raw);
  check(fields.contains("merges"), "{}: the BPE model has no merges", what);
  read_merges(fields.at("merges"), what, *bpe);
  bpe->finish();
  return bpe;
}

std::unique_ptr<TokenModel> read_unigram(const Fields& fields, const std::string& what) {
  const Json config = small_fields(fields, what);
  std::vector<Unigram::Piece> pieces;
  JsonScanner scanner(fields.at("vocab"), what + ": model.vocab");
  scanner.enter('[');
  while (scanner.next_item()) {
    scanner.enter('[');
    check(scanner.next_item(), "{}: empty vocabulary entry", what);
    std::string text(scanner.string());
    check(scanner.next_item(), "{}: vocabulary entry '{}' has no score", what, text);
    const double score = scanner.number();
    check(!scanner.next_item(), "{}: vocabulary entry '{}' has more than a score", what, text);
    pieces.push_back({std::move(text), score});
  }
  scanner.end();
  std::optional<int64_t> unk;
  if (const auto it = config.find("unk_id"); it != config.end() && !it->is_null())
    unk = json_get(config, "unk_id", int64_t{0});
  return std::make_unique<Unigram>(pieces, unk, json_get(config, "byte_fallback", false));
}

std::string model_type(const Fields& fields, const std::string& what) {
  check(fields.contains("vocab"), "{}: the model has no vocab", what);
  const Json type = field(fields, "type", what);
  if (type.is_string()) return type.get<std::string>();
  // Old files: told apart by their members.
  if (fields.contains("merges")) return "BPE";
  if (fields.at("vocab").substr(0, 1) == "[") return "Unigram";
  return fields.contains("max_input_chars_per_word") ? "WordPiece" : "WordLevel";
}

std::unique_ptr<TokenModel> read_model(const Fields& fields, bool byte_level,
                                       const std::string& what) {
  const std::string type = model_type(fields, what);
  if (type == "BPE") return read_bpe(fields, byte_level, what);
  if (type == "Unigram") return read_unigram(fields, what);
  const Json config = small_fields(fields, what);
  if (type == "WordPiece") {
    return std::make_unique<WordPiece>(
        read_table(fields.at("vocab"), what), json_get(config, "unk_token", std::string("[UNK]")),
        json_get(config, "continuing_subword_prefix", std::string("##")),
        json_get(config, "max_input_chars_per_word", int64_t{100}));
  }
  if (type == "WordLevel") {
    return std::make_unique<WordLevel>(read_table(fields.at("vocab"), what),
                                       json_get(config, "unk_token", std::string("<unk>")));
  }
  fail("{}: model type '{}' is not supported", what, type);
}

int32_t checked_id(const Json& value, const std::string& what) {
  check(value.is_number_integer() && value >= 0 && value <= TokenTable::kMaxId, "{}: bad id {}",
        what, value.dump());
  return value.get<int32_t>();
}

void read_added_tokens(const Json& list, const std::string& what, TokenizerParts& parts) {
  if (list.is_null()) return;
  check(list.is_array(), "{}: added_tokens is not a list", what);
  for (const Json& item : list) {
    check(item.is_object() && item.contains("content"), "{}: an added token has no content: {}",
          what, item.dump());
    // Which id it gets follows from the vocabulary and the order, here as in Hugging Face's code.
    checked_id(item.value("id", Json()), what + ": added_tokens");
    AddedToken token;
    token.content = json_get(item, "content", std::string());
    token.special = json_get(item, "special", false);
    token.single_word = json_get(item, "single_word", false);
    token.lstrip = json_get(item, "lstrip", false);
    token.rstrip = json_get(item, "rstrip", false);
    token.normalized = json_get(item, "normalized", !token.special);
    parts.add_token(std::move(token));
  }
}

// Only what a single text gets: ids before and after it.
void read_post_processor(const Json& config, const std::string& what, TokenizerParts& parts) {
  if (config.is_null()) return;
  check(config.is_object(), "{}: post_processor is not an object", what);
  const auto type = json_get(config, "type", std::string());
  if (type == "ByteLevel") return;
  if (type == "Sequence") {
    for (const Json& step : config.value("processors", Json::array()))
      read_post_processor(step, what, parts);
    return;
  }
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    auto id = [&](const char* key) {
      const Json pair = config.value(key, Json());
      check(pair.is_array() && pair.size() == 2, "{}: post_processor: {} is not [token, id]", what,
            key);
      return checked_id(pair[1], what + ": post_processor");
    };
    parts.prefix.insert(parts.prefix.begin(), id("cls"));
    parts.suffix.push_back(id("sep"));
    return;
  }
  check(type == "TemplateProcessing", "{}: post_processor type '{}' is not supported", what, type);
  const Json tokens = config.value("special_tokens", Json::object());
  std::vector<int32_t> before, after;
  int texts = 0;
  for (const Json& item : config.value("single", Json::array())) {
    if (item.contains("Sequence")) {
      ++texts;
      continue;
    }
    check(item.contains("SpecialToken"), "{}: post_processor: unknown template item", what);
    const auto name = json_get(item["SpecialToken"], "id", std::string());
    check(tokens.is_object() && tokens.contains(name),
          "{}: post_processor: special token '{}' is not defined", what, name);
    for (const Json& id : tokens[name].value("ids", Json::array())) {
      (texts == 0 ? before : after).push_back(checked_id(id, what + ": post_processor"));
    }
  }
  check(texts == 1, "{}: post_processor: the template has the text {} times", what, texts);
  parts.prefix.insert(parts.prefix.begin(), before.begin(), before.end());
  parts.suffix.insert(parts.suffix.end(), after.begin(), after.end());
}

}  // namespace

TokenizerParts parse_tokenizer_json(std::string_view text, const std::string& what) {
  check(unicode::valid_prefix(text) == text.size(), "{}: not valid UTF-8", what);
  const Fields fields = read_fields(text, what);
  check(fields.contains("model"), "{}: no model", what);
  try {
    TokenizerParts parts;
    bool byte_level = false;
    parts.normalizer = make_normalizer(field(fields, "normalizer", what));
    const Json pretokenizer = field(fields, "pre_tokenizer", what);
    const Fields model = read_fields(fields.at("model"), what + ": model");
    // With these options a BPE model must see the alphabet's characters.
    const Json options = small_fields(model, what);
    const bool takes_bytes =
        model_type(model, what) == "BPE" && !json_get(options, "byte_fallback", false) &&
        json_get(options, "continuing_subword_prefix", std::string()).empty() &&
        json_get(options, "end_of_word_suffix", std::string()).empty();
    parts.pretokenizer = make_pretokenizer(pretokenizer, takes_bytes ? &byte_level : nullptr);
    parts.model = read_model(model, byte_level, what);
    parts.decoder = make_token_decoder(field(fields, "decoder", what));
    read_added_tokens(field(fields, "added_tokens", what), what, parts);
    read_post_processor(field(fields, "post_processor", what), what, parts);
    return parts;
  } catch (const nlohmann::json::exception& e) {
    fail("{}: {}", what, e.what());
  } catch (const Error& e) {
    if (std::string_view(e.what()).substr(0, what.size()) == what) throw;
    fail("{}: {}", what, e.what());
  }
}

}  // namespace reft
