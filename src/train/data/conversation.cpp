#include "train/data/conversation.h"

#include <array>

namespace reft {
namespace {

std::string tag(const ColumnNames& names, const char* name, const char* usual) {
  const auto it = names.find(name);
  return it == names.end() ? usual : it->second;
}

const char* article(const Json& value) {
  return value.is_array() || value.is_object() ? "an" : "a";
}

// A column may hold JSON as text, as CSV must.
Json parse_if_text(const Json& value, const std::string& place, const std::string& field) {
  if (!value.is_string()) return value;
  try {
    return parse_json(value.get_ref<const std::string&>(), "it");
  } catch (const Error& e) {
    refuse_field(place, field, fmt::format("is not valid JSON: {}", e.what()));
  }
}

// Text, or the texts of a list of parts, one below the other as a server joins them.
std::string read_content(const Json& content, const std::string& place, const std::string& field) {
  if (content.is_null()) return "";
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) {
    refuse_field(
        place, field,
        fmt::format("must be a string, this is {} {}", article(content), content.type_name()));
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const std::string name = fmt::format("{}[{}]", field, i);
    if (!part.is_object() || part.value("type", "text") != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      refuse_field(place, name, "must be a part of type 'text': only text can be trained on");
    }
    if (i > 0) text += '\n';
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

// {"name": …, "arguments": {…} or text}, as an entry of tool_calls.
Json read_call(const Json& call, const std::string& place, const std::string& field) {
  if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) {
    refuse_field(place, field, "must be an object with a 'name'");
  }
  Json function = call;
  Json arguments = Json::object();
  if (const auto it = call.find("arguments"); it != call.end() && !it->is_null()) {
    arguments = parse_if_text(*it, place, field + ".arguments");
    if (!arguments.is_object()) {
      refuse_field(place, field + ".arguments", "must be an object, or the JSON text of one");
    }
  }
  function["arguments"] = std::move(arguments);
  return {{"type", "function"}, {"function", std::move(function)}};
}

Json read_tool_calls(const Json& calls, const std::string& place, const std::string& field) {
  if (!calls.is_array()) refuse_field(place, field, "must be a list");
  Json out = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string name = fmt::format("{}[{}]", field, i);
    if (!calls[i].is_object() || !calls[i].contains("function")) {
      refuse_field(place, name + ".function", "is missing");
    }
    Json call = calls[i];
    call.update(read_call(calls[i]["function"], place, name + ".function"));
    out.push_back(std::move(call));
  }
  return out;
}

enum class Role { kSystem, kUser, kAssistant, kTool, kCall };

Role read_role(const std::string& name, const ColumnNames& names, const std::string& place,
               const std::string& field) {
  struct Alias {
    const char* tag;
    const char* usual;
    Role role;
  };
  constexpr std::array kTags = {Alias{"system_tag", "system", Role::kSystem},
                                Alias{"user_tag", "human", Role::kUser},
                                Alias{"assistant_tag", "gpt", Role::kAssistant},
                                Alias{"observation_tag", "observation", Role::kTool},
                                Alias{"function_tag", "function_call", Role::kCall}};
  for (const Alias& alias : kTags) {
    if (name == tag(names, alias.tag, alias.usual)) return alias.role;
  }
  constexpr std::array kOthers = {Alias{"", "user", Role::kUser},
                                  Alias{"", "assistant", Role::kAssistant},
                                  Alias{"", "tool", Role::kTool},
                                  Alias{"", "function", Role::kTool},
                                  Alias{"", "developer", Role::kSystem},
                                  Alias{"", "model", Role::kAssistant},
                                  Alias{"", "function_response", Role::kTool}};
  for (const Alias& alias : kOthers) {
    if (name == alias.usual) return alias.role;
  }
  refuse_field(place, field, fmt::format("has the unknown role '{}'", name.substr(0, 64)));
}

}  // namespace

void refuse_field(const std::string& place, const std::string& field, const std::string& problem) {
  throw RowError(fmt::format("{}: '{}' {}", place, field, problem));
}

Json make_message(const char* role, std::string content) {
  return {{"role", role}, {"content", std::move(content)}};
}

