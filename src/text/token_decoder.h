// Tokens back to text, one token at a time: the decoders of tokenizer.json as a chain of small
// state machines, so that decoding a list and decoding a stream are the same thing (but for byte
// tokens that are not UTF-8).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace reft {

// Bytes that arrive in any portions as text: only whole characters come out, ill-formed parts as
// U+FFFD.
class Utf8Joiner {
 public:
  // `each_byte`: every ill-formed byte becomes a U+FFFD; else every maximal ill-formed part.
  explicit Utf8Joiner(bool each_byte = false) : each_byte_(each_byte) {}
  void add(std::string_view bytes, std::string& out);
  void finish(std::string& out);
  bool empty() const { return pending_.empty(); }

 private:
  void drain(std::string& out, bool last);
  bool each_byte_;
  std::string pending_;
};

class TokenDecoder {
 public:
  class Stream {
   public:
    virtual ~Stream() = default;
    // The next token as the vocabulary writes it; appends the text that became certain.
    virtual void add(std::string_view token, std::string& out) = 0;
    virtual void finish(std::string& out) = 0;
  };

  virtual ~TokenDecoder() = default;
  // `whole_runs`: a run of byte tokens comes at its end, each byte of it as U+FFFD when the run is
  // not UTF-8, which is how Hugging Face decodes a list; else characters come as they complete, and
  // only ill-formed bytes are U+FFFD.
  virtual std::unique_ptr<Stream> start(bool whole_runs = false) const = 0;
  virtual bool byte_fallback() const = 0;
  // True when it is the byte-level decoder and nothing else.
  virtual bool byte_level() const = 0;
};

// From the "decoder" value of tokenizer.json; null: tokens joined by spaces. Throws Error that
// names an unknown type.
std::unique_ptr<TokenDecoder> make_token_decoder(const Json& config);

}  // namespace reft
