// Data of text/unicode.h: see there. The definitions are generated.
#pragma once

#include <cstdint>
#include <span>

namespace reft::unicode {

struct CodePointRange {
  uint32_t first, last;  // inclusive
};
struct LowercaseRun {
  uint32_t first, last, step;
  int32_t distance;
};

// Runs of one general category: code point << 8 | Category, up to the next entry.
extern const std::span<const uint32_t> kCategoryRuns;
// Where a class differs from the general categories that define it nearly.
extern const std::span<const CodePointRange> kAlphabeticDiff, kUpperDiff, kLowerDiff;
extern const std::span<const CodePointRange> kOnigWordDiff, kRustWordDiff, kNumericDiff,
    kPunctuationDiff, kNonspacingDiff, kControlDiff, kCombiningDiff;
extern const std::span<const CodePointRange> kSpace, kHan;
// Code points newer than the normaliser's Unicode: they have no class, mapping or composition
// there.
extern const std::span<const CodePointRange> kNormalizerOpaque;
// Code points that NFC may change, move, or join to what stands before them.
extern const std::span<const CodePointRange> kNfcUnsafe;
extern const std::span<const CodePointRange> kNewSinceUnicode14;
extern const std::span<const LowercaseRun> kLowercase;

}  // namespace reft::unicode
