#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "text/unicode_tables.h"

namespace reft::unicode {
namespace {

bool contains(std::span<const CodePointRange> ranges, uint32_t c) {
  auto it = std::upper_bound(ranges.begin(), ranges.end(), c,
                             [](uint32_t x, const CodePointRange& r) { return x < r.first; });
  return it != ranges.begin() && c <= std::prev(it)->last;
}

uint16_t category_flags(Category c) {
  if (c == kLu || c == kLt) return kUpperLike;
  if (c == kLl) return kLower;
  if (c == kLm || c == kLo) return kCaseless;
  if (c >= kMn && c <= kMe) return kMark;
  if (c >= kNd && c <= kNo) return kNumber;
  if (c >= kPc && c <= kPo) return kPunct;
  if (c >= kSm && c <= kSo) return kSymbol;
  return 0;
}

bool base_word(Category c) { return (c >= kLu && c <= kMe) || c == kNd || c == kNl || c == kPc; }

FlagTable build_flag_table() {
  FlagTable table;
  table.flags.resize(kMaxCodePoint + 1);
  table.category.resize(kMaxCodePoint + 1);
  for (size_t i = 0; i < kCategoryRuns.size(); ++i) {
    const uint32_t first = kCategoryRuns[i] >> 8;
    const uint32_t end =
        i + 1 < kCategoryRuns.size() ? kCategoryRuns[i + 1] >> 8 : kMaxCodePoint + 1;
    const auto c = Category(kCategoryRuns[i] & 0xFF);
    uint16_t f = category_flags(c);
    if (base_word(c)) f |= kRustWord;
    if (f & kNumber) f |= kRustNumeric;
    if (f & kPunct) f |= kBertPunct;
    std::fill(table.flags.begin() + first, table.flags.begin() + end, f);
    std::fill(table.category.begin() + first, table.category.begin() + end, uint8_t(c));
  }
  for (uint32_t c = 0; c < 128; ++c) {
    if (table.flags[c] & kSymbol) table.flags[c] |= kBertPunct;
  }
  auto flip = [&](std::span<const CodePointRange> ranges, uint16_t bit) {
    for (const auto& r : ranges) {
      for (uint32_t c = r.first; c <= r.last; ++c) table.flags[c] ^= bit;
    }
  };
  flip(kRustWordDiff, kRustWord);
  flip(kNumericDiff, kRustNumeric);
  flip(kPunctuationDiff, kBertPunct);
  flip(kSpace, kWhite);
  flip(kNfcUnsafe, kNfcUnsafeBit);
  table.flags['\r'] |= kNewline;
  table.flags['\n'] |= kNewline;
  return table;
}

// One well-understood stretch (no opaque code points) through utf8proc.
void normalize_known(std::string_view text, int options, std::string& out) {
  if (text.empty()) return;
  std::vector<utf8proc_int32_t> buffer(text.size() * 2 + 16);
  auto decompose = [&] {
    return utf8proc_decompose(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                              utf8proc_ssize_t(text.size()), buffer.data(),
                              utf8proc_ssize_t(buffer.size()), utf8proc_option_t(options));
  };
  auto n = decompose();
  if (n > utf8proc_ssize_t(buffer.size())) {
    buffer.resize(size_t(n) + 16);
    n = decompose();
  }
  check(n >= 0, "unicode normalisation: {}", utf8proc_errmsg(n));
  if (options & UTF8PROC_COMPOSE) {
    n = utf8proc_normalize_utf32(buffer.data(), n, utf8proc_option_t(options));
    check(n >= 0, "unicode normalisation: {}", utf8proc_errmsg(n));
  }
  for (utf8proc_ssize_t i = 0; i < n; ++i) append(out, uint32_t(buffer[size_t(i)]));
}

void normalize_with_opaque(std::string_view text, int options, std::string& out) {
  const char* p = text.data();
  const char* end = p + text.size();
  const char* known = p;
  while (p < end) {
    const char* at = p;
    const uint32_t c = next(p);
    if (c < 0x2FF || !contains(kNormalizerOpaque, c)) continue;
    normalize_known({known, size_t(at - known)}, options, out);
    out.append(at, p);
    known = p;
  }
  normalize_known({known, size_t(end - known)}, options, out);
}

std::string normalize_nfc(std::string_view text) {
  // Only stretches of unsafe characters, with the one before them, can change.
  std::string out;
  out.reserve(text.size());
  const FlagTable& table = flag_table();
  const char* p = text.data();
  const char* end = p + text.size();
  const char* copied = p;
  const char* previous = p;
  while (p < end) {
    if (static_cast<unsigned char>(*p) < 0x80) {
      previous = p++;
      continue;
    }
    const char* at = p;
    if (!(table.flags[next(p)] & kNfcUnsafeBit)) {
      previous = at;
      continue;
    }
    const char* begin = std::max(previous, copied);
    const char* stop = p;
    while (p < end) {
      stop = p;
      if (static_cast<unsigned char>(*p) < 0x80 || !(table.flags[next(p)] & kNfcUnsafeBit)) break;
      stop = p;
    }
    out.append(copied, begin);
    normalize_with_opaque({begin, size_t(stop - begin)}, UTF8PROC_STABLE | UTF8PROC_COMPOSE, out);
    copied = p = previous = stop;
  }
  out.append(copied, end);
  return out;
}

}  // namespace

const FlagTable& flag_table() {
  static const FlagTable table = build_flag_table();
  return table;
}

void append(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += char(0xC0 | c >> 6);
    out += char(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += char(0xE0 | c >> 12);
    out += char(0x80 | (c >> 6 & 0x3F));
    out += char(0x80 | (c & 0x3F));
  } else {
    out += char(0xF0 | c >> 18);
    out += char(0x80 | (c >> 12 & 0x3F));
    out += char(0x80 | (c >> 6 & 0x3F));
    out += char(0x80 | (c & 0x3F));
  }
}

std::string to_utf8(uint32_t c) {
  std::string s;
  append(s, c);
  return s;
}

BadPart bad_part(std::string_view text) {
  const auto* u = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  unsigned char low = 0x80, high = 0xBF;
  size_t need = 0;
  if (u[0] >= 0xC2 && u[0] <= 0xDF) {
    need = 1;
  } else if (u[0] >= 0xE0 && u[0] <= 0xEF) {
    need = 2;
    if (u[0] == 0xE0) low = 0xA0;
    if (u[0] == 0xED) high = 0x9F;
  } else if (u[0] >= 0xF0 && u[0] <= 0xF4) {
    need = 3;
    if (u[0] == 0xF0) low = 0x90;
    if (u[0] == 0xF4) high = 0x8F;
  }
  for (size_t i = 1; i <= need; ++i) {
    if (i >= n) return {i, false};
    if (u[i] < low || u[i] > high) return {i, true};
    low = 0x80;
    high = 0xBF;
  }
  return {1, true};
}

size_t valid_prefix(std::string_view text) {
  const auto* u = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  size_t i = 0;
  while (i < n) {
    if (u[i] < 0x80) {
      uint64_t word;
      while (i + 8 <= n && (std::memcpy(&word, u + i, 8), (word & 0x8080808080808080u) == 0))
        i += 8;
      while (i < n && u[i] < 0x80) ++i;
      continue;
    }
    const unsigned char a = u[i];
    auto tail = [&](size_t k) { return i + k < n && (u[i + k] & 0xC0) == 0x80; };
    if (a >= 0xC2 && a <= 0xDF) {
      if (!tail(1)) return i;
      i += 2;
    } else if (a >= 0xE0 && a <= 0xEF) {
      if (!tail(1) || !tail(2) || (a == 0xE0 && u[i + 1] < 0xA0) ||
          (a == 0xED && u[i + 1] > 0x9F)) {
        return i;
      }
      i += 3;
    } else if (a >= 0xF0 && a <= 0xF4) {
      if (!tail(1) || !tail(2) || !tail(3) || (a == 0xF0 && u[i + 1] < 0x90) ||
          (a == 0xF4 && u[i + 1] > 0x8F)) {
        return i;
      }
      i += 4;
    } else {
      return i;
    }
  }
  return n;
}

std::string sanitize(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 8);
  while (!text.empty()) {
    const size_t good = valid_prefix(text);
    out.append(text.substr(0, good));
    text.remove_prefix(good);
    if (text.empty()) break;
    out += "\xEF\xBF\xBD";
    text.remove_prefix(bad_part(text).size);
  }
  return out;
}

