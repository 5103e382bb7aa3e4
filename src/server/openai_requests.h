// The bodies of OpenAI's two generation endpoints, checked and turned into token ids.
#pragma once

#include <string>
#include <vector>

#include "server/request_context.h"
#include "server/sampling_request.h"

namespace reft {

struct ChatRequest {
  GenerationFields generation;
  std::vector<int32_t> prompt;
  std::string role;               // of the answer
  std::string echo;               // text that the answer starts with
  int num_top = 0;                // top_logprobs
  bool harmony = false;           // the answer is in channels (text/harmony.h)
  bool include_reasoning = true;  // in the answer, where it can be told apart
};

struct CompletionRequest {
  GenerationFields generation;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::string> echo;  // per prompt, when asked for
  bool wants_echo = false;
  bool hide_output = false;            // max_tokens 0 with echo
  int num_top = 0;                     // alternatives of `logprobs`
  bool wants_prompt_logprobs = false;  // by prompt_logprobs, not only for echo
};

// Both throw RequestError naming the field at fault.
ChatRequest parse_chat_request(const Json& body, const RequestContext& context);
CompletionRequest parse_completion_request(const Json& body, const RequestContext& context);

}  // namespace reft
