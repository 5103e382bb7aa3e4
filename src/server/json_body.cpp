#include "server/json_body.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <set>
#include <unordered_map>

#include "base/log.h"
#include "engine/request.h"
#include "server/json_writer.h"

namespace reft {
namespace {

constexpr size_t kMaxDepth = 128;
constexpr size_t kMaxValues = 4'000'000;

// nlohmann's SAX events to a tree. Objects are appended to without looking for duplicates, which
// would be quadratic; those are merged once when the object closes.
class BodyBuilder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return add(Json(nullptr)); }
  bool boolean(bool value) override { return add(Json(value)); }
  bool number_integer(number_integer_t value) override { return add(Json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return add(Json(value)); }
  bool number_float(number_float_t value, const string_t&) override {
    if (!std::isfinite(value)) return stop("a number is out of range");
    return add(Json(value));
  }
  bool string(string_t& value) override { return add(Json(std::move(value))); }
  bool binary(binary_t&) override { return stop("binary values are not JSON"); }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override {
    stack_.pop_back();
    return true;
  }
  bool end_object() override {
    merge_duplicates(*stack_.back());
    stack_.pop_back();
    return true;
  }
  bool key(string_t& value) override {
    if (stack_.size() == 1) field_ = value;
    key_ = std::move(value);
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    // nlohmann's text after its own "[json.exception…] parse error at line 1, column 2: " prefix.
    std::string_view what = e.what();
    if (const size_t colon = what.find(": "); colon != std::string_view::npos) {
      what.remove_prefix(colon + 2);
    }
    return stop(fmt::format("invalid JSON at byte {}: {}", position, what.substr(0, 300)));
  }

  Json take() { return std::move(root_); }
  const std::string& error() const { return error_; }
  const std::string& field() const { return field_; }

 private:
  bool stop(std::string message) {
    error_ = std::move(message);
    return false;
  }

  Json* place(Json&& value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      auto& array = parent.get_ref<Json::array_t&>();
      array.push_back(std::move(value));
      return &array.back();
    }
    auto& object = parent.get_ref<Json::object_t&>();
    object.emplace_back(std::move(key_), std::move(value));
    return &object.back().second;
  }

  bool add(Json&& value) {
    if (++num_values_ > kMaxValues) {
      return stop(fmt::format("the body holds more than {} values", kMaxValues));
    }
    place(std::move(value));
    return true;
  }

  bool open(Json&& container) {
    if (stack_.size() >= kMaxDepth) {
      return stop(fmt::format("JSON is nested deeper than {} levels", kMaxDepth));
    }
    if (++num_values_ > kMaxValues) {
      return stop(fmt::format("the body holds more than {} values", kMaxValues));
    }
    stack_.push_back(place(std::move(container)));
    return true;
  }

  // First position, last value: what Python's json does.
  static void merge_duplicates(Json& value) {
    auto& object = value.get_ref<Json::object_t&>();
    if (object.size() < 2) return;
    std::unordered_map<std::string_view, size_t> first;
    first.reserve(object.size());
    bool unique = true;
    for (size_t i = 0; i < object.size(); ++i) {
      unique = first.emplace(object.Container::operator[](i).first, i).second && unique;
    }
    if (unique) return;
    for (size_t i = 0; i < object.size(); ++i) {
      auto& item = object.Container::operator[](i);
      const size_t target = first.find(item.first)->second;
      if (target != i) {
        object.Container::operator[](target).second = std::move(item.second);
      }
    }
    Json::object_t merged;
    for (size_t i = 0; i < object.size(); ++i) {
      auto& item = object.Container::operator[](i);
      if (first.find(item.first)->second == i) {
        merged.emplace_back(item.first, std::move(item.second));
      }
    }
    first.clear();
    value = Json(std::move(merged));
  }

  Json root_;
  std::vector<Json*> stack_;
  std::string key_;
  std::string field_;
  std::string error_;
  size_t num_values_ = 0;
};

}  // namespace

Json parse_request_body(std::string_view text) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    throw RequestError("the body is empty: expected a JSON object", "");
  }
  BodyBuilder builder;
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    throw RequestError(builder.error().empty() ? "invalid JSON" : builder.error(), builder.field());
  }
  Json body = builder.take();
  if (!body.is_object()) {
    throw RequestError(fmt::format("the body must be a JSON object, got {}", json_type_name(body)),
                       "");
  }
  return body;
}

const char* json_type_name(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return "an integer";
    case Json::value_t::number_float:
      return "a number";
    default:
      return "an unknown value";
  }
}

