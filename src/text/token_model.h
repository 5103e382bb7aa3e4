// The part of a tokenizer that turns one pre-tokenized piece of text into ids. Immutable,
// thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/token_table.h"

namespace reft {

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of a piece (valid UTF-8). Throws Error when a piece cannot be encoded (no
  // unknown token).
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids) const = 0;
  // True when the model works on plain bytes where the file's vocabulary is written in the
  // byte-level alphabet; the pre-tokenizer then leaves that mapping out.
  virtual bool takes_bytes() const { return false; }
  // The plain bytes of an entry, for models that take bytes.
  virtual std::string_view bytes(int32_t id) const {
    (void)id;
    return {};
  }

  // The vocabulary as the file writes it.
  virtual int32_t token_to_id(std::string_view token) const = 0;  // -1 when absent
  virtual bool has_id(int32_t id) const = 0;
  virtual std::string id_to_token(int32_t id) const = 0;
  virtual int32_t id_end() const = 0;
  // Number of entries (what new added tokens are numbered from).
  virtual int64_t size() const = 0;
};

// The alphabet of byte-level models: a printable character for each byte.
namespace byte_alphabet {
std::string encode(std::string_view bytes);
// False when a character does not belong to the alphabet; `out` is then unspecified.
bool decode(std::string_view text, std::string& out);
}  // namespace byte_alphabet

// Id of "<0xNN>" for each byte, -1 where the vocabulary lacks it.
std::vector<int32_t> byte_fallback_ids(const TokenTable& table);

}  // namespace reft
