// The one JSON type. Objects keep the order of their keys (chat templates and tool schemas depend
// on it). Look-ups in an object are linear: parse large maps (a tokenizer's vocabulary) with
// nlohmann's SAX interface.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/check.h"

namespace reft {

using Json = nlohmann::ordered_json;

// Parses strict JSON (UTF-8, no comments, nothing after the value). Throws Error that starts with
// `what` and tells the byte offset. Nesting deeper than 512 is refused.
Json parse_json(std::string_view text, std::string_view what);
// Reads and parses a file; the error names the path.
Json read_json_file(const std::string& path);

// Value of `key` as T, or `fallback` when absent or null. Throws Error naming `key` on a wrong
// type.
template <class T>
T json_get(const Json& object, const char* key, T fallback) {
  auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  try {
    return it->template get<T>();
  } catch (const nlohmann::json::exception& e) {
    throw Error(std::string("JSON key '") + key + "' has the wrong type: " + e.what());
  }
}

}  // namespace reft
