#include "tensor/gguf_split.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

namespace reft {
namespace {

constexpr size_t kDigits = 5;

// Cuts `digits` off the end of `text` into `value`; false when it does not end in that many digits.
bool cut_number(std::string_view& text, int64_t& value) {
  if (text.size() < kDigits) return false;
  const std::string_view digits = text.substr(text.size() - kDigits);
  if (!std::ranges::all_of(digits, [](char c) { return c >= '0' && c <= '9'; })) return false;
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  text.remove_suffix(kDigits);
  return true;
}

bool cut(std::string_view& text, std::string_view ending) {
  if (!text.ends_with(ending)) return false;
  text.remove_suffix(ending.size());
  return true;
}

}  // namespace

std::string GgufSplitName::path(int64_t n) const {
  return fmt::format("{}-{:05}-of-{:05}.gguf", prefix, n, count);
}

std::optional<GgufSplitName> parse_gguf_split_name(std::string_view path) {
  GgufSplitName name;
  const bool good = cut(path, ".gguf") && cut_number(path, name.count) && cut(path, "-of-") &&
                    cut_number(path, name.number) && cut(path, "-");
  if (!good) return std::nullopt;
  name.prefix = std::string(path);
  return name;
}

}  // namespace reft