int64_t json_integer(const Json& value, const std::string& param, int64_t min, int64_t max) {
  int64_t number = 0;
  bool in_range = true;
  if (value.is_number_unsigned()) {
    const auto u = value.get<uint64_t>();
    in_range = u <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    number = static_cast<int64_t>(u);
  } else if (value.is_number_integer()) {
    number = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double d = value.get<double>();
    if (d != std::floor(d)) {
      throw RequestError(fmt::format("'{}' must be an integer, got {}", param, d), param);
    }
    in_range = d >= -9223372036854775808.0 && d < 9223372036854775808.0;
    if (in_range) number = static_cast<int64_t>(d);
  } else {
    throw RequestError(fmt::format("'{}' must be an integer, got {}", param, json_type_name(value)),
                       param);
  }
  if (in_range && number >= min && number <= max) return number;
  if (max == std::numeric_limits<int64_t>::max() && min > std::numeric_limits<int64_t>::min()) {
    throw RequestError(fmt::format("'{}' must be at least {}, got {}", param, min, value.dump()),
                       param);
  }
  throw RequestError(
      fmt::format("'{}' must be between {} and {}, got {}", param, min, max, value.dump()), param);
}

Fields::Fields(const Json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {}

const Json* Fields::get(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void Fields::refuse(std::string_view key, std::string_view what) const {
  throw RequestError(fmt::format("'{}' {}", name(key), what), name(key));
}

std::optional<bool> Fields::boolean(const char* key) const {
  const Json* value = get(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    refuse(key, fmt::format("must be true or false, got {}", json_type_name(*value)));
  }
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(const char* key, int64_t min, int64_t max) const {
  const Json* value = get(key);
  if (value == nullptr) return std::nullopt;
  return json_integer(*value, name(key), min, max);
}

std::optional<float> Fields::number(const char* key) const {
  const Json* value = get(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    refuse(key, fmt::format("must be a number, got {}", json_type_name(*value)));
  }
  const double number = value->get<double>();
  if (!(std::abs(number) <= static_cast<double>(std::numeric_limits<float>::max()))) {
    refuse(key, "is out of range");
  }
  return static_cast<float>(number);
}

std::optional<std::string> Fields::string(const char* key) const {
  const Json* value = get(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    refuse(key, fmt::format("must be a string, got {}", json_type_name(*value)));
  }
  return value->get<std::string>();
}

const Json* Fields::object(const char* key) const {
  const Json* value = get(key);
  if (value != nullptr && !value->is_object()) {
    refuse(key, fmt::format("must be an object, got {}", json_type_name(*value)));
  }
  return value;
}

const Json* Fields::array(const char* key) const {
  const Json* value = get(key);
  if (value != nullptr && !value->is_array()) {
    refuse(key, fmt::format("must be an array, got {}", json_type_name(*value)));
  }
  return value;
}

std::optional<std::vector<int32_t>> Fields::int_array(const char* key, int64_t min,
                                                      int64_t max) const {
  const Json* value = array(key);
  if (value == nullptr) return std::nullopt;
  std::vector<int32_t> out;
  out.reserve(value->size());
  for (const Json& item : *value) {
    if (!item.is_number()) {
      refuse(key, fmt::format("must hold integers only, got {}", json_type_name(item)));
    }
    out.push_back(static_cast<int32_t>(json_integer(item, name(key), min, max)));
  }
  return out;
}

std::optional<std::vector<std::string>> Fields::string_array(const char* key,
                                                             size_t max_items) const {
  const Json* value = array(key);
  if (value == nullptr) return std::nullopt;
  if (value->size() > max_items) {
    refuse(key, fmt::format("has {} items; at most {} are allowed", value->size(), max_items));
  }
  std::vector<std::string> out;
  for (const Json& item : *value) {
    if (!item.is_string()) {
      refuse(key, fmt::format("must hold strings only, got {}", json_type_name(item)));
    }
    out.push_back(item.get<std::string>());
  }
  return out;
}

void log_unknown_fields(const Json& body, std::initializer_list<std::string_view> known) {
  static std::mutex mutex;
  static std::set<std::string> logged;
  constexpr size_t kMaxNames = 200;
  for (const auto& item : body.items()) {
    if (std::find(known.begin(), known.end(), item.key()) != known.end()) continue;
    std::string name;
    append_json_string(name, std::string_view(item.key()).substr(0, 64));
    const std::lock_guard lock(mutex);
    if (logged.size() >= kMaxNames || !logged.insert(name).second) continue;
    log_warning("Serve", "request field {} is not known and is ignored", name);
  }
}

}  // namespace reft
