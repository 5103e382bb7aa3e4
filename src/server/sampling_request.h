// The fields that chat and plain completions share: sampling, streaming, vLLM's extras.
#pragma once

#include <optional>
#include <string>

#include "engine/request.h"
#include "server/json_body.h"
#include "server/request_context.h"

namespace reft {

struct GenerationFields {
  SamplingParams params;
  std::string model;    // to answer with
  std::string adapter;  // empty: the base model
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // logprobs name tokens "token_id:7"
  std::string request_id;      // the body's; may be empty
  std::string cache_salt;
  int64_t priority = 0;
  std::optional<int64_t> truncate_prompt_tokens;
  std::string max_tokens_field;  // which field gave params.max_tokens; empty for a default
};

// Reads all but logprobs and max_tokens, which differ between the endpoints. Throws RequestError.
GenerationFields parse_generation_fields(const Fields& fields, const RequestContext& context);

// Reads an integer field that counts alternatives per token; bounded by max_logprobs and the
// vocabulary.
std::optional<int32_t> parse_logprobs_count(const Fields& fields, const char* key,
                                            const RequestContext& context);

// Cuts the prompt as truncate_prompt_tokens says, checks it against the context and bounds
// max_tokens by what is left. `prompt_field` names the prompt in errors.
void fit_prompt(std::vector<int32_t>& prompt, GenerationFields& request,
                const RequestContext& context, const std::string& prompt_field);

}  // namespace reft
