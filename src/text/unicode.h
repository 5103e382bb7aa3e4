// UTF-8 and character classes, as Hugging Face `tokenizers` (Oniguruma, Rust's standard library and
// its normalisation crates) defines them. All functions are thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace reft::unicode {

enum Category : uint8_t {
  kCn,
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kCc,
  kCf,
  kCs,
  kCo,
  kCategories
};

// Bits of flags(c).
enum : uint16_t {
  kUpperLike = 1 << 0,  // Lu, Lt
  kLower = 1 << 1,      // Ll
  kCaseless = 1 << 2,   // Lm, Lo
  kMark = 1 << 3,       // M
  kNumber = 1 << 4,     // N
  kPunct = 1 << 5,      // P
  kSymbol = 1 << 6,     // S
  kWhite = 1 << 7,      // \s
  kNewline = 1 << 8,    // \r \n
  kNfcUnsafeBit = 1 << 9,
  kRustWord = 1 << 10,  // \w of Rust's regex crate
  kRustNumeric = 1 << 11,
  kBertPunct = 1 << 12,
  kLetter = kUpperLike | kLower | kCaseless,
};

inline constexpr uint32_t kMaxCodePoint = 0x10FFFF;

struct FlagTable {
  std::vector<uint16_t> flags;    // per code point
  std::vector<uint8_t> category;  // per code point
};
const FlagTable& flag_table();
inline uint16_t flags(uint32_t c) { return flag_table().flags[c]; }
inline Category category(uint32_t c) { return Category(flag_table().category[c]); }

// Decodes the character at `p` of valid UTF-8 and moves p behind it.
inline uint32_t next(const char*& p) {
  const auto* u = reinterpret_cast<const unsigned char*>(p);
  if (u[0] < 0x80) {
    p += 1;
    return u[0];
  }
  if (u[0] < 0xE0) {
    p += 2;
    return (u[0] & 0x1Fu) << 6 | (u[1] & 0x3Fu);
  }
  if (u[0] < 0xF0) {
    p += 3;
    return (u[0] & 0x0Fu) << 12 | (u[1] & 0x3Fu) << 6 | (u[2] & 0x3Fu);
  }
  p += 4;
  return (u[0] & 0x07u) << 18 | (u[1] & 0x3Fu) << 12 | (u[2] & 0x3Fu) << 6 | (u[3] & 0x3Fu);
}
// Bytes of the character that starts with `lead` in valid UTF-8.
inline size_t length(char lead) {
  const auto u = static_cast<unsigned char>(lead);
  return u < 0x80 ? 1 : u < 0xE0 ? 2 : u < 0xF0 ? 3 : 4;
}
inline bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

void append(std::string& out, uint32_t c);
std::string to_utf8(uint32_t c);

// Length of the longest prefix of `text` that is valid UTF-8 (surrogates and overlong forms are
// not).
size_t valid_prefix(std::string_view text);
// Replaces each maximal invalid part by U+FFFD, as Python's errors="replace" and Rust's lossy
// conversion do.
std::string sanitize(std::string_view text);
// What stands at the end of an invalid place: number of bytes (1..3) of the ill-formed part at
// text[0]; complete is false when more bytes could still make it a character.
struct BadPart {
  size_t size;
  bool complete;
};
BadPart bad_part(std::string_view text);

enum class Form { kNfc, kNfd, kNfkc, kNfkd };
bool is_normalized_nfc_quick(std::string_view text);
std::string normalize(std::string_view text, Form form);

bool is_space(uint32_t c);       // White_Space
bool is_nonspacing(uint32_t c);  // what BERT strips as an accent
bool is_combining(uint32_t c);   // what StripAccents strips
bool is_control(uint32_t c);     // what BERT's clean_text strips (tab, LF and CR count here too)
void append_lower(std::string& out, uint32_t c);

// Sorted, disjoint, inclusive ranges of code points: the value of a regex character class.
using Ranges = std::vector<std::pair<uint32_t, uint32_t>>;
// Class by its property name ("L", "Lu", "Han", "Letter", …); false when unknown.
bool property(std::string_view name, Ranges& out);
// [[:alpha:]], [[:upper:]], [[:lower:]] of Oniguruma.
Ranges alphabetic_ranges();
Ranges upper_ranges();
Ranges lower_ranges();
// Adds the other case of each member.
Ranges fold_case(const Ranges& ranges);
Ranges word_ranges();   // \w of Oniguruma inside brackets
Ranges space_ranges();  // \s
Ranges complement(const Ranges& ranges);
Ranges unite(const Ranges& a, const Ranges& b);
Ranges intersect(const Ranges& a, const Ranges& b);

}  // namespace reft::unicode
