// The names of a model in several GGUF files: `folder/name-00002-of-00005.gguf`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace reft {

struct GgufSplitName {
  std::string prefix;  // "folder/name"
  int64_t number = 0;  // from 1
  int64_t count = 0;

  std::string path(int64_t n) const;
};

// Nothing when the name is not of that form.
std::optional<GgufSplitName> parse_gguf_split_name(std::string_view path);

}  // namespace reft
