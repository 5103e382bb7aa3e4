// The answers of GPT-OSS, token by token: messages in channels, which become reasoning, tool calls
// and content. Format: OpenAI's harmony response format.
//
//   <|channel|>analysis<|message|>…<|end|><|start|>assistant to=functions.f<|channel|>commentary
//   json<|message|>{…}<|call|>
//
// A header's recipient (to=…) may stand before or after the channel; both orders are in use.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace reft {

// A piece of an answer.
struct AnswerDelta {
  enum class Kind { kReasoning, kContent, kToolCall };
  Kind kind = Kind::kContent;
  std::string text;       // of a call: of its arguments
  std::string tool_name;  // with the first piece of a call
};

// One answer, whose prompt ends with "<|start|>assistant". Belongs to one thread at a time.
class HarmonyParser {
 public:
  // Whether the tokenizer has the tokens of the format.
  static bool understands(const Tokenizer& tokenizer);

  // The tokenizer must outlive the parser. Throws Error unless it understands the format.
  explicit HarmonyParser(const Tokenizer& tokenizer);
  HarmonyParser(const HarmonyParser&) = delete;
  HarmonyParser& operator=(const HarmonyParser&) = delete;

  // What became certain with this token, in order; mostly nothing or one piece.
  std::vector<AnswerDelta> add(int32_t id);
  // What is left at the end. Nothing may follow.
  std::vector<AnswerDelta> finish();

 private:
  enum class State { kHeader, kBody, kBetween };

  void begin_header();
  void end_header(std::vector<AnswerDelta>& out);
  void end_body(std::vector<AnswerDelta>& out);
  void put(std::string text, std::vector<AnswerDelta>& out);

  const Tokenizer& tokenizer_;
  int32_t start_, end_, message_, channel_, constrain_, return_, call_;
  State state_ = State::kHeader;
  // Of the header: role and recipient; then channel and recipient; then the content's type.
  std::string author_, channel_text_, type_text_;
  std::string* header_ = &author_;
  std::unique_ptr<DecodeStream> stream_;  // of the header's part or the body
  AnswerDelta::Kind kind_ = AnswerDelta::Kind::kContent;
};

}  // namespace reft
