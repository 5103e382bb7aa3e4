#include "engine/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace reft {

StopMatcher::StopMatcher(const std::vector<std::string>& stops, bool include) : include_(include) {
  for (const std::string& word : stops) {
    Automaton a{word, std::vector<uint32_t>(word.size(), 0), 0};
    uint32_t border = 0;
    for (size_t i = 1; i < word.size(); ++i) {
      while (border > 0 && word[i] != word[border]) border = a.fallback[border - 1];
      if (word[i] == word[border]) ++border;
      a.fallback[i] = border;
    }
    automata_.push_back(std::move(a));
  }
}

StopMatcher::Piece StopMatcher::add(std::string_view text, bool look) {
  Piece piece;
  if (automata_.empty()) {
    piece.text = text;
    return piece;
  }
  std::string& shown = piece.text;
  shown = std::move(held_);
  held_.clear();
  size_t longest_state = 0;
  for (char c : text) {
    shown.push_back(c);
    longest_state = 0;
    for (size_t i = 0; i < automata_.size(); ++i) {
      Automaton& a = automata_[i];
      while (a.state > 0 && a.word[a.state] != c) a.state = a.fallback[a.state - 1];
      if (a.word[a.state] == c) ++a.state;
      if (a.state == a.word.size()) {
        if (look && (piece.matched < 0 ||
                     a.word.size() > automata_[static_cast<size_t>(piece.matched)].word.size())) {
          piece.matched = static_cast<int32_t>(i);
        }
        a.state = a.fallback[a.state - 1];
      }
      longest_state = std::max<size_t>(longest_state, a.state);
    }
    if (piece.matched >= 0) {
      if (!include_)
        shown.resize(shown.size() - automata_[static_cast<size_t>(piece.matched)].word.size());
      return piece;
    }
  }
  if (text.empty()) {
    for (const Automaton& a : automata_) longest_state = std::max<size_t>(longest_state, a.state);
  }
  if (!include_ && longest_state > 0) {
    held_ = shown.substr(shown.size() - longest_state);
    shown.resize(shown.size() - longest_state);
  }
  return piece;
}

std::string StopMatcher::flush() { return std::exchange(held_, {}); }

}  // namespace reft
