#include "text/scanner.h"

#include <algorithm>

#include "base/check.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace reft {

namespace patterns {
const std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kDeepseekDigits = R"(\p{N}{1,3})";
const std::string_view kDeepseekCjk = "[一-龥\u3040-ゟ゠-ヿ]+";
const std::string_view kDeepseekText =
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
const std::string_view kSmollm = R"(\p{N})";
}  // namespace patterns

namespace {

using namespace unicode;

// One character and where it ends.
struct Char {
  uint32_t code;
  uint16_t flags;
  const char* end;
};

struct Text {
  const char* end;
  const uint16_t* table = flag_table().flags.data();

  Char at(const char* p) const {
    Char c;
    c.code = unicode::next(p);
    c.flags = table[c.code];
    c.end = p;
    return c;
  }
  // Behind the run of characters with any of `bits` that starts at p.
  const char* run_of(const char* p, uint16_t bits) const {
    while (p < end) {
      const Char c = at(p);
      if (!(c.flags & bits)) break;
      p = c.end;
    }
    return p;
  }
  const char* run_without(const char* p, uint16_t bits) const {
    while (p < end) {
      const Char c = at(p);
      if (c.flags & bits) break;
      p = c.end;
    }
    return p;
  }
};

constexpr const char* kNone = nullptr;

// (?i:'s|'t|'re|'ve|'m|'ll|'d) at p, or the case-sensitive one.
const char* contraction(const char* p, const char* end, bool fold) {
  if (end - p < 2 || *p != '\'') return kNone;
  auto lower = [&](char c) { return fold && c >= 'A' && c <= 'Z' ? char(c + 32) : c; };
  const char a = lower(p[1]);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return p + 2;
  if (end - p < 3) return kNone;
  const char b = lower(p[2]);
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return p + 3;
  if (fold && p[1] == '\xC5' && p[2] == '\xBF') return p + 3;  // ſ folds to s
  return kNone;
}

// The three whitespace alternatives; the first only with `newlines`: \s*[\r\n]+|\s+(?!\S)|\s+
const char* whitespace(const Text& text, const char* p, bool newlines) {
  const char* q = p;
  const char* last = p;  // start of the last character of the run
  const char* newline = kNone;
  while (q < text.end) {
    const Char c = text.at(q);
    if (!(c.flags & kWhite)) break;
    if (c.flags & kNewline) newline = c.end;
    last = q;
    q = c.end;
  }
  if (q == p) return kNone;
  if (newlines && newline != kNone) return newline;
  if (q == text.end || last == p) return q;
  return last;
}

const char* digits(const Text& text, const char* p, int most) {
  const char* q = p;
  for (int i = 0; i < most && q < text.end; ++i) {
    const Char c = text.at(q);
    if (!(c.flags & kNumber)) break;
    q = c.end;
  }
  return q == p ? kNone : q;
}

//  ?[^ excluded]+[\r\n]*, the tail with '/' too when `slash`.
const char* other(const Text& text, const char* p, const Char& first, uint16_t excluded,
                  bool slash) {
  const char* q = p;
  if (first.code == ' ' && first.end < text.end && !(text.at(first.end).flags & excluded)) {
    q = first.end;
  } else if (first.flags & excluded) {
    return kNone;
  }
  q = text.run_without(q, excluded);
  while (q < text.end && (*q == '\r' || *q == '\n' || (slash && *q == '/'))) ++q;
  return q;
}

template <class Rule>
class Scanner final : public Matcher {
 public:
  explicit Scanner(Rule rule) : rule_(rule) {}
  bool find(std::string_view view, size_t start, size_t& begin, size_t& end) const override {
    const Text text{view.data() + view.size()};
    const char* p = view.data() + start;
    while (p < text.end) {
      const Char first = text.at(p);
      if (const char* q = rule_.match(text, p, first)) {
        begin = size_t(p - view.data());
        end = size_t(q - view.data());
        return true;
      }
      p = first.end;
    }
    return false;
  }

 private:
  Rule rule_;
};

struct Gpt2Rule {
  const char* match(const Text& text, const char* p, const Char& first) const {
    if (first.code == '\'') {
      if (const char* q = contraction(p, text.end, false)) return q;
    }
    const Char body = first.code == ' ' && first.end < text.end ? text.at(first.end) : first;
    if (body.flags & kLetter) return text.run_of(body.end, kLetter);
    if (body.flags & kNumber) return text.run_of(body.end, kNumber);
    constexpr uint16_t kNot = kWhite | kLetter | kNumber;
    if (!(body.flags & kNot)) return text.run_without(body.end, kNot);
    return whitespace(text, p, false);
  }
};

// Llama 3, Qwen 2 and 3 and their like.
struct Gpt4Rule {
  int max_digits;
  uint16_t word;  // kLetter, with kMark in Qwen 3.5
  const char* match(const Text& text, const char* p, const Char& first) const {
    if (first.code == '\'') {
      if (const char* q = contraction(p, text.end, true)) return q;
    }
    if (first.flags & word) return text.run_of(first.end, word);
    if (!(first.flags & (kNewline | kLetter | kNumber)) && first.end < text.end) {
      const Char second = text.at(first.end);
      if (second.flags & word) return text.run_of(second.end, word);
    }
    if (first.flags & kNumber) return digits(text, p, max_digits);
    if (const char* q = other(text, p, first, kWhite | kNumber | word, false)) return q;
    return whitespace(text, p, true);
  }
};

// GPT-4o, GPT-OSS; Mistral's Tekken without contractions and with single digits.
struct O200kRule {
  int max_digits;
  bool contractions;

  static constexpr uint16_t kHead = kUpperLike | kCaseless | kMark;
  static constexpr uint16_t kTail = kLower | kCaseless | kMark;

