// Finds stop strings in text that arrives piece by piece. The result does not depend on where the
// pieces end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace reft {

// One Knuth-Morris-Pratt automaton per stop string. The match that is complete first ends the text;
// of several that are complete with the same byte the longest counts.
class StopMatcher {
 public:
  // `include`: the stop string stays in the text.
  StopMatcher(const std::vector<std::string>& stops, bool include);

  struct Piece {
    std::string text;      // what may be shown now
    int32_t matched = -1;  // index of the stop string that ended the text
  };
  // Adds text. Holds back what may become a stop string (unless those are included). With `look`
  // false a match that is completed by this text does not count. Nothing may be added after a
  // match.
  Piece add(std::string_view text, bool look = true);
  // What was held back, when the text ends without a stop string.
  std::string flush();

 private:
  struct Automaton {
    std::string word;
    std::vector<uint32_t> fallback;  // length of the longest proper border of word[0, i]
    uint32_t state = 0;              // bytes of `word` that the text ends with
  };
  std::vector<Automaton> automata_;
  bool include_;
  std::string held_;
};

}  // namespace reft
