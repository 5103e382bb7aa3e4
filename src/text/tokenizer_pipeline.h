// The tokenizer made of parts; the loaders fill in the parts.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/added_tokens.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/token_decoder.h"
#include "text/token_model.h"
#include "text/tokenizer.h"

namespace reft {

struct TokenizerParts {
  std::unique_ptr<Normalizer> normalizer;      // may be null
  std::unique_ptr<PreTokenizer> pretokenizer;  // may be null
  std::unique_ptr<TokenModel> model;
  AddedTokens added;
  std::unique_ptr<TokenDecoder> decoder;
  std::vector<int32_t> prefix, suffix;  // around the ids with add_special_tokens
  // SentencePiece's dummy prefix: stands before the normalised text at the start and behind special
  // tokens.
  std::string section_prefix;
  std::optional<int32_t> bos, eos, pad;
  std::string chat_template;

  // Id of an added token or vocabulary entry, -1 when absent.
  int32_t find(std::string_view token) const;
  // Adds a token under the vocabulary's id for its content, else under the next free one. Throws
  // Error when the ids run out.
  void add_token(AddedToken token);
};

// Checks that the parts fit together. Throws Error otherwise.
std::unique_ptr<Tokenizer> make_tokenizer(TokenizerParts parts);

// What stands beside the tokenizer's main file: tokenizer_config.json, special_tokens_map.json,
// chat_template.jinja.
struct TokenizerConfig {
  std::string path;  // of tokenizer_config.json; empty when absent
  Json config = Json::object();
  Json special_map = Json::object();
  std::string chat_template;

  // The text of "bos_token", "eos_token" …; empty when not defined.
  std::string token(const char* key) const;
};
// An unreadable or malformed file is an Error that names it; an absent one is not.
TokenizerConfig read_tokenizer_config(const std::string& folder);
// Sets bos, eos, pad, the chat template and, for the classes whose Python code does so, prefix and
// suffix; takes over flags of "added_tokens_decoder".
void apply_tokenizer_config(const TokenizerConfig& config, TokenizerParts& parts);

TokenizerParts parse_tokenizer_json(std::string_view text, const std::string& what);
TokenizerParts load_tiktoken(const std::string& path, const TokenizerConfig& config);

// A SentencePiece vocabulary, from its own file or from GGUF.
struct SentencePieceSpec {
  // Numbered as in both formats.
  enum Type : int64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  struct Piece {
    std::string text;
    double score = 0;
    int64_t type = kNormal;
  };
  std::vector<Piece> pieces;
  bool bpe = true;  // else unigram
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = false;
  bool escape_whitespaces = true;
  // User-defined pieces are a part of the text around them, as in the library itself, which matters
  // to white space beside them; else the text is cut at them first.
  bool user_defined_in_text = false;
  std::string charsmap;  // empty: none
};
// Everything but bos, eos, prefix and suffix.
TokenizerParts make_sentencepiece(SentencePieceSpec spec, const std::string& what);
TokenizerParts parse_sentencepiece(std::string_view bytes, const std::string& what);
// True when the file starts like a SentencePiece model rather than a list of tiktoken ranks.
bool looks_like_sentencepiece(std::string_view bytes);

}  // namespace reft