  // [head]*[tail]+ at p
  const char* mixed(const Text& text, const char* p) const {
    const char* q = p;
    const char* last_tail =
        kNone;  // end of the last character of the head run that the tail could take
    while (q < text.end) {
      const Char c = text.at(q);
      if (!(c.flags & kHead)) {
        if (c.flags & kTail) return text.run_of(c.end, kTail);
        break;
      }
      q = c.end;
      if (c.flags & kTail) last_tail = q;
    }
    return last_tail;
  }
  // [head]+[tail]* at p, when mixed() failed there
  const char* upper(const Text& text, const char* p) const {
    const char* q = text.run_of(p, kHead);
    return q == p ? kNone : text.run_of(q, kTail);
  }
  const char* with_contraction(const Text& text, const char* q) const {
    if (!contractions) return q;
    const char* more = contraction(q, text.end, true);
    return more ? more : q;
  }
  const char* match(const Text& text, const char* p, const Char& first) const {
    const bool prefix = !(first.flags & (kNewline | kLetter | kNumber));
    if (prefix || (first.flags & kLetter)) {
      if (prefix) {
        if (const char* q = mixed(text, first.end)) return with_contraction(text, q);
      }
      if (const char* q = mixed(text, p)) return with_contraction(text, q);
      if (prefix) {
        if (const char* q = upper(text, first.end)) return with_contraction(text, q);
      }
      if (const char* q = upper(text, p)) return with_contraction(text, q);
    }
    if (first.flags & kNumber) return digits(text, p, max_digits);
    if (const char* q = other(text, p, first, kWhite | kLetter | kNumber, true)) return q;
    return whitespace(text, p, true);
  }
};

struct DigitsRule {
  int most;
  const char* match(const Text& text, const char* p, const Char&) const {
    return digits(text, p, most);
  }
};

struct DeepseekCjkRule {
  static bool in(uint32_t c) {
    return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
  }
  const char* match(const Text& text, const char* p, const Char& first) const {
    if (!in(first.code)) return kNone;
    for (p = first.end; p < text.end;) {
      const Char c = text.at(p);
      if (!in(c.code)) break;
      p = c.end;
    }
    return p;
  }
};

struct DeepseekTextRule {
  static bool ascii_letter(char c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }
  const char* match(const Text& text, const char* p, const Char& first) const {
    if (first.code < 128 && (first.flags & (kPunct | kSymbol)) && first.end < text.end &&
        ascii_letter(*first.end)) {
      p = first.end;
      while (p < text.end && ascii_letter(*p)) ++p;
      return p;
    }
    constexpr uint16_t kWord = kLetter | kMark;
    if (first.flags & kWord) return text.run_of(first.end, kWord);
    if (!(first.flags & (kNewline | kPunct | kSymbol)) && first.end < text.end) {
      const Char second = text.at(first.end);
      if (second.flags & kWord) return text.run_of(second.end, kWord);
    }
    constexpr uint16_t kMarks = kPunct | kSymbol;
    const char* q = first.code == ' ' ? first.end : p;
    const char* stop = text.run_of(q, kMarks);
    if (stop != q) {
      while (stop < text.end && (*stop == '\r' || *stop == '\n')) ++stop;
      return stop;
    }
    return whitespace(text, p, true);
  }
};

template <class Rule>
std::unique_ptr<Matcher> scanner(Rule rule) {
  return std::make_unique<Scanner<Rule>>(rule);
}

class RegexMatcher final : public Matcher {
 public:
  explicit RegexMatcher(const std::string& pattern) : regex_(pattern) {}
  bool find(std::string_view text, size_t start, size_t& begin, size_t& end) const override {
    return regex_.find(text, start, begin, end);
  }

 private:
  Regex regex_;
};

class LiteralMatcher final : public Matcher {
 public:
  explicit LiteralMatcher(std::string text) : text_(std::move(text)) {}
  bool find(std::string_view text, size_t start, size_t& begin, size_t& end) const override {
    begin = text.find(text_, start);
    if (begin == std::string_view::npos) return false;
    end = begin + text_.size();
    return true;
  }

 private:
  std::string text_;
};

}  // namespace

std::unique_ptr<Matcher> make_scanner(std::string_view pattern) {
  if (pattern == patterns::kGpt2) return scanner(Gpt2Rule{});
  if (pattern == patterns::kLlama3) return scanner(Gpt4Rule{3, kLetter});
  if (pattern == patterns::kQwen2) return scanner(Gpt4Rule{1, kLetter});
  if (pattern == patterns::kQwen35) return scanner(Gpt4Rule{1, kLetter | kMark});
  if (pattern == patterns::kO200k) return scanner(O200kRule{3, true});
  if (pattern == patterns::kTekken) return scanner(O200kRule{1, false});
  if (pattern == patterns::kDeepseekDigits) return scanner(DigitsRule{3});
  if (pattern == patterns::kSmollm) return scanner(DigitsRule{1});
  if (pattern == patterns::kDeepseekCjk) return scanner(DeepseekCjkRule{});
  if (pattern == patterns::kDeepseekText) return scanner(DeepseekTextRule{});
  return nullptr;
}

std::unique_ptr<Matcher> make_regex_matcher(const std::string& pattern) {
  return std::make_unique<RegexMatcher>(pattern);
}

std::unique_ptr<Matcher> make_matcher(const std::string& pattern) {
  auto fast = make_scanner(pattern);
  return fast ? std::move(fast) : make_regex_matcher(pattern);
}

std::unique_ptr<Matcher> make_literal_matcher(std::string text) {
  check(!text.empty(), "empty pattern");
  return std::make_unique<LiteralMatcher>(std::move(text));
}

}  // namespace reft
