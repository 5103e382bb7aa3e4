// Text to token ids and back. Ids equal those of Hugging Face `tokenizers` for the same files.
// A Tokenizer is immutable and thread-safe; a StreamDecoder belongs to one request.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"

namespace reft {

class GgufReader;

// Ids to text one by one, for one request. The texts of add() and finish() together are decode() of
// all ids.
class DecodeStream {
 public:
  virtual ~DecodeStream() = default;
  // Text that became complete with this id; may be empty.
  virtual std::string add(int32_t id) = 0;
  // What is left at the end, incomplete bytes as U+FFFD. Nothing may follow.
  virtual std::string finish() = 0;
};

struct EncodeOptions {
  bool add_special_tokens = true;  // what the post-processor or add_bos_token adds
  bool parse_special =
      true;  // special tokens written in the text become their ids; false: plain text
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Invalid UTF-8 is replaced by U+FFFD first, as Python would have done.
  virtual std::vector<int32_t> encode(std::string_view text,
                                      const EncodeOptions& options = {}) const = 0;
  // Ids outside the vocabulary are skipped. Incomplete UTF-8 becomes U+FFFD.
  virtual std::string decode(std::span<const int32_t> ids,
                             bool skip_special_tokens = true) const = 0;
  // The tokenizer must outlive the stream. This one joins token_bytes().
  virtual std::unique_ptr<DecodeStream> start_decode(bool skip_special_tokens) const;

  // Number of ids, added tokens included (may be smaller than the model's padded vocabulary).
  virtual int64_t vocab_size() const = 0;
  virtual std::optional<int32_t> token_to_id(std::string_view token) const = 0;
  // The raw vocabulary entry ("Ġthe", "▁the", "<|im_end|>"); empty for an unused id.
  virtual std::string id_to_token(int32_t id) const = 0;
  // The bytes that the token stands for inside a text (" the"), special tokens as written.
  virtual std::string token_bytes(int32_t id) const = 0;
  virtual bool is_special(int32_t id) const = 0;

  // From tokenizer_config.json, special_tokens_map.json or GGUF metadata; empty when not defined.
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  virtual std::optional<int32_t> pad_id() const = 0;
  // The model's own chat template (tokenizer_config.json, chat_template.jinja, GGUF); empty when
  // there is none.
  virtual const std::string& chat_template() const = 0;
};

// The model comes without a tokenizer: its prompts are token ids.
class NoTokenizer : public Error {
 public:
  using Error::Error;
};

// A Hugging Face folder (tokenizer.json, or *.tiktoken / tokenizer.model), or one of those files
// itself. Throws Error naming the file, NoTokenizer where there is none.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path);
std::unique_ptr<Tokenizer> load_tokenizer(const GgufReader& gguf);

// Turns ids into text as they arrive: returns only complete characters and keeps the rest back.
class StreamDecoder {
 public:
  // `prompt_tail` are the last ids of the prompt: SentencePiece-like decoders need the left context
  // to know about the leading space.
  StreamDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt_tail,
                bool skip_special_tokens);
  // Text that became complete with this id; may be empty.
  std::string add(int32_t id);
  // What is left at the end, incomplete bytes as U+FFFD.
  std::string finish();

 private:
  std::unique_ptr<DecodeStream> stream_;
};

}  // namespace reft
