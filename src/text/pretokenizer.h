// Cuts normalised text into the pieces that the model encodes one by one, as tokenizer.json
// describes it. Immutable, thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace reft {

// Text and its pieces, in order. A step may cut pieces and replace the text.
struct Pieces {
  struct Span {
    uint32_t begin, end;
  };
  std::string_view text;
  std::string storage;  // what `text` refers to once a step has changed it
  std::vector<Span> spans;
  bool at_start = false;  // the first piece begins where the whole input begins

  std::string_view piece(const Span& s) const { return text.substr(s.begin, s.end - s.begin); }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

// What becomes of the parts that a pattern matches.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// From the "pre_tokenizer" value of tokenizer.json; null for none. When the last step maps bytes to
// the byte-level alphabet and `byte_level` is not null, that mapping is left out and *byte_level
// set: the model takes bytes. Throws Error that names an unknown type.
std::unique_ptr<PreTokenizer> make_pretokenizer(const Json& config, bool* byte_level);
// Splits by each pattern in turn, matches isolated.
std::unique_ptr<PreTokenizer> make_split_sequence(const std::vector<std::string>& patterns);

}  // namespace reft
