// Conversations to token ids, rendered and encoded as the server does it, and which of the tokens
// the assistant wrote, found by position:
//
// - A template with {% generation %} blocks says it itself.
// - Otherwise the conversation is rendered again with another answer in place of message i. The two
//   texts are equal up to where the answer begins and from where it ends on. What the generation
//   prompt would have written before it is the prompt's; the rest, thinking included, is the
//   answer's, up to and with the first special token behind it: the end of the turn.
//
// A token that belongs to two parts counts as part of the answer, as with transformers'
// return_assistant_tokens_mask. Immutable and thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace reft {

// Tokens [begin, end).
struct TokenSpan {
  size_t begin = 0;
  size_t end = 0;
};

struct EncodedChat {
  std::vector<int32_t> ids;
  std::vector<TokenSpan> answers;  // in order, none empty
};

class ChatEncoder {
 public:
  // `kwargs`: chat_template_kwargs (enable_thinking …). The tokenizer must outlive the encoder.
  // Throws Error with line and column of the template's syntax error.
  ChatEncoder(const std::string& chat_template, const Tokenizer& tokenizer,
              Json kwargs = Json::object());

  // messages, tools as in Example. Throws Error with the template's message, or when the template
  // does not show where an answer is.
  EncodedChat encode(const Json& messages, const Json& tools) const;

 private:
  ChatTemplateInput make_input(const Json& messages, const Json& tools) const;
  std::vector<TextSpan> find_answers(const ChatTemplateInput& input, const std::string& text) const;

  ChatTemplate template_;
  const Tokenizer& tokenizer_;
  ChatTemplateInput base_;
  bool wants_parts_;
};

}  // namespace reft