bool is_normalized_nfc_quick(std::string_view text) {
  const FlagTable& table = flag_table();
  const char* p = text.data();
  const char* end = p + text.size();
  while (p < end) {
    uint64_t word;
    while (p + 8 <= end && (std::memcpy(&word, p, 8), (word & 0x8080808080808080u) == 0)) p += 8;
    if (p >= end) break;
    if (table.flags[next(p)] & kNfcUnsafeBit) return false;
  }
  return true;
}

std::string normalize(std::string_view text, Form form) {
  if (form == Form::kNfc) return normalize_nfc(text);
  int options = UTF8PROC_STABLE;
  options |= form == Form::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form != Form::kNfd) options |= UTF8PROC_COMPAT;
  std::string out;
  normalize_with_opaque(text, options, out);
  return out;
}

bool is_space(uint32_t c) { return flags(c) & kWhite; }
bool is_nonspacing(uint32_t c) { return (category(c) == kMn) != contains(kNonspacingDiff, c); }
bool is_combining(uint32_t c) { return bool(flags(c) & kMark) != contains(kCombiningDiff, c); }
bool is_control(uint32_t c) {
  const Category k = category(c);
  return (k == kCc || k == kCf || k == kCo) != contains(kControlDiff, c);
}

void append_lower(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += char(c >= 'A' && c <= 'Z' ? c + 32 : c);
    return;
  }
  if (c == 0x130) {  // the one character whose lower case is two
    out += "i\xCC\x87";
    return;
  }
  auto it = std::upper_bound(kLowercase.begin(), kLowercase.end(), c,
                             [](uint32_t x, const LowercaseRun& r) { return x < r.first; });
  // Runs of step 2 may interleave with their neighbours, so look at a few before.
  for (int back = 0; back < 4 && it != kLowercase.begin(); ++back) {
    --it;
    if (c <= it->last && (c - it->first) % it->step == 0) {
      append(out, uint32_t(int32_t(c) + it->distance));
      return;
    }
  }
  append(out, c);
}

