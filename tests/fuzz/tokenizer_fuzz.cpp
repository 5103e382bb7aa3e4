// Bytes as a tokenizer.json: parsing it and encoding with it gives ids or an Error, never a crash.
// What follows the first zero byte is the text to encode.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/tokenizer.h"
#include "text/tokenizer_pipeline.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t zero = bytes.find('\0');
  const std::string_view json = bytes.substr(0, zero);
  const std::string_view text =
      zero == std::string_view::npos ? "Hello, wörld 123\n" : bytes.substr(zero + 1);
  try {
    reft::TokenizerParts parts = reft::looks_like_sentencepiece(json)
                                     ? reft::parse_sentencepiece(json, "fuzz")
                                     : reft::parse_tokenizer_json(json, "fuzz");
    const auto tokenizer = reft::make_tokenizer(std::move(parts));
    const auto ids = tokenizer->encode(text);
    tokenizer->decode(ids);
    reft::StreamDecoder stream(*tokenizer, {}, true);
    for (const int32_t id : ids) {
      stream.add(id);
      tokenizer->token_bytes(id);
    }
    stream.finish();
  } catch (const reft::Error&) {
  }
  return 0;
}
