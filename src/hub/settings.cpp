#include "hub/settings.h"

#include <strings.h>

#include <cstdlib>
#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "hub/url.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

std::string variable(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return value;
  }
  return "";
}

std::string expand_home(const std::string& path) {
  if (path != "~" && !path.starts_with("~/")) return path;
  return variable({"HOME"}) + path.substr(1);
}

fs::path hf_home() {
  const std::string home = variable({"HF_HOME"});
  if (!home.empty()) return expand_home(home);
  const std::string cache = variable({"XDG_CACHE_HOME"});
  return fs::path(cache.empty() ? expand_home("~/.cache") : expand_home(cache)) / "huggingface";
}

bool is_set(std::initializer_list<const char*> names) {
  const std::string value = variable(names);
  for (const char* yes : {"1", "on", "yes", "true"}) {
    if (strcasecmp(value.c_str(), yes) == 0) return true;
  }
  return false;
}

std::string trimmed(std::string text) {
  text.erase(0, std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  text.erase(text.find_last_not_of(" \t\r\n") + 1);
  return text;
}

std::string find_token(const std::string& option) {
  if (!option.empty()) return trimmed(option);
  std::string value = trimmed(variable({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}));
  if (!value.empty()) return value;
  std::string path = expand_home(variable({"HF_TOKEN_PATH"}));
  if (path.empty()) path = (hf_home() / "token").string();
  std::error_code ignored;
  return fs::is_regular_file(path, ignored) ? trimmed(read_file(path)) : "";
}

}  // namespace

HubSettings hub_settings(const HubOptions& options) {
  HubSettings settings;
  if (!options.revision.empty()) settings.revision = options.revision;
  settings.token = find_token(options.token);
  settings.cache_dir = expand_home(options.cache_dir);
  if (settings.cache_dir.empty()) {
    settings.cache_dir = expand_home(variable({"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}));
  }
  if (settings.cache_dir.empty()) settings.cache_dir = (hf_home() / "hub").string();
  settings.endpoint = options.endpoint.empty() ? variable({"HF_ENDPOINT"}) : options.endpoint;
  if (settings.endpoint.empty()) settings.endpoint = "https://huggingface.co";
  while (settings.endpoint.ends_with('/')) settings.endpoint.pop_back();
  parse_url(settings.endpoint);
  settings.offline =
      options.offline || is_set({"HF_HUB_OFFLINE"}) || is_set({"TRANSFORMERS_OFFLINE"});
  settings.update = options.update;
  settings.quiet = options.quiet;
  check(options.connections >= 1 && options.connections <= 64,
        "between 1 and 64 connections, not {}", options.connections);
  settings.connections = options.connections;
  return settings;
}

}  // namespace reft