Ranges complement(const Ranges& ranges) {
  Ranges out;
  uint32_t start = 0;
  for (const auto& [first, last] : ranges) {
    if (first > start) out.emplace_back(start, first - 1);
    start = last + 1;
  }
  if (start <= kMaxCodePoint) out.emplace_back(start, kMaxCodePoint);
  return out;
}

Ranges unite(const Ranges& a, const Ranges& b) {
  Ranges all = a;
  all.insert(all.end(), b.begin(), b.end());
  std::sort(all.begin(), all.end());
  Ranges out;
  for (const auto& r : all) {
    if (!out.empty() && r.first <= out.back().second + 1) {
      out.back().second = std::max(out.back().second, r.second);
    } else {
      out.push_back(r);
    }
  }
  return out;
}

Ranges intersect(const Ranges& a, const Ranges& b) {
  return complement(unite(complement(a), complement(b)));
}

namespace {

Ranges from_table(std::span<const CodePointRange> table) {
  Ranges out;
  for (const auto& r : table) out.emplace_back(r.first, r.last);
  return out;
}

Ranges categories(uint32_t mask) {
  Ranges out;
  for (size_t i = 0; i < kCategoryRuns.size(); ++i) {
    if (!(mask >> (kCategoryRuns[i] & 0xFF) & 1)) continue;
    const uint32_t first = kCategoryRuns[i] >> 8;
    const uint32_t last =
        i + 1 < kCategoryRuns.size() ? (kCategoryRuns[i + 1] >> 8) - 1 : kMaxCodePoint;
    if (!out.empty() && out.back().second + 1 == first) {
      out.back().second = last;
    } else {
      out.emplace_back(first, last);
    }
  }
  return out;
}

Ranges exclusive_or(const Ranges& a, const Ranges& b) {
  return unite(intersect(a, complement(b)), intersect(b, complement(a)));
}

}  // namespace

