// Renders conversations with a model's Jinja template, equal to transformers' apply_chat_template.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace reft {

struct ChatTemplateInput {
  Json messages = Json::array();  // OpenAI messages; content a string, null or parts
  Json tools;                     // array of tools, or null
  bool add_generation_prompt = true;
  // Leaves the last message open; excludes add_generation_prompt.
  bool continue_final_message = false;
  Json kwargs = Json::object();  // chat_template_kwargs: extra variables (enable_thinking …)
  std::string bos_token;
  std::string eos_token;
  std::string pad_token;
};

// Bytes [begin, end) of a text.
struct TextSpan {
  size_t begin = 0;
  size_t end = 0;
};

// Immutable and thread-safe. Sandboxed: no I/O, caps on instructions, output bytes, recursion and
// time.
class ChatTemplate {
 public:
  // Compiles; throws Error with line and column of a syntax error.
  explicit ChatTemplate(std::string source);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // Throws Error with the template's own message for raise_exception, and for exceeded caps.
  std::string render(const ChatTemplateInput& input) const;
  // As render(), and what {% generation %} blocks wrote.
  std::string render(const ChatTemplateInput& input, std::vector<TextSpan>* generated) const;
  // Whether there is a {% generation %} block.
  bool marks_generation() const;
  const std::string& source() const;
  // "string" when the template treats content as text only, "openai" when it loops over content
  // parts.
  std::string content_format() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// `--chat_template`: a built-in name (chatml, qwen2, qwen3, llama3, gemma, gemma3, deepseek …), a
// path to a .jinja file, or the template itself (contains "{{" or "{%"). Throws Error listing the
// built-in names.
std::string resolve_chat_template(const std::string& name_path_or_text);
std::vector<std::string> builtin_chat_templates();
// The built-in that fits a config.json's model_type, for models that ship none; empty when there is
// no good guess.
std::string default_chat_template(std::string_view model_type);

}  // namespace reft
