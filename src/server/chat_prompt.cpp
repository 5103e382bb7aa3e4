#include "server/chat_prompt.h"

#include <algorithm>
#include <array>

#include "engine/request.h"
#include "text/harmony.h"

namespace reft {
namespace {

constexpr size_t kMaxTools = 1024;
constexpr size_t kMaxKwargs = 128;

bool is_text_part(std::string_view type) {
  return type == "text" || type == "input_text" || type == "output_text" || type == "refusal" ||
         type == "thinking";
}

// One part of a message's content as text.
std::string part_text(const Json& part, const std::string& name) {
  if (part.is_string()) return part.get<std::string>();
  if (!part.is_object()) {
    throw RequestError(fmt::format("'{}' must be an object, got {}", name, json_type_name(part)),
                       name);
  }
  const Fields fields(part, name + ".");
  const auto type = fields.string("type");
  if (!type && fields.get("text") == nullptr) fields.refuse("type", "is missing");
  if (type && !is_text_part(*type)) {
    const std::string kind = type->substr(0, 64);
    for (std::string_view media : {"image_url", "input_image", "image", "input_audio", "audio_url",
                                   "video_url", "input_video", "file", "image_embeds"}) {
      if (*type == media) {
        throw RequestError(
            fmt::format("'{}' is of type '{}', but this model only takes text", name, kind), name);
      }
    }
    throw RequestError(fmt::format("'{}.type' has the unknown value '{}'", name, kind),
                       name + ".type");
  }
  const char* key = type && *type == "refusal" ? "refusal" : "text";
  if (type && *type == "thinking") key = "thinking";
  const auto text = fields.string(key);
  if (!text) fields.refuse(key, "is missing");
  return *text;
}

// Content in the form that the template wants: one string, or a list of text parts.
Json message_content(const Json& content, const std::string& name, bool as_parts,
                     std::string* flat) {
  std::vector<std::string> texts;
  if (content.is_string()) {
    texts.push_back(content.get<std::string>());
  } else if (content.is_array()) {
    for (size_t i = 0; i < content.size(); ++i) {
      texts.push_back(part_text(content[i], fmt::format("{}[{}]", name, i)));
    }
  } else {
    throw RequestError(fmt::format("'{}' must be a string or an array of parts, got {}", name,
                                   json_type_name(content)),
                       name);
  }
  flat->clear();
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i > 0) *flat += '\n';
    *flat += texts[i];
  }
  if (!as_parts) return *flat;
  Json parts = Json::array();
  for (std::string& text : texts) {
    Json part = Json::object();
    part["type"] = "text";
    part["text"] = std::move(text);
    parts.push_back(std::move(part));
  }
  return parts;
}

// Templates want the arguments as an object; clients send them as the string the model wrote.
Json tool_calls(const Json& calls, const std::string& name) {
  Json out = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string call_name = fmt::format("{}[{}]", name, i);
    if (!calls[i].is_object()) {
      throw RequestError(
          fmt::format("'{}' must be an object, got {}", call_name, json_type_name(calls[i])),
          call_name);
    }
    Json call = calls[i];
    const Fields fields(call, call_name + ".");
    fields.string("id");
    const auto type = fields.string("type");
    if (type && *type != "function") {
      fields.refuse("type", fmt::format("must be 'function', got '{}'", type->substr(0, 64)));
    }
    const Json* function = fields.object("function");
    if (function == nullptr) fields.refuse("function", "is missing");
    const Fields function_fields(*function, call_name + ".function.");
    if (!function_fields.string("name")) function_fields.refuse("name", "is missing");
    Json arguments = Json::object();
    if (const Json* value = function_fields.get("arguments")) {
      if (value->is_string()) {
        const std::string& text = value->get_ref<const std::string&>();
        if (text.find_first_not_of(" \t\r\n") != std::string::npos) {
          try {
            arguments = parse_request_body(text);
          } catch (const Error& e) {
            function_fields.refuse("arguments", fmt::format("must be a JSON object: {}", e.what()));
          }
        }
      } else if (value->is_object()) {
        arguments = *value;
      } else {
        function_fields.refuse("arguments",
                               fmt::format("must be a string that holds a JSON object, got {}",
                                           json_type_name(*value)));
      }
    }
    call["type"] = "function";
    call["function"]["arguments"] = std::move(arguments);
    out.push_back(std::move(call));
  }
  return out;
}

// What the template's text tells of the messages that it wants.
struct TemplateTraits {
  bool developer = false;  // has the role; else it is a system message
  bool thinking = false;   // reads reasoning under this name (GPT-OSS)
};

