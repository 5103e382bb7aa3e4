#include "train/data/example_encoder.h"

#include <algorithm>

namespace reft {
namespace {

// How many tokens of the part before the answer and of the answer are kept.
struct Split {
  size_t source;
  size_t target;
};
Split split_budget(size_t source, size_t target, size_t budget) {
  size_t most = 0;
  if (target * 2 < budget) {
    most = budget;
  } else if (source * 2 < budget) {
    most = budget - source;
  } else {
    // In double, as the rule was first written, so that both round alike.
    most =
        static_cast<size_t>(static_cast<double>(budget) *
                            (static_cast<double>(target) / static_cast<double>(source + target)));
  }
  target = std::min(most, target);
  return {std::min(budget - target, source), target};
}

void append(TrainSequence* out, const std::vector<int32_t>& ids, TokenSpan span, bool trained) {
  out->ids.insert(out->ids.end(), ids.begin() + static_cast<ptrdiff_t>(span.begin),
                  ids.begin() + static_cast<ptrdiff_t>(span.end));
  out->trained.resize(out->ids.size(), trained ? 1 : 0);
}

// The last answer of a conversation with all before it, in `budget.source` + `budget.target`
// tokens.
TrainSequence last_turn(const EncodedChat& chat, Split budget) {
  const TokenSpan answer = chat.answers.back();
  TrainSequence out;
  append(&out, chat.ids, {0, std::min(budget.source, answer.begin)}, false);
  append(&out, chat.ids, {answer.begin, std::min(answer.begin + budget.target, answer.end)}, true);
  return out;
}

size_t answer_size(const EncodedChat& chat) {
  return chat.answers.back().end - chat.answers.back().begin;
}

}  // namespace

Stage parse_stage(const std::string& name) {
  if (name == "pt") return Stage::kPretrain;
  if (name == "sft") return Stage::kSft;
  if (name == "dpo") return Stage::kDpo;
  if (name == "kto") return Stage::kKto;
  if (name == "rm") return Stage::kReward;
  fail("'{}' is not a training stage: pt, sft, dpo, kto or rm", name);
}

int64_t TrainSequence::num_trained() const {
  return std::count(trained.begin(), trained.end(), uint8_t{1});
}

Json EncodedExample::to_json() const {
  Json list = Json::array();
  for (const TrainSequence& s : sequences) list.push_back({{"ids", s.ids}, {"trained", s.trained}});
  return {
      {"kind", static_cast<int>(kind)}, {"sequences", std::move(list)}, {"desirable", desirable},
      {"truncated", truncated},         {"dataset", dataset},           {"place", place}};
}

EncodedExample EncodedExample::from_json(const Json& json) {
  EncodedExample out;
  out.kind = static_cast<Example::Kind>(json.at("kind").get<int>());
  for (const Json& s : json.at("sequences")) {
    out.sequences.push_back(
        {s.at("ids").get<std::vector<int32_t>>(), s.at("trained").get<std::vector<uint8_t>>()});
    check(out.sequences.back().ids.size() == out.sequences.back().trained.size(),
          "a sequence of the saved state is damaged");
  }
  out.desirable = json.at("desirable").get<bool>();
  out.truncated = json.at("truncated").get<bool>();
  out.dataset = json.at("dataset").get<int32_t>();
  out.place = json.at("place").get<std::string>();
  return out;
}

TrainSequence trim_chat(const EncodedChat& chat, const EncoderOptions& options) {
  const size_t cutoff = static_cast<size_t>(options.cutoff_len);
  const size_t turns = chat.answers.size();
  std::vector<Split> kept(turns, Split{0, 0});
  size_t total = 0;
  bool whole = true;
  auto source_begin = [&](size_t i) { return i == 0 ? 0 : chat.answers[i - 1].end; };
  for (size_t n = 0; n < turns; ++n) {
    const size_t i = options.mask_history ? turns - 1 - n : n;
    const TokenSpan answer = chat.answers[i];
    const size_t source = answer.begin - source_begin(i);
    const size_t target = answer.end - answer.begin;
    if (total < cutoff) kept[i] = split_budget(source, target, cutoff - total);
    whole = whole && kept[i].source == source && kept[i].target == target;
    total += kept[i].source + kept[i].target;
  }
  TrainSequence out;
  for (size_t i = 0; i < turns; ++i) {
    const size_t begin = source_begin(i);
    append(&out, chat.ids, {begin, begin + kept[i].source}, options.train_on_prompt);
    const size_t answer = chat.answers[i].begin;
    append(&out, chat.ids, {answer, answer + kept[i].target},
           !options.mask_history || i + 1 == turns);
  }
  // What the template writes behind the last answer, a line break, belongs to the conversation too.
  if (whole && chat.ids.size() <= cutoff) {
    append(&out, chat.ids, {out.ids.size(), chat.ids.size()}, options.train_on_prompt);
  }
  return out;
}

ExampleEncoder::ExampleEncoder(const Tokenizer& tokenizer, const ChatEncoder* chat,
                               EncoderOptions options)
    : tokenizer_(tokenizer), chat_(chat), options_(options) {
  check(options.cutoff_len >= 2, "--cutoff_len must be at least 2, it is {}", options.cutoff_len);
  check(!(options.train_on_prompt && options.mask_history),
        "--train_on_prompt and --mask_history exclude each other");
  check(options.stage == Stage::kSft || (!options.train_on_prompt && !options.mask_history),
        "--train_on_prompt and --mask_history are for --stage sft");
  const std::optional<int32_t> eos = tokenizer.eos_id();
  check(eos.has_value(), "the tokenizer names no end-of-text token (eos_token)");
  eos_ = *eos;
  const std::vector<int32_t> added = tokenizer.encode("");
  if (!added.empty() && tokenizer.bos_id() == added.front()) bos_ = added.front();
}

void ExampleEncoder::check_kind(const Example& example) const {
  const Example::Kind kind = example.kind;
  const char* wanted = nullptr;
  switch (options_.stage) {
    case Stage::kPretrain:
      if (kind != Example::Kind::kText) wanted = "pt wants texts";
      break;
    case Stage::kSft:
      if (kind != Example::Kind::kText && kind != Example::Kind::kChat) {
        wanted = "sft wants conversations or texts";
      }
      break;
    case Stage::kDpo:
    case Stage::kReward:
      if (kind != Example::Kind::kPair) wanted = "dpo and rm want pairs of chosen and rejected";
      break;
    case Stage::kKto:
      if (kind != Example::Kind::kTagged) wanted = "kto wants conversations with a label";
      break;
  }
  if (wanted != nullptr) {
    throw Error(
        fmt::format("{}: the row is of another kind than --stage {}", example.place, wanted));
  }
  check(kind == Example::Kind::kText || chat_ != nullptr,
        "{}: the row is a conversation, but the model has no chat template: pass --chat_template",
        example.place);
}

EncodedChat ExampleEncoder::encode_chat(const Example& example, const Json& answer) const {
  Json messages = example.messages;
  for (const Json& message : answer) messages.push_back(message);
  try {
    return chat_->encode(messages, example.tools);
  } catch (const Error& e) {
    throw RowError(fmt::format("{}: {}", example.place, e.what()));
  }
}

void ExampleEncoder::encode_text(const Example& example, EncodedExample* out) const {
  std::vector<int32_t> ids = tokenizer_.encode(example.text, {.add_special_tokens = false});
  if (ids.empty()) return;
  ids.push_back(eos_);
  if (options_.stage == Stage::kPretrain) {
    std::vector<uint8_t> trained(ids.size(), 1);
    out->sequences.push_back({std::move(ids), std::move(trained)});
    return;
  }
  // A piece of one token has nothing to predict.
  if (bos_) ids.insert(ids.begin(), *bos_);
  const size_t cutoff = static_cast<size_t>(options_.cutoff_len);
  for (size_t begin = 0; begin + 1 < ids.size(); begin += cutoff) {
    append(&out->sequences.emplace_back(), ids, {begin, std::min(begin + cutoff, ids.size())},
           true);
  }
}

EncodedExample ExampleEncoder::encode(const Example& example) const {
  check_kind(example);
  EncodedExample out;
  out.kind = example.kind;
  out.desirable = example.desirable;
  out.place = example.place;
  const size_t cutoff = static_cast<size_t>(options_.cutoff_len);
  if (example.kind == Example::Kind::kText) {
    encode_text(example, &out);
    return out;
  }
  if (example.kind == Example::Kind::kChat) {
    const EncodedChat chat = encode_chat(example, Json::array());
    TrainSequence sequence = trim_chat(chat, options_);
    out.truncated = !chat.answers.empty() && sequence.ids.size() < chat.answers.back().end;
    if (sequence.num_trained() > 0) out.sequences.push_back(std::move(sequence));
    return out;
  }
  // Preferences are about the last answer: all before it is the prompt, the same for both.
  std::vector<EncodedChat> chats;
  if (example.kind == Example::Kind::kPair) {
    chats.push_back(encode_chat(example, example.chosen));
    chats.push_back(encode_chat(example, example.rejected));
  } else {
    chats.push_back(encode_chat(example, Json::array()));
  }
  size_t longest = 0;
  for (const EncodedChat& chat : chats) {
    if (chat.answers.empty()) return out;
    longest = std::max(longest, answer_size(chat));
  }
  const Split budget = split_budget(chats[0].answers.back().begin, longest, cutoff);
  for (const EncodedChat& chat : chats) {
    out.sequences.push_back(last_turn(chat, budget));
    out.truncated |= out.sequences.back().ids.size() < chat.answers.back().end;
    if (out.sequences.back().num_trained() == 0) {
      out.sequences.clear();
      return out;
    }
  }
  return out;
}

}  // namespace reft
