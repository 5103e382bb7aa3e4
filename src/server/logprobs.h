// Log probabilities in the three shapes that clients know: chat, plain completions, vLLM's
// prompt_logprobs.
#pragma once

#include <string>
#include <vector>

#include "engine/request.h"
#include "text/tokenizer.h"

namespace reft {

class LogprobWriter {
 public:
  // `tokenizer` may be null: tokens are then named "token_id:7", as with `as_ids`.
  LogprobWriter(const Tokenizer* tokenizer, bool as_ids) : tokenizer_(tokenizer), as_ids_(as_ids) {}

  // Appends {"token","logprob","bytes","top_logprobs"} with the `num_top` most likely.
  void append_chat(std::string& out, const TokenLogprobs& token, int num_top) const;
  // Appends [null, {"id": {"logprob","rank","decoded_token"}}, …].
  void append_prompt(std::string& out, const std::vector<TokenLogprobs>& prompt) const;

  // The token's text, or "token_id:7".
  std::string label(int32_t token) const;

 private:
  void append_entry(std::string& out, const TokenLogprob& entry) const;

  const Tokenizer* tokenizer_;
  bool as_ids_;
};

// The `num_top` most likely of the alternatives, most likely first, each once.
std::vector<TokenLogprob> top_alternatives(const TokenLogprobs& token, int num_top);

// Collects {"text_offset","token_logprobs","tokens","top_logprobs"}.
class CompletionLogprobs {
 public:
  // `token` empty: a prompt token without a log probability (the first); `id` names it.
  void add(const LogprobWriter& writer, int32_t id, const TokenLogprobs& token, int num_top);
  bool empty() const { return tokens_.empty(); }
  void append(std::string& out) const;
  // Forgets the tokens, keeps the offset: the next chunk of a stream.
  void clear();

 private:
  int64_t offset_ = 0;  // code points
  std::string offsets_, logprobs_, tokens_, tops_;
};

}  // namespace reft
