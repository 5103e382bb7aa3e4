// What is needed to understand a request, apart from the engine that serves it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace reft {

// From the model's generation_config.json.
struct SamplingDefaults {
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int64_t> max_tokens;
};

// Immutable once the server runs.
struct RequestContext {
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;
  int64_t max_n = 1024;
  int64_t max_logprobs = 20;  // −1: the vocabulary
  std::vector<std::string> model_names;
  std::function<bool(const std::string& name)> is_adapter;  // whether one is loaded; may be empty
  SamplingDefaults defaults;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;
  std::string chat_template_content_format = "auto";
  Json default_chat_template_kwargs = Json::object();
  bool trust_request_chat_template = false;
  bool return_tokens_as_token_ids = false;
  std::string response_role = "assistant";

  // The name to answer with, the first of model_names (as vLLM), for each of them, for none and for
  // an empty one; of an adapter its own. Throws RequestError 404 for a name that is not served.
  std::string resolve_model(const std::optional<std::string>& name) const;
  // The tokenizer; throws RequestError 400 when there is none.
  const Tokenizer& require_tokenizer() const;
};

// Throws Error when the base model is served under that name.
void check_adapter_name(const std::string& name, const RequestContext& context);

// `generation_config` as the model's file has it; wrong types are ignored with a warning.
SamplingDefaults read_sampling_defaults(const Json& generation_config);

}  // namespace reft