Json check_message(const Json& message, const std::string& name, bool as_parts,
                   const TemplateTraits& traits, std::string* flat) {
  if (!message.is_object()) {
    throw RequestError(fmt::format("'{}' must be an object, got {}", name, json_type_name(message)),
                       name);
  }
  const Fields fields(message, name + ".");
  std::string role = fields.string("role").value_or("");
  if (role.empty()) fields.refuse("role", "is missing");
  constexpr std::array kRoles = {"system", "developer", "user", "assistant", "tool", "function"};
  if (std::find(kRoles.begin(), kRoles.end(), role) == kRoles.end()) {
    fields.refuse("role", fmt::format("must be system, developer, user, assistant, tool or "
                                      "function, got '{}'",
                                      role.substr(0, 64)));
  }
  if (role == "tool" && !fields.string("tool_call_id")) {
    fields.refuse("tool_call_id", "is missing: a tool message answers a call");
  }
  if (role == "developer" && !traits.developer) role = "system";
  if (role == "function") role = "tool";

  Json out = Json::object();
  out["role"] = role;
  flat->clear();
  const Json* content = fields.get("content");
  if (content != nullptr) {
    out["content"] = message_content(*content, name + ".content", as_parts, flat);
  } else if (role == "assistant") {
    out["content"] = as_parts ? Json::array() : Json("");
  } else {
    fields.refuse("content", "is missing");
  }
  if (auto value = fields.string("name")) out["name"] = *value;
  if (auto value = fields.string("tool_call_id")) out["tool_call_id"] = *value;
  if (const Json* calls = fields.array("tool_calls"); calls != nullptr && !calls->empty()) {
    if (role != "assistant") fields.refuse("tool_calls", "is only allowed for the assistant");
    out["tool_calls"] = tool_calls(*calls, name + ".tool_calls");
  }
  for (const char* key : {"reasoning", "reasoning_content"}) {
    if (auto value = fields.string(key)) {
      out["reasoning"] = *value;
      out["reasoning_content"] = *value;
      // Its template takes one text before a call.
      const bool spoken = out.contains("tool_calls") && !flat->empty();
      if (traits.thinking && !spoken) out["thinking"] = *value;
    }
  }
  return out;
}

Json check_tools(const Fields& fields) {
  const Json* tools = fields.array("tools");
  if (fields.get("functions") != nullptr) {
    fields.refuse("functions", "is no longer supported: use 'tools'");
  }
  if (fields.get("function_call") != nullptr) {
    fields.refuse("function_call", "is no longer supported: use 'tool_choice'");
  }
  bool hide_tools = false;
  if (const Json* choice = fields.get("tool_choice")) {
    if (choice->is_string()) {
      const auto& text = choice->get_ref<const std::string&>();
      hide_tools = text == "none";
      if (text == "required") {
        fields.refuse("tool_choice", "'required' is not supported yet: use 'auto' or 'none'");
      }
      if (text != "none" && text != "auto") {
        fields.refuse("tool_choice", "must be 'none' or 'auto'");
      }
    } else if (choice->is_object()) {
      fields.refuse("tool_choice", "that names a tool is not supported yet: use 'auto' or 'none'");
    } else {
      fields.refuse("tool_choice",
                    fmt::format("must be a string or an object, got {}", json_type_name(*choice)));
    }
  }
  fields.boolean("parallel_tool_calls");
  if (tools == nullptr || tools->empty()) return nullptr;
  if (tools->size() > kMaxTools) {
    fields.refuse("tools",
                  fmt::format("has {} items; at most {} are allowed", tools->size(), kMaxTools));
  }
  for (size_t i = 0; i < tools->size(); ++i) {
    const std::string name = fields.name(fmt::format("tools[{}]", i));
    const Json& tool = (*tools)[i];
    if (!tool.is_object()) {
      throw RequestError(fmt::format("'{}' must be an object, got {}", name, json_type_name(tool)),
                         name);
    }
    const Fields tool_fields(tool, name + ".");
    const auto type = tool_fields.string("type");
    if (type && *type != "function") {
      tool_fields.refuse(
          "type", fmt::format("'{}' is not supported; only 'function' is", type->substr(0, 64)));
    }
    const Json* function = tool_fields.object("function");
    if (function == nullptr) tool_fields.refuse("function", "is missing");
    const Fields function_fields(*function, name + ".function.");
    const auto function_name = function_fields.string("name");
    if (!function_name || function_name->empty() || function_name->size() > 256) {
      function_fields.refuse("name", "must be a string of 1 to 256 bytes");
    }
    function_fields.string("description");
    function_fields.object("parameters");
  }
  return hide_tools ? Json(nullptr) : *tools;
}

std::string token_text(const Tokenizer& tokenizer, const std::optional<int32_t>& id) {
  return id ? tokenizer.token_bytes(*id) : std::string();
}

}  // namespace

