#include "train/data/chat_encoder.h"

#include <algorithm>
#include <optional>

namespace reft {
namespace {

size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + std::min(a.size(), b.size()), b.begin()).first -
      a.begin());
}

size_t common_suffix(std::string_view a, std::string_view b) {
  const size_t n = std::min(a.size(), b.size());
  size_t i = 0;
  while (i < n && a[a.size() - 1 - i] == b[b.size() - 1 - i]) ++i;
  return i;
}

bool inside_character(std::string_view text, size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
}

// A text that is nowhere in `text`: of private-use characters, which no template cuts or changes.
std::string strange_text(const std::string& text) {
  for (std::string candidate : {"\uE000\uE001", "\uE002\uE003", "\U000F0000\U000F0001"}) {
    // The first character alone must be new, or the texts could agree for longer than the prompt.
    if (text.find(candidate.substr(0, candidate.size() / 2)) == std::string::npos) return candidate;
  }
  fail("the conversation uses all private-use characters that would show where an answer begins");
}

// Message i with another answer, which is all that it has.
Json replace_answer(const Json& messages, size_t i, const std::string& answer, bool keep_calls) {
  Json out = messages;
  Json& message = out[i];
  if (message["content"].is_array()) {
    message["content"] = Json::array({{{"type", "text"}, {"text", answer}}});
  } else {
    message["content"] = answer;
  }
  message.erase("reasoning_content");
  if (!keep_calls) {
    message.erase("tool_calls");
  } else if (message.contains("tool_calls")) {
    for (Json& call : message["tool_calls"]) {
      call["function"]["name"] = answer;
      call["function"]["arguments"] = Json::object();
    }
  }
  return out;
}

// Where in `text` the content of message i lies, from a rendering with other content.
struct Place {
  size_t begin;
  size_t end;
};
std::optional<Place> find_content(const ChatTemplate& chat_template, const ChatTemplateInput& input,
                                  const std::string& text, size_t i, const std::string& strange) {
  ChatTemplateInput other = input;
  std::string rendered;
  try {
    other.messages = replace_answer(input.messages, i, strange, false);
    rendered = chat_template.render(other);
  } catch (const Error&) {
    // Some templates want as many results as there were calls.
    other.messages = replace_answer(input.messages, i, strange, true);
    rendered = chat_template.render(other);
  }
  if (rendered.find(strange) == std::string::npos) return std::nullopt;
  Place place;
  place.begin = common_prefix(text, rendered);
  while (inside_character(text, place.begin)) --place.begin;
  place.end = std::max(text.size() - common_suffix(text, rendered), place.begin);
  while (inside_character(text, place.end)) ++place.end;
  return place;
}

// What the template writes for the assistant to go on, before the last answer.
std::string generation_prompt(const ChatTemplate& chat_template, const ChatTemplateInput& input) {
  size_t last = input.messages.size();
  while (last > 0 && input.messages[last - 1]["role"] != "assistant") --last;
  if (last < 2) return "";  // templates do not like conversations without messages
  ChatTemplateInput before = input;
  before.messages =
      Json(input.messages.begin(), input.messages.begin() + static_cast<ptrdiff_t>(last - 1));
  const std::string closed = chat_template.render(before);
  before.add_generation_prompt = true;
  const std::string open = chat_template.render(before);
  return open.substr(common_prefix(open, closed));
}

// Which token a byte of the text belongs to.
class TokenPlaces {
 public:
  TokenPlaces(const Tokenizer& tokenizer, const std::string& text, const std::vector<int32_t>& ids)
      : tokenizer_(tokenizer), text_(text), ids_(ids) {
    size_t at = 0;
    starts_.reserve(ids.size());
    for (int32_t id : ids) {
      const std::string bytes = tokenizer.token_bytes(id);
      starts_.push_back(at);
      if (text.compare(at, bytes.size(), bytes) != 0) {
        starts_.clear();
        return;
      }
      at += bytes.size();
    }
    if (at != text.size()) starts_.clear();
  }

  // Tokens that end at or before byte `at`; `clean`: the last of them ends there.
  size_t count_before(size_t at, bool* clean) const {
    if (!starts_.empty()) {
      const auto it = std::lower_bound(starts_.begin(), starts_.end(), at);
      *clean = it == starts_.end() ? at == text_.size() : *it == at;
      const size_t count = static_cast<size_t>(it - starts_.begin());
      return *clean ? count : count - 1;
    }
    // Where tokens do not spell the text (it was normalised): the tokens that the text up to here
    // has in common with the whole.
    const std::vector<int32_t> head =
        tokenizer_.encode(std::string_view(text_).substr(0, at), {.add_special_tokens = false});
    const size_t n = std::min(head.size(), ids_.size());
    const size_t count = static_cast<size_t>(
        std::mismatch(head.begin(), head.begin() + static_cast<ptrdiff_t>(n), ids_.begin()).first -
        head.begin());
    *clean = count == head.size();
    return count;
  }

