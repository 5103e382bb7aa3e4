#include "base/json.h"

#include "base/file.h"

namespace reft {

Json parse_json(std::string_view text, std::string_view what) {
  constexpr int kMaxDepth = 512;
  try {
    auto depth_guard = [&](int depth, Json::parse_event_t event, Json&) {
      if (depth > kMaxDepth && (event == Json::parse_event_t::object_start ||
                                event == Json::parse_event_t::array_start)) {
        fail("{}: JSON is nested deeper than {} levels", what, kMaxDepth);
      }
      return true;
    };
    return Json::parse(text.begin(), text.end(), depth_guard);
  } catch (const nlohmann::json::parse_error& e) {
    fail("{}: invalid JSON at byte {}: {}", what, e.byte, e.what());
  } catch (const nlohmann::json::exception& e) {
    fail("{}: invalid JSON: {}", what, e.what());
  }
}

Json read_json_file(const std::string& path) {
  const MappedFile file(path);
  return parse_json(file.text(), path);
}

}  // namespace reft