bool property(std::string_view name, Ranges& out) {
  static constexpr const char* kNames[] = {
      "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
      "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};
  static constexpr std::pair<const char*, const char*> kLong[] = {{"letter", "L"},
                                                                  {"mark", "M"},
                                                                  {"number", "N"},
                                                                  {"punctuation", "P"},
                                                                  {"symbol", "S"},
                                                                  {"separator", "Z"},
                                                                  {"other", "C"},
                                                                  {"uppercaseletter", "Lu"},
                                                                  {"lowercaseletter", "Ll"},
                                                                  {"titlecaseletter", "Lt"},
                                                                  {"modifierletter", "Lm"},
                                                                  {"otherletter", "Lo"},
                                                                  {"nonspacingmark", "Mn"},
                                                                  {"decimalnumber", "Nd"},
                                                                  {"punct", "P"},
                                                                  {"digit", "Nd"}};
  std::string key;
  for (char c : name) {
    if (c != ' ' && c != '_' && c != '-') key += char(c >= 'A' && c <= 'Z' ? c + 32 : c);
  }
  if (key == "han" || key == "script=han") {
    out = from_table(kHan);
    return true;
  }
  if (key == "space" || key == "whitespace") {
    out = space_ranges();
    return true;
  }
  if (key == "any") {
    out = {{0, kMaxCodePoint}};
    return true;
  }
  for (const auto& [from, to] : kLong) {
    if (key == from) {
      key = to;
      key[0] = char(key[0] | 0x20);
      if (key.size() > 1) key[1] = char(key[1] | 0x20);
    }
  }
  uint32_t mask = 0;
  for (int i = 0; i < kCategories; ++i) {
    const char group = char(kNames[i][0] | 0x20);
    if (key.size() == 1 ? key[0] == group
                        : key.size() == 2 && key[0] == group && key[1] == kNames[i][1]) {
      mask |= 1u << i;
    }
  }
  if (key == "lc") mask = 1u << kLu | 1u << kLl | 1u << kLt;
  if (mask == 0) return false;
  out = categories(mask);
  return true;
}

Ranges word_ranges() {
  uint32_t mask = 1u << kNd | 1u << kNl | 1u << kPc;
  for (int i = kLu; i <= kMe; ++i) mask |= 1u << i;
  const Ranges latin1 = {{0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}};
  return intersect(exclusive_or(categories(mask), from_table(kOnigWordDiff)), complement(latin1));
}

Ranges alphabetic_ranges() {
  const uint32_t letters = 1u << kLu | 1u << kLl | 1u << kLt | 1u << kLm | 1u << kLo | 1u << kNl;
  return exclusive_or(categories(letters), from_table(kAlphabeticDiff));
}

Ranges upper_ranges() { return exclusive_or(categories(1u << kLu), from_table(kUpperDiff)); }

Ranges lower_ranges() { return exclusive_or(categories(1u << kLl), from_table(kLowerDiff)); }

Ranges fold_case(const Ranges& ranges) {
  // Pairs beyond the lower-case mapping: long s, micro sign, final sigma, the Greek symbol forms.
  static constexpr std::pair<uint32_t, uint32_t> kMore[] = {
      {0x17F, 's'},    {0x17F, 'S'},    {0x212A, 'K'},  {0xB5, 0x3BC},  {0xB5, 0x39C},
      {0x3C2, 0x3C3},  {0x3C2, 0x3A3},  {0x3D0, 0x3B2}, {0x3D1, 0x3B8}, {0x3D5, 0x3C6},
      {0x3D6, 0x3C0},  {0x3F0, 0x3BA},  {0x3F1, 0x3C1}, {0x3F5, 0x3B5}, {0x1E9B, 0x1E61},
      {0x1FBE, 0x3B9}, {0x2126, 0x3A9}, {0x212B, 0xC5}};
  auto contains = [&](uint32_t c) {
    auto it = std::upper_bound(ranges.begin(), ranges.end(), c,
                               [](uint32_t x, const auto& r) { return x < r.first; });
    return it != ranges.begin() && c <= std::prev(it)->second;
  };
  Ranges extra;
  auto pair = [&](uint32_t a, uint32_t b) {
    if (contains(a)) extra.emplace_back(b, b);
    if (contains(b)) extra.emplace_back(a, a);
  };
  for (const LowercaseRun& run : kLowercase) {
    for (uint32_t c = run.first; c <= run.last; c += run.step)
      pair(c, uint32_t(int32_t(c) + run.distance));
  }
  for (const auto& [a, b] : kMore) pair(a, b);
  return unite(ranges, extra);
}

Ranges space_ranges() { return from_table(kSpace); }

}  // namespace reft::unicode
