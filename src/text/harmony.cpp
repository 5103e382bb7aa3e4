#include "text/harmony.h"

#include <array>

#include "base/check.h"

namespace reft {

namespace {

constexpr std::array kNeeded = {"<|start|>",     "<|end|>",    "<|message|>", "<|channel|>",
                                "<|constrain|>", "<|return|>", "<|call|>"};

int32_t require(const Tokenizer& tokenizer, const char* token) {
  const std::optional<int32_t> id = tokenizer.token_to_id(token);
  check(id.has_value(), "harmony: the tokenizer has no token {}", token);
  return *id;
}

std::string_view first_word(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_first_of(" \t\r\n", begin) - begin);
}

// What follows "to=" in a part of a header; empty where it is not there.
std::string_view recipient_in(std::string_view text) {
  const size_t at = text.find("to=");
  return at == std::string_view::npos ? std::string_view() : first_word(text.substr(at + 3));
}

}  // namespace

bool HarmonyParser::understands(const Tokenizer& tokenizer) {
  for (const char* token : kNeeded) {
    if (!tokenizer.token_to_id(token)) return false;
  }
  return true;
}

HarmonyParser::HarmonyParser(const Tokenizer& tokenizer)
    : tokenizer_(tokenizer),
      start_(require(tokenizer, "<|start|>")),
      end_(require(tokenizer, "<|end|>")),
      message_(require(tokenizer, "<|message|>")),
      channel_(require(tokenizer, "<|channel|>")),
      constrain_(require(tokenizer, "<|constrain|>")),
      return_(require(tokenizer, "<|return|>")),
      call_(require(tokenizer, "<|call|>")) {
  begin_header();
}

void HarmonyParser::begin_header() {
  state_ = State::kHeader;
  author_.clear();
  channel_text_.clear();
  type_text_.clear();
  header_ = &author_;
  stream_ = tokenizer_.start_decode(/*skip_special_tokens=*/true);
}

void HarmonyParser::end_header(std::vector<AnswerDelta>& out) {
  *header_ += stream_->finish();
  state_ = State::kBody;
  stream_ = tokenizer_.start_decode(/*skip_special_tokens=*/true);
  std::string_view recipient = recipient_in(author_);
  if (recipient.empty()) recipient = recipient_in(channel_text_);
  const bool called =
      !recipient.empty() && recipient != "assistant" && recipient != "user" && recipient != "all";
  if (called) {
    constexpr std::string_view kFunctions = "functions.";
    if (recipient.starts_with(kFunctions)) recipient.remove_prefix(kFunctions.size());
    kind_ = AnswerDelta::Kind::kToolCall;
    out.push_back({.kind = kind_, .text = "", .tool_name = std::string(recipient)});
    return;
  }
  // What a model says between calls (commentary to nobody) is for the user.
  kind_ = first_word(channel_text_) == "analysis" ? AnswerDelta::Kind::kReasoning
                                                  : AnswerDelta::Kind::kContent;
}

void HarmonyParser::put(std::string text, std::vector<AnswerDelta>& out) {
  if (!text.empty()) out.push_back({.kind = kind_, .text = std::move(text), .tool_name = ""});
}

void HarmonyParser::end_body(std::vector<AnswerDelta>& out) {
  put(stream_->finish(), out);
  state_ = State::kBetween;
}

std::vector<AnswerDelta> HarmonyParser::add(int32_t id) {
  std::vector<AnswerDelta> out;
  if (id == end_ || id == return_ || id == call_) {
    if (state_ == State::kBody) end_body(out);
    state_ = State::kBetween;
    return out;
  }
  if (id == start_) {
    if (state_ == State::kBody) end_body(out);
    begin_header();
    return out;
  }
  if (id == channel_ || id == constrain_) {
    if (state_ == State::kBody) end_body(out);  // a message without an end
    if (state_ != State::kHeader) begin_header();
    *header_ += stream_->finish();
    header_ = id == channel_ ? &channel_text_ : &type_text_;
    stream_ = tokenizer_.start_decode(/*skip_special_tokens=*/true);
    return out;
  }
  if (id == message_) {
    if (state_ == State::kBody) end_body(out);
    if (state_ != State::kHeader) begin_header();
    end_header(out);
    return out;
  }
  if (state_ == State::kHeader) {
    *header_ += stream_->add(id);
  } else if (state_ == State::kBody) {
    put(stream_->add(id), out);
  }
  return out;
}

std::vector<AnswerDelta> HarmonyParser::finish() {
  std::vector<AnswerDelta> out;
  if (state_ == State::kBody) end_body(out);
  state_ = State::kBetween;
  return out;
}

}  // namespace reft
