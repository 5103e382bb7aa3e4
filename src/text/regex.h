// Regular expressions of tokenizer files. They are written for Oniguruma (Ruby syntax); this class
// translates them to PCRE2, with character classes of text/unicode.h. Immutable, thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace reft {

class Regex {
 public:
  // Throws Error that quotes the pattern and names what is not supported or wrong in it.
  explicit Regex(const std::string& pattern);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Leftmost match at or after byte `start` of valid UTF-8. False when there is none. Throws Error
  // when the match needs more steps than the limit allows (a pattern that backtracks without end).
  bool find(std::string_view text, size_t start, size_t& begin, size_t& end) const;
  const std::string& pattern() const { return pattern_; }

  // The pattern in PCRE2's syntax (for tests).
  static std::string translate(const std::string& pattern);

 private:
  struct Impl;
  std::string pattern_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace reft