Json read_message(const Json& message, const ColumnNames& names, const std::string& place,
                  const std::string& field) {
  if (!message.is_object()) {
    refuse_field(
        place, field,
        fmt::format("must be an object, this is {} {}", article(message), message.type_name()));
  }
  std::string role_name = tag(names, "role_tag", "");
  if (role_name.empty()) role_name = message.contains("role") ? "role" : "from";
  std::string content_name = tag(names, "content_tag", "");
  if (content_name.empty()) content_name = message.contains("value") ? "value" : "content";

  const auto role_text = message.find(role_name);
  const std::string role_field = field + "." + role_name;
  if (role_text == message.end() || !role_text->is_string()) {
    refuse_field(place, role_field, "is missing");
  }
  const Role role = read_role(role_text->get<std::string>(), names, place, role_field);
  const auto content = message.find(content_name);
  const auto calls = message.find("tool_calls");
  const bool has_calls = calls != message.end() && !calls->is_null() && !calls->empty();
  const std::string content_field = field + "." + content_name;
  if (content == message.end() && !has_calls) refuse_field(place, content_field, "is missing");
  if (content != message.end() && content->is_null() && role != Role::kAssistant) {
    refuse_field(place, content_field, "must be a string, this is null");
  }
  if (role == Role::kCall) {
    // One call, or a list of calls made at once.
    Json value = parse_if_text(*content, place, content_field);
    if (!value.is_array()) value = Json::array({std::move(value)});
    Json out = make_message("assistant", "");
    out["tool_calls"] = Json::array();
    for (const Json& call : value)
      out["tool_calls"].push_back(read_call(call, place, content_field));
    return out;
  }
  constexpr const char* kNames[] = {"system", "user", "assistant", "tool"};
  Json out = make_message(kNames[static_cast<int>(role)], "");
  if (content != message.end()) out["content"] = read_content(*content, place, content_field);
  if (has_calls) {
    if (role != Role::kAssistant)
      refuse_field(place, field + ".tool_calls", "is not the assistant's");
    out["tool_calls"] = read_tool_calls(*calls, place, field + ".tool_calls");
  }
  for (const char* key : {"name", "tool_call_id", "reasoning_content", "reasoning", "thinking"}) {
    const auto it = message.find(key);
    if (it == message.end() || it->is_null()) continue;
    if (!it->is_string()) refuse_field(place, field + "." + key, "must be a string");
    out[std::string_view(key) == "reasoning" || std::string_view(key) == "thinking"
            ? "reasoning_content"
            : key] = *it;
  }
  return out;
}

Json read_messages(const Json& messages, const ColumnNames& names, const std::string& place,
                   const std::string& field) {
  const Json list = parse_if_text(messages, place, field);
  if (list.is_object()) return Json::array({read_message(list, names, place, field)});
  if (!list.is_array()) {
    refuse_field(place, field,
                 fmt::format("must be a list of messages, this is a {}", list.type_name()));
  }
  Json out = Json::array();
  for (size_t i = 0; i < list.size(); ++i) {
    out.push_back(read_message(list[i], names, place, fmt::format("{}[{}]", field, i)));
  }
  return out;
}

Json read_tools(const Json& tools, const std::string& place, const std::string& field) {
  if (tools.is_null() || (tools.is_string() && tools.get_ref<const std::string&>().empty())) {
    return nullptr;
  }
  const Json list = parse_if_text(tools, place, field);
  if (!list.is_array()) refuse_field(place, field, "must be a list of tools");
  Json out = Json::array();
  for (size_t i = 0; i < list.size(); ++i) {
    Json tool = list[i];
    if (tool.is_object() && !tool.contains("function")) {
      tool = {{"type", "function"}, {"function", std::move(tool)}};
    }
    if (!tool.is_object() || !tool["function"].is_object() || !tool["function"].contains("name")) {
      refuse_field(place, fmt::format("{}[{}]", field, i), "must be a function with a 'name'");
    }
    out.push_back(std::move(tool));
  }
  return out.empty() ? Json(nullptr) : out;
}

}  // namespace reft
