#include "text/normalizer.h"

#include <utf8proc.h>

#include <cstring>

#include "base/check.h"
#include "text/scanner.h"
#include "text/token_model.h"
#include "text/unicode.h"

namespace reft {

Charsmap::Charsmap(std::string_view blob) {
  check(blob.size() >= 4, "precompiled_charsmap is too short");
  uint32_t size = 0;
  std::memcpy(&size, blob.data(), 4);
  check(size % 4 == 0 && size >= 4 && size <= blob.size() - 4,
        "precompiled_charsmap: bad trie size {}", size);
  units_.resize(size / 4);
  std::memcpy(units_.data(), blob.data() + 4, size);
  replacements_ = blob.substr(4 + size);
}

bool Charsmap::find(std::string_view text, bool longest, size_t& length,
                    std::string_view& replacement) const {
  // Units of the double array: bits 0-7 label (bit 31 clear), 8 has a leaf, 10-30 offset with 9 as
  // its shift.
  auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  uint32_t node = offset(units_[0]);
  bool found = false;
  uint32_t value = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == 0) break;
    node ^= byte;
    if (node >= units_.size()) break;
    const uint32_t unit = units_[node];
    if ((unit & (1u << 31 | 0xFFu)) != byte) break;
    node ^= offset(unit);
    // A key ends where a character ends.
    const bool whole = i + 1 == text.size() || !unicode::is_continuation(text[i + 1]);
    if (whole && (unit >> 8 & 1)) {
      if (node >= units_.size()) break;
      value = units_[node] & 0x7FFFFFFFu;
      length = i + 1;
      found = true;
      if (!longest) break;
    }
  }
  if (!found || value >= replacements_.size()) return false;
  const size_t end = replacements_.find('\0', value);
  replacement = std::string_view(replacements_)
                    .substr(value, (end == std::string::npos ? replacements_.size() : end) - value);
  return unicode::valid_prefix(replacement) == replacement.size();
}

namespace {

using unicode::Form;

// Far over any prompt: only a file made to grow text without end comes here.
constexpr size_t kMaxNormalized = size_t{1} << 28;

void check_growth(const std::string& out) {
  check(out.size() <= kMaxNormalized, "the normalizer makes more than {} bytes of the text",
        kMaxNormalized);
}

class UnicodeForm final : public Normalizer {
 public:
  explicit UnicodeForm(Form form) : form_(form) {}
  bool apply(std::string_view text, std::string& out, bool&) const override {
    if (form_ == Form::kNfc && unicode::is_normalized_nfc_quick(text)) return false;
    out = unicode::normalize(text, form_);
    return true;
  }

 private:
  Form form_;
};

class Sequence final : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  bool apply(std::string_view text, std::string& out, bool& cut_start) const override {
    bool changed = false;
    std::string next;
    for (const auto& step : steps_) {
      if (step->apply(changed ? std::string_view(out) : text, next, cut_start)) {
        out.swap(next);
        changed = true;
      }
    }
    return changed;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

// Every match of a pattern becomes `content`.
class Replace final : public Normalizer {
 public:
  Replace(std::unique_ptr<Matcher> matcher, std::string content)
      : matcher_(std::move(matcher)), content_(std::move(content)) {}
  bool apply(std::string_view text, std::string& out, bool& cut_start) const override {
    size_t copied = 0;
    bool changed = false;
    out.clear();
    for_each_match(*matcher_, text, [&](size_t begin, size_t end) {
      changed = true;
      if (begin == 0 && content_.empty() && end > 0) cut_start = true;
      out.append(text.substr(copied, begin - copied));
      out += content_;
      check_growth(out);
      copied = end;
    });
    if (!changed) return false;
    out.append(text.substr(copied));
    return true;
  }

 private:
  std::unique_ptr<Matcher> matcher_;
  std::string content_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  bool apply(std::string_view text, std::string& out, bool&) const override {
    if (text.empty()) return false;
    out = text_;
    out += text;
    return true;
  }

