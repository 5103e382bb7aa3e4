// Hand-written scanners for the pre-tokenizer regexes that most models use; each equals its regex
// exactly.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace reft {

// Something that finds the next match in a text: a scanner or a Regex. Immutable, thread-safe.
class Matcher {
 public:
  virtual ~Matcher() = default;
  // Leftmost match at or after byte `start` of valid UTF-8; false when there is none.
  virtual bool find(std::string_view text, size_t start, size_t& begin, size_t& end) const = 0;
};

// Calls found(begin, end) for the matches of a text in order; an empty match right behind the one
// before is none.
template <class F>
void for_each_match(const Matcher& matcher, std::string_view text, F&& found) {
  size_t from = 0, last = std::string_view::npos, begin = 0, end = 0;
  while (from <= text.size() && matcher.find(text, from, begin, end)) {
    if (begin == end && last == end) {
      if (++from > text.size()) return;
      while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) ++from;
      continue;
    }
    from = last = end;
    found(begin, end);
  }
}

// A scanner when `pattern` is a known one, a compiled Regex otherwise. Throws Error for a bad
// pattern.
std::unique_ptr<Matcher> make_matcher(const std::string& pattern);
// The scanner only; null when the pattern is not a known one.
std::unique_ptr<Matcher> make_scanner(std::string_view pattern);
// Always the compiled regex.
std::unique_ptr<Matcher> make_regex_matcher(const std::string& pattern);
// Matches a fixed string (not empty).
std::unique_ptr<Matcher> make_literal_matcher(std::string text);

// The patterns that have scanners, by model.
namespace patterns {
extern const std::string_view kGpt2, kLlama3, kQwen2, kQwen35, kO200k, kTekken, kDeepseekDigits,
    kDeepseekCjk, kDeepseekText, kSmollm;
}  // namespace patterns

}  // namespace reft
