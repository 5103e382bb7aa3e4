// Conversations to prompts: checks the messages and tools, renders the template, encodes. Used by
// chat completions, /tokenize and /apply_template.
#pragma once

#include <string>
#include <vector>

#include "server/json_body.h"
#include "server/request_context.h"

namespace reft {

struct ChatPrompt {
  ChatTemplateInput input;
  std::string chat_template;  // the request's own; empty: the server's
  bool add_special_tokens = false;
  std::string last_role;     // of the last message
  std::string last_content;  // its text, for `echo`
};

// Reads messages, tools, tool_choice, add_generation_prompt, continue_final_message, chat_template,
// chat_template_kwargs, documents, add_special_tokens. Throws RequestError naming the field.
ChatPrompt parse_chat_prompt(const Fields& fields, const RequestContext& context);

// The template's text. Throws RequestError with the template's own message.
std::string render_chat_prompt(const ChatPrompt& prompt, const RequestContext& context);
// Special tokens in the text become ids; add_special_tokens as asked for (off by default: the
// template writes them).
std::vector<int32_t> encode_chat_prompt(const ChatPrompt& prompt, const std::string& text,
                                        const RequestContext& context);

// Whether the template and the tokenizer are those of answers in channels (text/harmony.h).
bool writes_harmony(const ChatPrompt& prompt, const RequestContext& context);

}  // namespace reft
