#include "text/regex.h"

#include <pcre2.h>

#include <optional>
#include <vector>

#include "base/check.h"
#include "text/unicode.h"

namespace reft {
namespace {

using unicode::Ranges;

constexpr size_t kMaxPattern = 64 * 1024;
constexpr size_t kMaxTranslated = 4 * 1024 * 1024;
constexpr int kMaxNesting = 200;

std::string escaped(uint32_t c) { return fmt::format("\\x{{{:x}}}", c); }

std::string class_of(const Ranges& ranges) {
  if (ranges.empty()) return "(?!)";
  std::string out = "[";
  for (const auto& [first, last] : ranges) {
    out += escaped(first);
    if (last != first) out += "-" + escaped(last);
  }
  return out + "]";
}

class Translator {
 public:
  explicit Translator(const std::string& pattern) : in_(pattern) {}

  std::string run() {
    check(in_.size() <= kMaxPattern, "regex of {} bytes is longer than {}", in_.size(),
          kMaxPattern);
    check(unicode::valid_prefix(in_) == in_.size(), "regex is not valid UTF-8");
    while (i_ < in_.size()) {
      step();
      check(out_.size() <= kMaxTranslated, "regex '{}…' is too large", in_.substr(0, 100));
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void bad(const char* what) const {
    fail("regex '{}': {} at byte {}", in_, what, i_);
  }

  // Classes are folded here, so PCRE2 must not do it again.
  std::string set_text(const Ranges& ranges) const {
    return fold_ ? "(?-i:" + class_of(ranges) + ")" : class_of(ranges);
  }

  void atom(const std::string& text) {
    atom_ = out_.size();
    out_ += text;
  }

  void step() {
    const char c = in_[i_];
    switch (c) {
      case '\\':
        escape();
        return;
      case '[':
        atom(set_text(char_class(0)));
        return;
      case '(':
        open_group();
        return;
      case ')':
        out_ += c;
        ++i_;
        if (!groups_.empty()) {
          atom_ = groups_.back().start;
          fold_ = groups_.back().fold;
          groups_.pop_back();
        }
        return;
      case '{':
        interval();
        return;
      case '*':
      case '+':
      case '?':
        out_ += c;
        ++i_;
        if (i_ < in_.size() && (in_[i_] == '+' || in_[i_] == '?')) out_ += in_[i_++];
        return;
      case '|':
        out_ += c;
        ++i_;
        atom_.reset();
        return;
      default: {
        const size_t n = unicode::length(c);
        atom(in_.substr(i_, n));
        i_ += n;
      }
    }
  }

  // {n}, {n,}, {n,m}, {,m}; a '+' after it repeats again here, where PCRE2 would make it
  // possessive.
  void interval() {
    size_t j = i_ + 1;
    std::string low, high;
    bool comma = false;
    while (j < in_.size() && in_[j] >= '0' && in_[j] <= '9') low += in_[j++];
    if (j < in_.size() && in_[j] == ',') {
      comma = true;
      ++j;
      while (j < in_.size() && in_[j] >= '0' && in_[j] <= '9') high += in_[j++];
    }
    if (j >= in_.size() || in_[j] != '}' || (low.empty() && high.empty()) || !atom_) {
      atom("\\{");  // a plain brace
      ++i_;
      return;
    }
    i_ = j + 1;
    out_ += "{" + (low.empty() ? "0" : low) + (comma ? "," + high : "") + "}";
    if (i_ < in_.size() && in_[i_] == '+') {
      out_.insert(*atom_, "(?:");
      out_ += ")+";
      ++i_;
    } else if (i_ < in_.size() && in_[i_] == '?') {
      if (comma) out_ += '?';  // {n}? is a reluctant {0,n} in Ruby; nobody writes it
      ++i_;
    }
  }

  void open_group() {
    check(groups_.size() < kMaxNesting, "regex '{}': nested deeper than {}", in_, kMaxNesting);
    groups_.push_back({out_.size(), fold_});
    auto starts = [&](std::string_view s) { return in_.compare(i_, s.size(), s) == 0; };
    for (std::string_view s : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (starts(s)) {
        out_ += s;
        i_ += s.size();
        atom_.reset();
        return;
      }
    }
    if (starts("(?#")) {
      groups_.pop_back();
      while (i_ < in_.size() && in_[i_] != ')') ++i_;
      ++i_;
      return;
    }
    if (!starts("(?")) {
      out_ += "(?:";  // nothing here uses captures
      ++i_;
      atom_.reset();
      return;
    }
    option_group();
  }

  // (?imx-imx) and (?imx-imx:…): Ruby's m is PCRE2's s.
  void option_group() {
    if (in_.compare(i_, 3, "(?<") == 0 || in_.compare(i_, 3, "(?P") == 0) {
      const size_t close = in_.find('>', i_);
      if (close == std::string::npos) bad("group name without end");
      out_ += "(?:";
      i_ = close + 1;
      return;
    }
    size_t j = i_ + 2;
    std::string flags;
    bool on = true;
    while (j < in_.size() && in_[j] != ')' && in_[j] != ':') {
      const char c = in_[j++];
      if (c == '-') {
        on = false;
      } else if (c == 'i') {
        fold_ = on;
      } else if (c != 'm') {
        bad("unsupported group option");
      }
      flags += c == 'm' ? 's' : c;
    }
    if (j >= in_.size()) bad("group without end");
    out_ += "(?" + flags + in_[j];
    if (in_[j] == ')') groups_.pop_back();  // lasts to the end of the enclosing group
    i_ = j + 1;
    atom_.reset();
  }

  // Outside of brackets \w also holds the superscripts and fractions of Latin-1.
  static Ranges wide_word() {
    return unicode::unite(unicode::word_ranges(), {{0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}});
  }

  // \b and \B by that class.
  void word_border(bool negate) {
    const std::string word = class_of(wide_word());
    const std::string inside = "(?<=" + word + ")", outside = "(?<!" + word + ")";
    const std::string ahead = "(?=" + word + ")", not_ahead = "(?!" + word + ")";
    out_ += "(?:" + inside + (negate ? ahead : not_ahead) + "|" + outside +
            (negate ? not_ahead : ahead) + ")";
    i_ += 2;
    atom_.reset();
  }

  void escape() {
    if (i_ + 1 >= in_.size()) bad("pattern ends in a backslash");
    const char c = in_[i_ + 1];
    if (auto ranges = class_escape(false)) {
      atom(set_text(*ranges));
      return;
    }
    switch (c) {
      case 'b':
      case 'B':
        word_border(c == 'B');
        return;
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
        out_ += '\\';
        out_ += c;
        i_ += 2;
        atom_.reset();
        return;
      case 'R':
      case 'X':
        atom(std::string("\\") + c);
        i_ += 2;
        return;
      case 'K':
      case 'k':
      case 'g':
      case '1':
      case '2':
      case '3':
      case '4':
      case '5':
      case '6':
      case '7':
      case '8':
      case '9':
        bad("references and \\K are not supported");
      default:
        atom(literal(char_escape()));
    }
  }

  std::string literal(uint32_t c) const {
    return (c | 0x20) >= 'a' && (c | 0x20) <= 'z' && c < 128 ? std::string(1, char(c)) : escaped(c);
  }

  // \p{…}, \P{…}, \s, \w, \d, \h and their negations, with i_ moved behind them; nothing for other
  // escapes.
  std::optional<Ranges> class_escape(bool in_class) {
    const char c = in_[i_ + 1];
    Ranges out;
    bool negate = false;
    switch (c) {
      case 'p':
      case 'P': {
        size_t close;
        std::string name;
        if (i_ + 2 < in_.size() && in_[i_ + 2] == '{') {
          close = in_.find('}', i_);
          if (close == std::string::npos) bad("property without end");
          name = in_.substr(i_ + 3, close - i_ - 3);
        } else if (i_ + 2 < in_.size()) {
          name = in_.substr(i_ + 2, 1);
          close = i_ + 2;
        } else {
          bad("property without name");
        }
        negate = c == 'P';
        if (!name.empty() && name[0] == '^') {
          negate = !negate;
          name.erase(0, 1);
        }
        if (!unicode::property(name, out)) bad("unknown character property");
        i_ = close + 1;
        return negate ? unicode::complement(out) : out;
      }
      case 's':
      case 'S':
        out = unicode::space_ranges();
        negate = c == 'S';
        break;
      case 'w':
      case 'W':
        out = in_class ? unicode::word_ranges() : wide_word();
        negate = c == 'W';
        break;
      case 'd':
      case 'D':
        unicode::property("Nd", out);
        negate = c == 'D';
        break;
      case 'h':
      case 'H':
        out = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
        negate = c == 'H';
        break;
      default:
        return std::nullopt;
    }
    i_ += 2;
    return negate ? unicode::complement(out) : out;
  }

  // A backslash escape that stands for one character.
  uint32_t char_escape() {
    const char c = in_[i_ + 1];
    i_ += 2;
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'e':
        return 0x1B;
      case '0':
        return 0;
      case 'x':
      case 'u': {
        size_t digits = c == 'x' ? 2 : 4;
        const bool braces = c == 'x' && i_ < in_.size() && in_[i_] == '{';
        if (braces) {
          ++i_;
          digits = 8;
        }
        uint32_t value = 0;
        size_t n = 0;
        while (n < digits && i_ < in_.size() &&
               std::isxdigit(static_cast<unsigned char>(in_[i_]))) {
          const char d = in_[i_++];
          value = value * 16 + uint32_t(d <= '9' ? d - '0' : (d | 0x20) - 'a' + 10);
          ++n;
        }
        if (n == 0 || value > unicode::kMaxCodePoint) bad("bad hexadecimal escape");
        if (braces) {
          if (i_ >= in_.size() || in_[i_] != '}') bad("bad hexadecimal escape");
          ++i_;
        }
        return value;
      }
      default: {
        if (std::isalnum(static_cast<unsigned char>(c))) bad("unsupported escape");
        const char* p = in_.data() + i_ - 1;
        const uint32_t value = unicode::next(p);
        i_ = size_t(p - in_.data());
        return value;
      }
    }
  }

  // A bracket expression, nested ones and && included, as a set.
  Ranges char_class(int depth) {
    if (depth > kMaxNesting) bad("character class nested too deep");
    ++i_;
    const bool negate = i_ < in_.size() && in_[i_] == '^';
    if (negate) ++i_;
    Ranges result = {{0, unicode::kMaxCodePoint}};
    Ranges current;
    bool first = true;
    while (true) {
      if (i_ >= in_.size()) bad("character class without end");
      const char c = in_[i_];
      if (c == ']' && !first) break;
      first = false;
      if (c == '[') {
        if (in_.compare(i_, 2, "[:") == 0 && in_.find(":]", i_) != std::string::npos) {
          current = unicode::unite(current, posix_class());
        } else {
          current = unicode::unite(current, char_class(depth + 1));
        }
        continue;
      }
      if (in_.compare(i_, 2, "&&") == 0) {
        i_ += 2;
        result = unicode::intersect(result, fold_ ? unicode::fold_case(current) : current);
        current.clear();
        continue;
      }
      if (c == '\\') {
        if (i_ + 1 >= in_.size()) bad("pattern ends in a backslash");
        if (auto set = class_escape(true)) {
          current = unicode::unite(current, *set);
          continue;
        }
      }
      const uint32_t low = class_char();
      uint32_t high = low;
      if (i_ + 1 < in_.size() && in_[i_] == '-' && in_[i_ + 1] != ']' && in_[i_ + 1] != '[') {
        const size_t dash = i_++;
        if (in_[i_] == '\\' && i_ + 1 < in_.size() && class_escape(true)) {
          i_ = dash;  // "a-\w": a, '-' and the class
          current = unicode::unite(current, {{low, low}, {'-', '-'}});
          ++i_;
          continue;
        }
        high = class_char();
        if (high < low) bad("empty range in character class");
      }
      current = unicode::unite(current, {{low, high}});
    }
    ++i_;
    if (fold_) current = unicode::fold_case(current);
    result = unicode::intersect(result, current);
    return negate ? unicode::complement(result) : result;
  }

  uint32_t class_char() {
    if (in_[i_] == '\\') {
      if (i_ + 1 >= in_.size()) bad("pattern ends in a backslash");
      if (in_[i_ + 1] == 'b') {
        i_ += 2;
        return 8;
      }
      return char_escape();
    }
    const char* p = in_.data() + i_;
    const uint32_t value = unicode::next(p);
    i_ = size_t(p - in_.data());
    return value;
  }

  Ranges posix_class() {
    const size_t close = in_.find(":]", i_);
    std::string name = in_.substr(i_ + 2, close - i_ - 2);
    const bool negate = !name.empty() && name[0] == '^';
    if (negate) name.erase(0, 1);
    Ranges out;
    auto property = [](const char* p) {
      Ranges r;
      unicode::property(p, r);
      return r;
    };
    if (name == "space") {
      out = unicode::space_ranges();
    } else if (name == "word") {
      out = unicode::word_ranges();
    } else if (name == "digit") {
      out = property("Nd");
    } else if (name == "upper") {
      out = unicode::upper_ranges();
    } else if (name == "lower") {
      out = unicode::lower_ranges();
    } else if (name == "alpha") {
      out = unicode::alphabetic_ranges();
    } else if (name == "alnum") {
      out = unicode::unite(unicode::alphabetic_ranges(), property("Nd"));
    } else if (name == "punct") {
      out = unicode::unite(property("P"), property("S"));
    } else if (name == "xdigit") {
      out = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
    } else if (name == "cntrl") {
      out = property("Cc");
    } else if (name == "blank") {
      out = unicode::unite(property("Zs"), {{'\t', '\t'}});
    } else {
      bad("unknown POSIX class");
    }
    i_ = close + 2;
    return negate ? unicode::complement(out) : out;
  }

  struct Group {
    size_t start;
    bool fold;
  };
  const std::string& in_;
  std::string out_;
  size_t i_ = 0;
  std::optional<size_t> atom_;  // where the last repeatable thing starts in out_
  std::vector<Group> groups_;
  bool fold_ = false;
};

struct MatchData {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 8 * 1024 * 1024, nullptr);
  MatchData() = default;
  MatchData(const MatchData&) = delete;
  MatchData& operator=(const MatchData&) = delete;
  ~MatchData() {
    pcre2_jit_stack_free(stack);
    pcre2_match_data_free(data);
  }
};

MatchData& thread_match_data() {
  thread_local MatchData match;
  return match;
}

}  // namespace

struct Regex::Impl {
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;
  bool jit = false;
  ~Impl() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
};

std::string Regex::translate(const std::string& pattern) { return Translator(pattern).run(); }

Regex::Regex(const std::string& pattern) : pattern_(pattern), impl_(std::make_unique<Impl>()) {
  const std::string translated = translate(pattern);
  int code = 0;
  PCRE2_SIZE offset = 0;
  auto* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  impl_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &offset, context);
  pcre2_compile_context_free(context);
  if (impl_->code == nullptr) {
    char message[256] = {};
    pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof message);
    fail("regex '{}': {}", pattern.substr(0, 500), message);
  }
  impl_->jit = pcre2_jit_compile(impl_->code, PCRE2_JIT_COMPLETE) == 0;
  impl_->context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(impl_->context, 50'000'000);
  pcre2_jit_stack_assign(
      impl_->context, [](void*) { return thread_match_data().stack; }, nullptr);
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

bool Regex::find(std::string_view text, size_t start, size_t& begin, size_t& end) const {
  MatchData& match = thread_match_data();
  auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  int rc = 0;
  if (impl_->jit) {
    rc = pcre2_jit_match(impl_->code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, match.data,
                         impl_->context);
  } else {
    rc = pcre2_match(impl_->code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, match.data,
                     impl_->context);
  }
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  check(rc >= 0, "regex '{}' gave up on the text (error {})", pattern_.substr(0, 200), rc);
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.data);
  begin = range[0];
  end = range[1];
  return true;
}

}  // namespace reft
