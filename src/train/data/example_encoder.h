// From an example to what one training step needs of it: token ids, and which of them are learnt.
#pragma once

#include <optional>

#include "train/data/chat_encoder.h"
#include "train/data/row_format.h"

namespace reft {

enum class Stage { kPretrain, kSft, kDpo, kKto, kReward };
// "pt", "sft", "dpo", "kto", "rm"; throws Error on another name.
Stage parse_stage(const std::string& name);

struct EncoderOptions {
  Stage stage = Stage::kSft;
  int64_t cutoff_len = 2048;     // tokens a sequence may have
  bool train_on_prompt = false;  // learn all tokens, not only the assistant's
  bool mask_history = false;     // learn the last answer only; excludes train_on_prompt
};

struct TrainSequence {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;  // per id: whether it is to be learnt

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  int64_t num_trained() const;
};

// The sequences of one row. Chat: one. Pair: chosen, then rejected. Tagged: one. Text: one per
// cutoff_len tokens; in stage pt one of any length, which the packer cuts.
struct EncodedExample {
  Example::Kind kind = Example::Kind::kText;
  std::vector<TrainSequence> sequences;
  bool desirable = true;
  bool truncated = false;
  int32_t dataset = 0;  // index, set by the loader
  std::string place;

  bool empty() const { return sequences.empty(); }
  Json to_json() const;
  static EncodedExample from_json(const Json& json);
};

// Cuts a conversation to `cutoff_len` tokens by LLaMA-Factory's rule: turn by turn from the first,
// or with mask_history from the last one, the budget that is left is split between what comes
// before the answer and the answer: where twice the answer fits, only the part before it is cut,
// where twice that part fits, only the answer, else both in proportion; both lose their ends. Turns
// behind the budget are dropped.
TrainSequence trim_chat(const EncodedChat& chat, const EncoderOptions& options);

// Immutable and thread-safe.
class ExampleEncoder {
 public:
  // `chat` may be null where all examples are texts. Both must outlive the encoder. Throws Error
  // for options that exclude each other, and where the tokenizer has no end-of-text token.
  ExampleEncoder(const Tokenizer& tokenizer, const ChatEncoder* chat, EncoderOptions options);

  // Without sequences when nothing is left to learn. Throws RowError naming the place when the
  // stage wants another kind of example, or the template refuses the conversation.
  EncodedExample encode(const Example& example) const;

  const EncoderOptions& options() const { return options_; }
  // The token that begins every text, if the tokenizer adds one.
  std::optional<int32_t> bos() const { return bos_; }
  int32_t eos() const { return eos_; }

 private:
  void check_kind(const Example& example) const;
  EncodedChat encode_chat(const Example& example, const Json& answer) const;
  void encode_text(const Example& example, EncodedExample* out) const;

  const Tokenizer& tokenizer_;
  const ChatEncoder* chat_;
  EncoderOptions options_;
  std::optional<int32_t> bos_;
  int32_t eos_ = 0;
};

}  // namespace reft
