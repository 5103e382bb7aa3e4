// Text normalisation before tokenization, as tokenizer.json and SentencePiece describe it.
// Immutable, thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace reft {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // Writes the normalised text to `out` and returns true, or returns false when the text stays as
  // it is (`out` is then unspecified). `cut_start` becomes true when characters at the very start
  // were removed.
  virtual bool apply(std::string_view text, std::string& out, bool& cut_start) const = 0;
  std::string operator()(std::string_view text) const {
    std::string out;
    bool cut = false;
    return apply(text, out, cut) ? out : std::string(text);
  }
};

// From the "normalizer" value of tokenizer.json; null for none. Throws Error that names an unknown
// type.
std::unique_ptr<Normalizer> make_normalizer(const Json& config);
std::unique_ptr<Normalizer> make_sequence(std::vector<std::unique_ptr<Normalizer>> steps);
std::unique_ptr<Normalizer> make_replace(std::string from, std::string to);

// SentencePiece's compiled character map: a double-array trie over UTF-8 and the replacements.
class Charsmap {
 public:
  // Throws Error when the blob is damaged.
  explicit Charsmap(std::string_view blob);
  // The replacement of the shortest or longest key that `text` starts with; `length` are the key's
  // bytes. False when there is none.
  bool find(std::string_view text, bool longest, size_t& length,
            std::string_view& replacement) const;

 private:
  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace reft
