// tokenizer_config.json, special_tokens_map.json, chat_template.jinja.
#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "text/tokenizer_pipeline.h"

namespace reft {
namespace {

// A token is written as a string or as an object with its content.
std::string token_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object()) return json_get(value, "content", std::string());
  return {};
}

// One template, or a list of named ones: "default" if there, else the first.
std::string template_text(const Json& value, const std::string& path) {
  if (value.is_null()) return {};
  if (value.is_string()) return value.get<std::string>();
  check(value.is_array(), "{}: chat_template is neither text nor a list", path);
  std::string first;
  for (const Json& item : value) {
    check(item.is_object(), "{}: a chat_template is not an object", path);
    auto text = json_get(item, "template", std::string());
    if (json_get(item, "name", std::string()) == "default") return text;
    if (first.empty()) first = std::move(text);
  }
  return first;
}

Json read_object(const std::string& path) {
  Json value = read_json_file(path);
  check(value.is_object(), "{}: not an object", path);
  return value;
}

// Classes whose Python code puts bos and eos around the text by its own rule, whatever the
// post-processor says.
bool sets_bos_itself(const std::string& name) {
  for (const char* known :
       {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"}) {
    if (name == known || name == std::string(known) + "Fast") return true;
  }
  return false;
}

AddedToken added_token_of(const Json& item) {
  AddedToken token;
  token.content = json_get(item, "content", std::string());
  token.special = json_get(item, "special", false);
  token.single_word = json_get(item, "single_word", false);
  token.lstrip = json_get(item, "lstrip", false);
  token.rstrip = json_get(item, "rstrip", false);
  token.normalized = json_get(item, "normalized", !token.special);
  return token;
}

void apply_added_tokens(const TokenizerConfig& config, TokenizerParts& parts) {
  const Json list = config.config.value("added_tokens_decoder", Json::object());
  if (!list.is_object()) return;
  std::vector<std::pair<int64_t, AddedToken>> tokens;
  for (const auto& [key, item] : list.items()) {
    const bool digits =
        !key.empty() && key.size() < 10 &&
        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    check(digits && item.is_object(), "{}: added_tokens_decoder: bad entry '{}'", config.path, key);
    tokens.emplace_back(std::stoll(key), added_token_of(item));
  }
  std::sort(tokens.begin(), tokens.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& [id, token] : tokens) {
    const int32_t known = parts.find(token.content);
    if (known >= 0 || token.content.empty()) {
      parts.add_token(std::move(token));
    } else if (id <= TokenTable::kMaxId && !parts.model->has_id(int32_t(id)) &&
               !parts.added.by_id(int32_t(id))) {
      token.id = int32_t(id);
      parts.added.add(std::move(token));
    }
  }
}

}  // namespace

std::string TokenizerConfig::token(const char* key) const {
  if (auto it = config.find(key); it != config.end() && !it->is_null()) return token_text(*it);
  if (auto it = special_map.find(key); it != special_map.end()) return token_text(*it);
  return {};
}

TokenizerConfig read_tokenizer_config(const std::string& folder) {
  namespace fs = std::filesystem;
  TokenizerConfig out;
  const std::string path = folder + "/tokenizer_config.json";
  if (fs::exists(path)) {
    out.path = path;
    out.config = read_object(path);
    out.chat_template = template_text(out.config.value("chat_template", Json()), path);
  }
  if (const std::string map = folder + "/special_tokens_map.json"; fs::exists(map))
    out.special_map = read_object(map);
  if (const std::string file = folder + "/chat_template.json"; fs::exists(file)) {
    out.chat_template = template_text(read_object(file).value("chat_template", Json()), file);
  }
  if (const std::string file = folder + "/chat_template.jinja"; fs::exists(file))
    out.chat_template = read_file(file);
  return out;
}

void apply_tokenizer_config(const TokenizerConfig& config, TokenizerParts& parts) {
  apply_added_tokens(config, parts);
  auto id_of = [&](const char* key) -> std::optional<int32_t> {
    const std::string text = config.token(key);
    const int32_t id = text.empty() ? -1 : parts.find(text);
    return id >= 0 ? std::optional<int32_t>(id) : std::nullopt;
  };
  if (auto id = id_of("bos_token")) parts.bos = id;
  if (auto id = id_of("eos_token")) parts.eos = id;
  if (auto id = id_of("pad_token")) parts.pad = id;
  if (!config.chat_template.empty()) parts.chat_template = config.chat_template;
  const auto name = json_get(config.config, "tokenizer_class", std::string());
  if (!sets_bos_itself(name)) return;
  parts.prefix.clear();
  parts.suffix.clear();
  if (json_get(config.config, "add_bos_token", true) && parts.bos)
    parts.prefix.push_back(*parts.bos);
  if (json_get(config.config, "add_eos_token", false) && parts.eos)
    parts.suffix.push_back(*parts.eos);
}

}  // namespace reft
