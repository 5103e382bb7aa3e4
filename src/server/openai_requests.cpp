#include "server/openai_requests.h"

#include "server/chat_prompt.h"

namespace reft {
namespace {

constexpr size_t kMaxPrompts = 4096;

void log_unknown(const Json& body) {
  log_unknown_fields(body, {"model",
                            "messages",
                            "prompt",
                            "max_completion_tokens",
                            "max_tokens",
                            "stop",
                            "temperature",
                            "top_p",
                            "seed",
                            "n",
                            "best_of",
                            "frequency_penalty",
                            "presence_penalty",
                            "logit_bias",
                            "logprobs",
                            "top_logprobs",
                            "response_format",
                            "modalities",
                            "tools",
                            "tool_choice",
                            "parallel_tool_calls",
                            "functions",
                            "function_call",
                            "stream",
                            "stream_options",
                            "metadata",
                            "store",
                            "service_tier",
                            "user",
                            "safety_identifier",
                            "prompt_cache_key",
                            "prompt_cache_options",
                            "prompt_cache_retention",
                            "moderation",
                            "suffix",
                            "echo",
                            "top_k",
                            "min_p",
                            "repetition_penalty",
                            "length_penalty",
                            "use_beam_search",
                            "min_tokens",
                            "ignore_eos",
                            "stop_token_ids",
                            "include_stop_str_in_output",
                            "skip_special_tokens",
                            "spaces_between_special_tokens",
                            "allowed_token_ids",
                            "bad_words",
                            "prompt_logprobs",
                            "truncate_prompt_tokens",
                            "add_generation_prompt",
                            "continue_final_message",
                            "add_special_tokens",
                            "documents",
                            "chat_template",
                            "chat_template_kwargs",
                            "include_reasoning",
                            "reasoning_effort",
                            "priority",
                            "request_id",
                            "cache_salt",
                            "return_token_ids",
                            "return_tokens_as_token_ids",
                            "verbosity"});
}

// Fields that select what only other kinds of model can do.
void refuse_other_modalities(const Fields& fields) {
  if (const Json* modalities = fields.array("modalities")) {
    for (const Json& item : *modalities) {
      if (!item.is_string() || item.get_ref<const std::string&>() != "text") {
        fields.refuse("modalities", "must be [\"text\"]: this model writes text only");
      }
    }
  }
  if (fields.get("audio") != nullptr)
    fields.refuse("audio", "is not supported: this model writes text only");
  if (fields.get("web_search_options") != nullptr) {
    fields.refuse("web_search_options", "is not supported");
  }
}

void set_max_tokens(GenerationFields& request, std::optional<int64_t> value, const char* field,
                    const RequestContext& context) {
  if (value) {
    request.params.max_tokens = value;
    request.max_tokens_field = field;
  } else if (context.defaults.max_tokens) {
    request.params.max_tokens = context.defaults.max_tokens;
  }
}

std::vector<int32_t> token_ids(const Json& array, const std::string& param, int64_t vocab_size) {
  std::vector<int32_t> out;
  out.reserve(array.size());
  for (const Json& item : array) {
    out.push_back(static_cast<int32_t>(json_integer(item, param, 0, vocab_size - 1)));
  }
  return out;
}

// `prompt`: a string, a list of strings, a list of ids, or a list of lists of ids.
void parse_prompts(const Fields& fields, const RequestContext& context, CompletionRequest& out) {
  const Json* prompt = fields.get("prompt");
  if (prompt == nullptr) fields.refuse("prompt", "is missing");
  EncodeOptions encode;
  encode.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
  const auto add_text = [&](const std::string& text) {
    out.prompts.push_back(context.require_tokenizer().encode(text, encode));
    if (out.wants_echo) out.echo.push_back(text);
  };
  const auto add_ids = [&](const Json& ids, const std::string& param) {
    out.prompts.push_back(token_ids(ids, param, context.vocab_size));
    if (!out.wants_echo) return;
    // Without a tokenizer there is no text, but the log probabilities are still of use.
    out.echo.push_back(context.tokenizer ? context.tokenizer->decode(out.prompts.back(), false)
                                         : std::string());
  };
  if (prompt->is_string()) {
    add_text(prompt->get_ref<const std::string&>());
  } else if (!prompt->is_array()) {
    fields.refuse("prompt",
                  fmt::format("must be a string or an array, got {}", json_type_name(*prompt)));
  } else if (prompt->empty()) {
    fields.refuse("prompt", "must not be empty");
  } else if (prompt->front().is_number()) {
    add_ids(*prompt, "prompt");
  } else {
    if (prompt->size() > kMaxPrompts) {
      fields.refuse("prompt", fmt::format("has {} prompts; at most {} are allowed", prompt->size(),
                                          kMaxPrompts));
    }
    for (size_t i = 0; i < prompt->size(); ++i) {
      const Json& item = (*prompt)[i];
      if (item.is_string() && prompt->front().is_string()) {
        add_text(item.get_ref<const std::string&>());
      } else if (item.is_array() && prompt->front().is_array()) {
        add_ids(item, fmt::format("prompt[{}]", i));
      } else {
        fields.refuse("prompt",
                      "must hold only strings, only token ids or only arrays of token ids");
      }
    }
  }
}

}  // namespace

ChatRequest parse_chat_request(const Json& body, const RequestContext& context) {
  const Fields fields(body);
  ChatRequest out;
  out.generation = parse_generation_fields(fields, context);
  log_unknown(body);
  refuse_other_modalities(fields);
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  const auto num_top = parse_logprobs_count(fields, "top_logprobs", context);
  if (num_top.value_or(0) > 0 && !logprobs) {
    fields.refuse("top_logprobs", "needs 'logprobs' to be true");
  }
  if (logprobs) {
    out.num_top = num_top.value_or(0);
    out.generation.params.logprobs = out.num_top;
  }
  const auto old_limit = fields.integer("max_tokens", 1);
  const auto limit = fields.integer("max_completion_tokens", 1);
  set_max_tokens(out.generation, limit ? limit : old_limit,
                 limit ? "max_completion_tokens" : "max_tokens", context);
  const bool echo = fields.boolean("echo").value_or(false);

  const ChatPrompt prompt = parse_chat_prompt(fields, context);
  out.role = context.response_role;
  if (!prompt.input.add_generation_prompt) out.role = prompt.last_role;
  if (echo && prompt.last_role == out.role) out.echo = prompt.last_content;
  out.prompt = encode_chat_prompt(prompt, render_chat_prompt(prompt, context), context);
  fit_prompt(out.prompt, out.generation, context, "messages");
  out.include_reasoning = fields.boolean("include_reasoning").value_or(true);
  out.harmony = prompt.input.add_generation_prompt && writes_harmony(prompt, context);
  return out;
}

CompletionRequest parse_completion_request(const Json& body, const RequestContext& context) {
  const Fields fields(body);
  CompletionRequest out;
  out.generation = parse_generation_fields(fields, context);
  log_unknown(body);
  out.wants_echo = fields.boolean("echo").value_or(false);
  if (const auto suffix = fields.string("suffix"); suffix && !suffix->empty()) {
    fields.refuse("suffix", "is not supported");
  }
  if (const auto best_of = fields.integer("best_of", 1)) {
    if (*best_of != out.generation.params.n) {
      fields.refuse("best_of",
                    fmt::format("must equal 'n' ({}): choosing among more is not supported",
                                out.generation.params.n));
    }
  }
  out.wants_prompt_logprobs = out.generation.params.prompt_logprobs.has_value();
  if (const auto count = parse_logprobs_count(fields, "logprobs", context)) {
    out.num_top = *count;
    out.generation.params.logprobs = count;
    if (out.wants_echo) {
      auto& of_prompt = out.generation.params.prompt_logprobs;
      of_prompt = std::max(of_prompt.value_or(0), *count);
    }
  }
  constexpr int64_t kDefaultMaxTokens = 16;  // OpenAI's
  const auto limit = fields.integer("max_tokens", 0);
  if (limit == 0) {
    if (!out.wants_echo) fields.refuse("max_tokens", "may only be 0 together with 'echo'");
    out.hide_output = true;
    out.generation.params.max_tokens = 1;
    out.generation.params.min_tokens = 0;
  } else {
    set_max_tokens(out.generation, limit, "max_tokens", context);
    if (!out.generation.params.max_tokens) out.generation.params.max_tokens = kDefaultMaxTokens;
  }
  parse_prompts(fields, context, out);
  const std::optional<int64_t> max_tokens = out.generation.params.max_tokens;
  for (size_t i = 0; i < out.prompts.size(); ++i) {
    out.generation.params.max_tokens = max_tokens;
    fit_prompt(out.prompts[i], out.generation, context,
               out.prompts.size() == 1 ? "prompt" : fmt::format("prompt[{}]", i));
  }
  // One limit for all prompts; the engine ends each at its own context limit anyway.
  out.generation.params.max_tokens =
      std::min(max_tokens.value_or(context.max_model_len), context.max_model_len - 1);
  if (out.prompts.size() * static_cast<size_t>(out.generation.params.n) > 4 * kMaxPrompts) {
    fields.refuse("n", "times the number of prompts is too large");
  }
  return out;
}

}  // namespace reft
