// Tokens that are cut out of the text before the model sees it: special tokens, <think>,
// <tool_call> and the like.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/byte_trie.h"

namespace reft {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      // left out when decoding with skip_special_tokens
  bool single_word = false;  // only where no word character stands beside it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space behind it along
  bool normalized = false;   // looked for in the normalised text
};

class AddedTokens {
 public:
  // A stretch of text, or an added token (id >= 0).
  struct Section {
    std::string_view text;
    int32_t id = -1;
  };

  // A later token with the same id replaces the earlier one; the normaliser is applied to the
  // content of normalised tokens. Call finish() after the last.
  void add(AddedToken token);
  void finish(const std::function<std::string(std::string_view)>& normalize);

  // Cuts `text` at the tokens that are looked for before (false) or after (true) normalisation.
  // Sections are in order; those of text are never empty.
  void split(std::string_view text, bool normalized, bool parse_special,
             std::vector<Section>& out) const;
  bool any(bool normalized) const { return !trie_[normalized].empty(); }

  const AddedToken* by_id(int32_t id) const;
  const AddedToken* by_content(std::string_view content) const;
  bool is_special_text(std::string_view content) const;
  // What decoding starts from: the content as the normaliser changed it.
  const std::string& decoder_text(const AddedToken& token) const;
  const std::vector<AddedToken>& all() const { return tokens_; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };
  std::vector<AddedToken> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  std::unordered_map<std::string, size_t, Hash, std::equal_to<>> by_content_;
  std::unordered_map<int32_t, std::string> normalized_text_;
  ByteTrie trie_[2];  // values: index into tokens_
};

}  // namespace reft