  TokenSpan tokens_of(const TextSpan& span) const {
    bool clean = false;
    TokenSpan out;
    out.begin = count_before(span.begin, &clean);
    out.end = count_before(span.end, &clean);
    if (!clean && span.end > span.begin) ++out.end;
    return out;
  }

 private:
  const Tokenizer& tokenizer_;
  const std::string& text_;
  const std::vector<int32_t>& ids_;
  std::vector<size_t> starts_;  // empty: the tokens do not spell the text
};

std::string token_text(const Tokenizer& tokenizer, const std::optional<int32_t>& id) {
  return id ? tokenizer.token_bytes(*id) : std::string();
}

}  // namespace

ChatEncoder::ChatEncoder(const std::string& chat_template, const Tokenizer& tokenizer, Json kwargs)
    : template_(chat_template),
      tokenizer_(tokenizer),
      wants_parts_(template_.content_format() == "openai") {
  base_.add_generation_prompt = false;
  base_.kwargs = std::move(kwargs);
  base_.bos_token = token_text(tokenizer, tokenizer.bos_id());
  base_.eos_token = token_text(tokenizer, tokenizer.eos_id());
  base_.pad_token = token_text(tokenizer, tokenizer.pad_id());
}

ChatTemplateInput ChatEncoder::make_input(const Json& messages, const Json& tools) const {
  ChatTemplateInput input = base_;
  input.messages = messages;
  input.tools = tools;
  if (wants_parts_) {
    for (Json& message : input.messages) {
      message["content"] = Json::array({{{"type", "text"}, {"text", message["content"]}}});
    }
  }
  return input;
}

EncodedChat ChatEncoder::encode(const Json& messages, const Json& tools) const {
  const ChatTemplateInput input = make_input(messages, tools);
  std::vector<TextSpan> spans;
  const std::string text = template_.render(input, &spans);
  EncodedChat chat;
  chat.ids = tokenizer_.encode(text, {.add_special_tokens = false});
  const bool marked = template_.marks_generation();
  if (!marked) spans = find_answers(input, text);
  const TokenPlaces places(tokenizer_, text, chat.ids);
  for (size_t i = 0; i < spans.size(); ++i) {
    TokenSpan answer = places.tokens_of(spans[i]);
    if (!marked) {
      bool clean = false;
      const size_t limit =
          i + 1 < spans.size() ? places.count_before(spans[i + 1].begin, &clean) : chat.ids.size();
      for (size_t t = answer.end; t < limit; ++t) {
        if (!tokenizer_.is_special(chat.ids[t])) continue;
        answer.end = t + 1;
        break;
      }
    }
    if (!chat.answers.empty()) answer.begin = std::max(answer.begin, chat.answers.back().end);
    if (answer.end > answer.begin) chat.answers.push_back(answer);
  }
  return chat;
}

std::vector<TextSpan> ChatEncoder::find_answers(const ChatTemplateInput& input,
                                                const std::string& text) const {
  const std::string strange = strange_text(text);
  const std::string prompt = generation_prompt(template_, input);
  std::vector<TextSpan> answers;
  for (size_t i = 0; i < input.messages.size(); ++i) {
    if (input.messages[i]["role"] != "assistant") continue;
    const std::optional<Place> place = find_content(template_, input, text, i, strange);
    if (!place) continue;  // the template leaves the message out
    TextSpan answer{place->begin, place->end};
    const std::string_view head = std::string_view(text).substr(0, place->begin);
    if (!head.ends_with(prompt)) {
      // The template writes something between the prompt and the content (an empty thought), which
      // the assistant has to write too; or it is not the prompt that this message has behind it.
      size_t floor = 0;
      if (i > 0) {
        const auto before = find_content(template_, input, text, i - 1, strange);
        floor = before ? before->end : answers.empty() ? 0 : answers.back().end;
      }
      check(floor <= place->begin,
            "the chat template does not show where the answer of message {} begins: mark it with "
            "{{% generation %}}",
            i);
      const size_t at = head.substr(floor).rfind(prompt);
      if (at != std::string_view::npos) answer.begin = floor + at + prompt.size();
    }
    check(answers.empty() || answer.begin >= answers.back().end,
          "the chat template does not write the messages in their order: mark the assistant's with "
          "{{% generation %}}");
    answers.push_back(answer);
  }
  return answers;
}

}  // namespace reft