 private:
  std::string text_;
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  bool apply(std::string_view text, std::string& out, bool& cut_start) const override {
    size_t begin = 0, end = text.size();
    while (left_ && begin < end) {
      const char* p = text.data() + begin;
      if (!unicode::is_space(unicode::next(p))) break;
      begin = size_t(p - text.data());
      cut_start = true;
    }
    while (right_ && end > begin) {
      size_t last = end - 1;
      while (last > begin && unicode::is_continuation(text[last])) --last;
      const char* p = text.data() + last;
      if (!unicode::is_space(unicode::next(p))) break;
      end = last;
    }
    if (end - begin == text.size()) return false;
    out = text.substr(begin, end - begin);
    return true;
  }

 private:
  bool left_, right_;
};

// Maps each character on its own: map(c, out) appends what takes its place.
template <class Map>
class PerCharacter final : public Normalizer {
 public:
  explicit PerCharacter(Map map) : map_(map) {}
  bool apply(std::string_view text, std::string& out, bool& cut_start) const override {
    out.clear();
    out.reserve(text.size() + 16);
    const char* p = text.data();
    const char* end = p + text.size();
    while (p < end) {
      map_(unicode::next(p), out);
      if (out.empty()) cut_start = true;
    }
    return true;
  }

 private:
  Map map_;
};

template <class Map>
std::unique_ptr<Normalizer> per_character(Map map) {
  return std::make_unique<PerCharacter<Map>>(map);
}

void nmt(uint32_t c, std::string& out) {
  const bool drop = (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F ||
                    c == 0x8F || c == 0x9F;
  if (drop) return;
  const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 ||
                     (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                     c == 0xFEFF || c == 0xFFFD;
  unicode::append(out, space ? ' ' : c);
}

bool is_cjk_ideograph(uint32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

std::unique_ptr<Normalizer> make_bert(const Json& config) {
  std::vector<std::unique_ptr<Normalizer>> steps;
  const bool lowercase = json_get(config, "lowercase", true);
  if (json_get(config, "clean_text", true)) {
    steps.push_back(per_character([](uint32_t c, std::string& out) {
      const bool line = c == '\t' || c == '\n' || c == '\r';
      if (c == 0 || c == 0xFFFD || (!line && unicode::is_control(c))) return;
      unicode::append(out, line || unicode::is_space(c) ? ' ' : c);
    }));
  }
  if (json_get(config, "handle_chinese_chars", true)) {
    steps.push_back(per_character([](uint32_t c, std::string& out) {
      const bool ideograph = is_cjk_ideograph(c);
      if (ideograph) out += ' ';
      unicode::append(out, c);
      if (ideograph) out += ' ';
    }));
  }
  if (json_get(config, "strip_accents", lowercase)) {
    steps.push_back(std::make_unique<UnicodeForm>(Form::kNfd));
    steps.push_back(per_character([](uint32_t c, std::string& out) {
      if (!unicode::is_nonspacing(c)) unicode::append(out, c);
    }));
  }
  if (lowercase) {
    steps.push_back(
        per_character([](uint32_t c, std::string& out) { unicode::append_lower(out, c); }));
  }
  return make_sequence(std::move(steps));
}

// SentencePiece's map by grapheme, as Hugging Face applies it: a short grapheme as a whole by its
// shortest key, else character by character.
class Precompiled final : public Normalizer {
 public:
  explicit Precompiled(std::string_view blob) : map_(blob) {}
  bool apply(std::string_view text, std::string& out, bool&) const override {
    out.clear();
    out.reserve(text.size() + 16);
    bool changed = false;
    const char* p = text.data();
    const char* end = p + text.size();
    while (p < end) {
      check_growth(out);
      const std::string_view grapheme = next_grapheme(p, end);
      if (grapheme.size() < 6 && replace(grapheme, out)) {
        changed = true;
      } else {
        for (size_t i = 0; i < grapheme.size();) {
          const std::string_view c = grapheme.substr(i, unicode::length(grapheme[i]));
          if (replace(c, out)) {
            changed = true;
          } else {
            out += c;
          }
          i += c.size();
        }
      }
    }
    return changed;
  }

 private:
  static std::string_view next_grapheme(const char*& p, const char* end) {
    const char* begin = p;
    uint32_t previous = unicode::next(p);
    utf8proc_int32_t state = 0;
    while (p < end) {
      const char* q = p;
      const uint32_t c = unicode::next(q);
      if (utf8proc_grapheme_break_stateful(utf8proc_int32_t(previous), utf8proc_int32_t(c), &state))
        break;
      previous = c;
      p = q;
    }
    return {begin, size_t(p - begin)};
  }
  bool replace(std::string_view part, std::string& out) const {
    size_t length = 0;
    std::string_view replacement;
    if (!map_.find(part, false, length, replacement)) return false;
    out += replacement;
    return true;
  }

  Charsmap map_;
};

class ByteLevel final : public Normalizer {
 public:
  bool apply(std::string_view text, std::string& out, bool&) const override {
    out = byte_alphabet::encode(text);
    return true;
  }
};

std::string decode_base64(const std::string& text) {
  std::string out;
  uint32_t bits = 0;
  int have = 0;
  for (char c : text) {
    int v = -1;
    if (c >= 'A' && c <= 'Z') v = c - 'A';
    if (c >= 'a' && c <= 'z') v = c - 'a' + 26;
    if (c >= '0' && c <= '9') v = c - '0' + 52;
    if (c == '+') v = 62;
    if (c == '/') v = 63;
    if (c == '=') break;
    check(v >= 0, "precompiled_charsmap is not base64");
    bits = bits << 6 | uint32_t(v);
    have += 6;
    if (have >= 8) {
      have -= 8;
      out += char(bits >> have & 0xFF);
    }
  }
  return out;
}

}  // namespace

std::unique_ptr<Normalizer> make_sequence(std::vector<std::unique_ptr<Normalizer>> steps) {
  if (steps.empty()) return nullptr;
  if (steps.size() == 1) return std::move(steps[0]);
  return std::make_unique<Sequence>(std::move(steps));
}

std::unique_ptr<Normalizer> make_replace(std::string from, std::string to) {
  return std::make_unique<Replace>(make_literal_matcher(std::move(from)), std::move(to));
}

std::unique_ptr<Normalizer> make_normalizer(const Json& config) {
  if (config.is_null()) return nullptr;
  check(config.is_object(), "normalizer is not an object");
  const auto type = json_get(config, "type", std::string());
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> steps;
    for (const Json& step : config.value("normalizers", Json::array())) {
      if (auto n = make_normalizer(step)) steps.push_back(std::move(n));
    }
    return make_sequence(std::move(steps));
  }
  if (type == "NFC") return std::make_unique<UnicodeForm>(Form::kNfc);
  if (type == "NFD") return std::make_unique<UnicodeForm>(Form::kNfd);
  if (type == "NFKC") return std::make_unique<UnicodeForm>(Form::kNfkc);
  if (type == "NFKD") return std::make_unique<UnicodeForm>(Form::kNfkd);
  if (type == "Replace") {
    const Json pattern = config.value("pattern", Json());
    auto content = json_get(config, "content", std::string());
    check(pattern.is_object(), "normalizer Replace has no pattern");
    auto regex = json_get(pattern, "Regex", std::string());
    if (!regex.empty()) return std::make_unique<Replace>(make_matcher(regex), std::move(content));
    return make_replace(json_get(pattern, "String", std::string()), std::move(content));
  }
  if (type == "Prepend")
    return std::make_unique<Prepend>(json_get(config, "prepend", std::string()));
  if (type == "Strip") {
    return std::make_unique<Strip>(json_get(config, "strip_left", true),
                                   json_get(config, "strip_right", true));
  }
  if (type == "StripAccents") {
    return per_character([](uint32_t c, std::string& out) {
      if (!unicode::is_combining(c)) unicode::append(out, c);
    });
  }
  if (type == "Lowercase") {
    return per_character([](uint32_t c, std::string& out) { unicode::append_lower(out, c); });
  }
  if (type == "BertNormalizer") return make_bert(config);
  if (type == "Nmt") return per_character(nmt);
  if (type == "ByteLevel") return std::make_unique<ByteLevel>();
  if (type == "Precompiled") {
    return std::make_unique<Precompiled>(
        decode_base64(json_get(config, "precompiled_charsmap", std::string())));
  }
  fail("normalizer type '{}' is not supported", type);
}

}  // namespace reft