ChatPrompt parse_chat_prompt(const Fields& fields, const RequestContext& context) {
  ChatPrompt out;
  if (const auto own = fields.string("chat_template")) {
    if (!context.trust_request_chat_template) {
      fields.refuse("chat_template",
                    "in a request is refused: start the server with --trust_request_chat_template");
    }
    out.chat_template = *own;
  } else if (context.chat_template == nullptr) {
    throw RequestError(
        "this model has no chat template: start the server with --chat_template, or use "
        "/v1/completions",
        "messages");
  }
  const Json* messages = fields.array("messages");
  if (messages == nullptr) fields.refuse("messages", "is missing");
  if (messages->empty()) fields.refuse("messages", "must not be empty");

  const std::string& source =
      out.chat_template.empty() ? context.chat_template->source() : out.chat_template;
  std::string format = context.chat_template_content_format;
  if (format == "auto") {
    format = out.chat_template.empty() ? context.chat_template->content_format() : "string";
  }
  const TemplateTraits traits{.developer = source.find("developer") != std::string::npos,
                              .thinking = source.find("message.thinking") != std::string::npos};
  for (size_t i = 0; i < messages->size(); ++i) {
    out.input.messages.push_back(check_message((*messages)[i],
                                               fields.name(fmt::format("messages[{}]", i)),
                                               format == "openai", traits, &out.last_content));
  }
  out.last_role = out.input.messages.back()["role"].get<std::string>();
  out.input.tools = check_tools(fields);

  const auto add_prompt = fields.boolean("add_generation_prompt");
  out.input.continue_final_message = fields.boolean("continue_final_message").value_or(false);
  if (out.input.continue_final_message && add_prompt.value_or(false)) {
    fields.refuse("continue_final_message", "and 'add_generation_prompt' cannot both be true");
  }
  out.input.add_generation_prompt = add_prompt.value_or(!out.input.continue_final_message);
  out.add_special_tokens = fields.boolean("add_special_tokens").value_or(false);

  out.input.kwargs = context.default_chat_template_kwargs;
  if (const Json* kwargs = fields.object("chat_template_kwargs")) {
    if (kwargs->size() > kMaxKwargs) {
      fields.refuse("chat_template_kwargs",
                    fmt::format("has {} keys; at most {} are allowed", kwargs->size(), kMaxKwargs));
    }
    for (const auto& [key, value] : kwargs->get_ref<const Json::object_t&>()) {
      for (std::string_view reserved :
           {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize",
            "chat_template", "return_dict", "return_tensors", "bos_token", "eos_token",
            "pad_token"}) {
        if (key == reserved) {
          fields.refuse("chat_template_kwargs", fmt::format("must not set '{}'", key));
        }
      }
      out.input.kwargs[key] = value;
    }
  }
  if (const auto effort = fields.string("reasoning_effort")) {
    out.input.kwargs["reasoning_effort"] = *effort;
  }
  if (const Json* documents = fields.array("documents")) out.input.kwargs["documents"] = *documents;

  if (const Tokenizer* tokenizer = context.tokenizer.get()) {
    out.input.bos_token = token_text(*tokenizer, tokenizer->bos_id());
    out.input.eos_token = token_text(*tokenizer, tokenizer->eos_id());
    out.input.pad_token = token_text(*tokenizer, tokenizer->pad_id());
  }
  return out;
}

std::string render_chat_prompt(const ChatPrompt& prompt, const RequestContext& context) {
  try {
    if (prompt.chat_template.empty()) return context.chat_template->render(prompt.input);
  } catch (const RequestError&) {
    throw;
  } catch (const Error& e) {
    throw RequestError(fmt::format("the chat template refuses the messages: {}", e.what()),
                       "messages");
  }
  try {
    return ChatTemplate(prompt.chat_template).render(prompt.input);
  } catch (const Error& e) {
    throw RequestError(fmt::format("the request's chat template fails: {}", e.what()),
                       "chat_template");
  }
}

std::vector<int32_t> encode_chat_prompt(const ChatPrompt& prompt, const std::string& text,
                                        const RequestContext& context) {
  EncodeOptions options;
  options.add_special_tokens = prompt.add_special_tokens;
  options.parse_special = true;
  return context.require_tokenizer().encode(text, options);
}

bool writes_harmony(const ChatPrompt& prompt, const RequestContext& context) {
  const std::string& source =
      prompt.chat_template.empty() ? context.chat_template->source() : prompt.chat_template;
  return source.find("<|channel|>") != std::string::npos && context.tokenizer != nullptr &&
         HarmonyParser::understands(*context.tokenizer);
}

}  // namespace reft
