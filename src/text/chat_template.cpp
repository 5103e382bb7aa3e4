#include "text/chat_template.h"

#include <algorithm>

#include "text/jinja_interpreter.h"
#include "text/jinja_parser.h"
#include "text/jinja_text.h"

namespace reft {
namespace {

constexpr int64_t kMaxSteps = 20'000'000;
constexpr std::chrono::milliseconds kMaxTime{5000};
constexpr size_t kMaxStringBytes = size_t{64} << 20;
constexpr size_t kMaxLiveBytes = size_t{512} << 20;
constexpr size_t kMaxItems = size_t{1} << 20;

// Names under which a message's reasoning is passed; the first is the one that templates read.
constexpr const char* kReasoningFields[] = {"reasoning_content", "thinking", "reasoning"};
// Variables that a request may not smuggle in through chat_template_kwargs: they have fields of
// their own, or would change what rendering returns.
constexpr std::string_view kReservedKwargs[] = {"messages",
                                                "conversation",
                                                "chat",
                                                "tools",
                                                "chat_template",
                                                "tokenize",
                                                "return_dict",
                                                "padding",
                                                "truncation",
                                                "add_generation_prompt",
                                                "max_length",
                                                "return_tensors",
                                                "tokenizer",
                                                "tokenizer_kwargs",
                                                "continue_final_message",
                                                "return_assistant_tokens_mask"};

// transformers fills `reasoning_content` from its other names, and `thinking`.
void alias_reasoning(Json& message) {
  for (const char* field : kReasoningFields) {
    auto it = message.find(field);
    if (it == message.end() || it->is_null()) continue;
    Json reasoning = *it;
    Json out = Json::object();
    out["thinking"] = reasoning;
    for (auto& [key, value] : message.items()) out[key] = value;
    out["reasoning_content"] = std::move(reasoning);
    message = std::move(out);
    return;
  }
}

// Marks the end of the final message; returns its text. The last text part counts when the content
// is a list.
std::string tag_final_message(Json& messages, const std::string& tag) {
  check(!messages.empty(), "continue_final_message is set but the conversation is empty");
  Json& message = messages.back();
  auto content = message.find("content");
  check(content != message.end() && !content->is_null(),
        "continue_final_message is set but the final message has no content to continue");
  Json* text = &*content;
  if (content->is_array()) {
    text = nullptr;
    for (auto part = content->rbegin(); part != content->rend() && text == nullptr; ++part) {
      if (part->is_object() && part->contains("text")) text = &(*part)["text"];
    }
    check(text != nullptr,
          "continue_final_message is set but the final message has no text to continue");
  }
  check(text->is_string(),
        "continue_final_message is set but the final message's content is not text");
  std::string final_text = text->get<std::string>();
  *text = final_text + tag;
  return final_text;
}

// Cuts the rendered chat after the final message, as transformers does.
void cut_after_final_message(std::string& rendered, const std::string& final_text,
                             const std::string& tag) {
  std::string_view bare_tag = jinja::strip(tag, true, true);
  size_t at = rendered.rfind(bare_tag);
  bool has_text = rendered.find(jinja::strip(final_text, true, true)) != std::string::npos;
  check(at != std::string::npos && has_text,
        "continue_final_message is set but the final message does not appear in the chat after "
        "applying the chat "
        "template: the template deletes portions of it");
  bool spacing_kept = rendered.compare(at, tag.size(), tag) == 0;
  rendered.resize(at);
  if (!spacing_kept) rendered.resize(jinja::strip(rendered, false, true).size());
}

}  // namespace

struct ChatTemplate::State {
  std::string source;
  std::shared_ptr<const jinja::Program> program;
};

ChatTemplate::ChatTemplate(std::string source) : state_(std::make_unique<State>()) {
  state_->program = jinja::parse_template(source);
  state_->source = std::move(source);
}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

const std::string& ChatTemplate::source() const { return state_->source; }
std::string ChatTemplate::content_format() const {
  return state_->program->loops_over_content ? "openai" : "string";
}

bool ChatTemplate::marks_generation() const { return state_->program->has_generation; }

std::string ChatTemplate::render(const ChatTemplateInput& input) const {
  std::vector<TextSpan> generated;
  return render(input, &generated);
}

std::string ChatTemplate::render(const ChatTemplateInput& input,
                                 std::vector<TextSpan>* generated) const {
  check(input.messages.is_array(), "messages must be an array");
  check(input.kwargs.is_object() || input.kwargs.is_null(),
        "chat_template_kwargs must be an object");
  check(!(input.continue_final_message && input.add_generation_prompt),
        "continue_final_message and add_generation_prompt exclude each other");
  Json messages = input.messages;
  for (Json& message : messages) {
    check(message.is_object(), "every message must be an object");
    alias_reasoning(message);
  }
  const std::string tag = "CONTINUE_FINAL_MESSAGE_TAG ";
  std::string final_text;
  if (input.continue_final_message) final_text = tag_final_message(messages, tag);

  jinja::Budget budget;
  budget.max_steps = kMaxSteps;
  budget.max_time = kMaxTime;
  budget.deadline = std::chrono::steady_clock::now() + kMaxTime;
  budget.max_string_bytes = kMaxStringBytes;
  budget.max_live_bytes = kMaxLiveBytes;
  budget.max_items = kMaxItems;
  budget.stack_base = static_cast<const char*>(__builtin_frame_address(0));
  jinja::BudgetScope scope(&budget);
  jinja::Interpreter interpreter(state_->program, budget);
  auto define_token = [&](const char* name, const std::string& token) {
    if (!token.empty()) interpreter.define(name, jinja::Value::string(token));
  };
  define_token("bos_token", input.bos_token);
  define_token("eos_token", input.eos_token);
  define_token("pad_token", input.pad_token);
  interpreter.define("documents", jinja::Value::none());
  if (input.kwargs.is_object()) {
    for (const auto& [key, value] : input.kwargs.items()) {
      check(std::find(std::begin(kReservedKwargs), std::end(kReservedKwargs), key) ==
                std::end(kReservedKwargs),
            "chat_template_kwargs must not set '{}'", key);
      interpreter.define(key, jinja::Value::from_json(value));
    }
  }
  interpreter.define("messages", jinja::Value::from_json(messages));
  interpreter.define("tools", jinja::Value::from_json(input.tools));
  interpreter.define("add_generation_prompt", jinja::Value::boolean(input.add_generation_prompt));
  std::string rendered = interpreter.render();
  generated->clear();
  for (const auto& [begin, end] : interpreter.generated()) generated->push_back({begin, end});
  if (input.continue_final_message) cut_after_final_message(rendered, final_text, tag);
  return rendered;
}

}  // namespace reft
