// A request's JSON body: parsed under caps, then read field by field with errors that name the
// field.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace reft {

// Parses a body that must be one JSON object. Of a repeated key the last value counts. Throws
// RequestError (400) for invalid JSON or UTF-8, nesting over 128 levels or more than four million
// values; `param` is the top-level field in which the fault lies.
Json parse_request_body(std::string_view text);

// Reads the fields of one object. A field that is absent or null reads as "not given". Errors are
// RequestError 400 with the field's full name ("stream_options.include_usage") as param.
class Fields {
 public:
  // `prefix` is written before the names: "messages[2]."; `object` must be an object and outlive
  // this.
  explicit Fields(const Json& object, std::string prefix = "");

  // Null when not given.
  const Json* get(const char* key) const;
  std::optional<bool> boolean(const char* key) const;
  // Also takes 5.0 for 5.
  std::optional<int64_t> integer(const char* key, int64_t min = std::numeric_limits<int64_t>::min(),
                                 int64_t max = std::numeric_limits<int64_t>::max()) const;
  std::optional<float> number(const char* key) const;
  std::optional<std::string> string(const char* key) const;
  const Json* object(const char* key) const;
  const Json* array(const char* key) const;
  // Array of integers in [min, max].
  std::optional<std::vector<int32_t>> int_array(const char* key, int64_t min, int64_t max) const;
  std::optional<std::vector<std::string>> string_array(const char* key, size_t max_items) const;

  std::string name(std::string_view key) const { return prefix_ + std::string(key); }
  [[noreturn]] void refuse(std::string_view key, std::string_view what) const;

 private:
  const Json& object_;
  std::string prefix_;
};

// "a string", "an array" … for messages.
const char* json_type_name(const Json& value);
// `value` as an integer in [min, max]; throws RequestError for `param`.
int64_t json_integer(const Json& value, const std::string& param, int64_t min, int64_t max);

// Logs, once per name and for a bounded number of names, each top-level field that is not in
// `known`.
void log_unknown_fields(const Json& body, std::initializer_list<std::string_view> known);

}  // namespace reft
