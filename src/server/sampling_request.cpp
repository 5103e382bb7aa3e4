#include "server/sampling_request.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/json_text.h"
#include "base/log.h"

namespace reft {
namespace {

constexpr size_t kMaxStopStrings = 1024;
constexpr size_t kMaxStopBytes = 16 << 10;
constexpr size_t kMaxBadWords = 4096;

// Fields of other servers that would change the answer. Ignoring them would be a wrong answer.
void refuse_unsupported(const Fields& fields) {
  for (const char* key : {"structured_outputs", "guided_json", "guided_regex", "guided_choice",
                          "guided_grammar", "structural_tag", "logprob_token_ids", "prompt_embeds",
                          "grammar", "json_schema", "custom_logit_processor", "lora_path"}) {
    if (fields.get(key) != nullptr) fields.refuse(key, "is not supported yet");
  }
  if (fields.boolean("use_beam_search").value_or(false)) {
    fields.refuse("use_beam_search", "is not supported");
  }
  if (const Json* format = fields.object("response_format")) {
    const auto type = Fields(*format, "response_format.").string("type");
    if (!type) fields.refuse("response_format", "must have a 'type'");
    if (*type != "text") {
      fields.refuse(
          "response_format",
          fmt::format("of type '{}' is not supported yet; only 'text' is", type->substr(0, 64)));
    }
  }
}

std::vector<std::string> parse_stop(const Fields& fields) {
  const Json* value = fields.get("stop");
  if (value == nullptr) return {};
  std::vector<std::string> stop;
  if (value->is_string()) {
    stop.push_back(value->get<std::string>());
  } else if (value->is_array()) {
    stop = *fields.string_array("stop", kMaxStopStrings);
  } else {
    fields.refuse("stop", fmt::format("must be a string or an array of strings, got {}",
                                      json_type_name(*value)));
  }
  for (const std::string& text : stop) {
    if (text.empty()) fields.refuse("stop", "must not contain an empty string");
    if (text.size() > kMaxStopBytes) {
      fields.refuse("stop", fmt::format("has a string of {} bytes; at most {} are allowed",
                                        text.size(), kMaxStopBytes));
    }
  }
  return stop;
}

std::map<int32_t, float> parse_logit_bias(const Fields& fields, int64_t vocab_size) {
  std::map<int32_t, float> out;
  const Json* value = fields.object("logit_bias");
  if (value == nullptr) return out;
  for (const auto& [key, bias] : value->get_ref<const Json::object_t&>()) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocab_size) {
      fields.refuse("logit_bias",
                    fmt::format("has the key '{}', which is not a token id between 0 and {}",
                                key.substr(0, 64), vocab_size - 1));
    }
    if (!bias.is_number()) {
      fields.refuse("logit_bias", fmt::format("must map token ids to numbers; '{}' has {}", id,
                                              json_type_name(bias)));
    }
    const double number = bias.get<double>();
    if (!(number >= -100 && number <= 100)) {
      fields.refuse("logit_bias",
                    fmt::format("must be between -100 and 100; '{}' has {}", id, number));
    }
    out[static_cast<int32_t>(id)] = static_cast<float>(number);
  }
  return out;
}

void parse_sampling(const Fields& fields, const RequestContext& context, SamplingParams& params) {
  const SamplingDefaults& defaults = context.defaults;
  const auto number = [&](const char* key, const std::optional<float>& fallback, float standard) {
    return fields.number(key).value_or(fallback.value_or(standard));
  };
  params.n = static_cast<int32_t>(fields.integer("n", 1, context.max_n).value_or(1));
  params.temperature = number("temperature", defaults.temperature, 1.0f);
  if (params.temperature < 0) fields.refuse("temperature", "must not be negative");
  // Dividing by less than this overflows; it is as good as greedy.
  if (params.temperature < 1e-5f) params.temperature = 0;
  params.top_p = number("top_p", defaults.top_p, 1.0f);
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    fields.refuse("top_p", fmt::format("must be in (0, 1], got {}", params.top_p));
  }
  const int64_t top_k =
      fields.integer("top_k", -1).value_or(defaults.top_k ? int64_t{*defaults.top_k} : 0);
  params.top_k = static_cast<int32_t>(std::min(top_k, context.vocab_size));
  params.min_p = number("min_p", defaults.min_p, 0.0f);
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    fields.refuse("min_p", fmt::format("must be in [0, 1], got {}", params.min_p));
  }
  params.repetition_penalty = number("repetition_penalty", defaults.repetition_penalty, 1.0f);
  if (!(params.repetition_penalty > 0)) {
    fields.refuse("repetition_penalty", "must be greater than 0");
  }
  for (const auto& [key, target] : {std::pair{"presence_penalty", &params.presence_penalty},
                                    std::pair{"frequency_penalty", &params.frequency_penalty}}) {
    *target = fields.number(key).value_or(0.0f);
    if (!(*target >= -2 && *target <= 2)) {
      fields.refuse(key, fmt::format("must be in [-2, 2], got {}", *target));
    }
  }
  if (const auto seed = fields.integer("seed")) params.seed = static_cast<uint64_t>(*seed);
}

void parse_limits(const Fields& fields, const RequestContext& context, SamplingParams& params) {
  const int64_t last_id = context.vocab_size - 1;
  params.stop = parse_stop(fields);
  if (auto ids = fields.int_array("stop_token_ids", 0, last_id)) {
    params.stop_token_ids = std::move(*ids);
  }
  params.include_stop_str_in_output = fields.boolean("include_stop_str_in_output").value_or(false);
  params.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  params.min_tokens = fields.integer("min_tokens", 0).value_or(0);
  params.logit_bias = parse_logit_bias(fields, context.vocab_size);
  if (auto ids = fields.int_array("allowed_token_ids", 0, last_id)) {
    if (ids->empty()) fields.refuse("allowed_token_ids", "must not be empty");
    params.allowed_token_ids = std::move(*ids);
  }
  if (auto words = fields.string_array("bad_words", kMaxBadWords)) {
    for (const std::string& word : *words) {
      if (word.empty()) fields.refuse("bad_words", "must not contain an empty string");
    }
    params.bad_words = std::move(*words);
  }
  params.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  params.prompt_logprobs = parse_logprobs_count(fields, "prompt_logprobs", context);
}

}  // namespace

std::string RequestContext::resolve_model(const std::optional<std::string>& name) const {
  const bool is_served =
      !name || name->empty() ||
      std::find(model_names.begin(), model_names.end(), *name) != model_names.end();
  if (is_served) return model_names.front();
  if (is_adapter && is_adapter(*name)) return *name;
  throw RequestError(fmt::format("the model '{}' does not exist", name->substr(0, 200)), "model",
                     404, "model_not_found");
}

void check_adapter_name(const std::string& name, const RequestContext& context) {
  const auto& names = context.model_names;
  check(std::find(names.begin(), names.end(), name) == names.end(),
        "the adapter name '{}' is the base model's", name);
}

const Tokenizer& RequestContext::require_tokenizer() const {
  if (tokenizer == nullptr) {
    throw RequestError("the server runs without a tokenizer: send the prompt as token ids",
                       "prompt");
  }
  return *tokenizer;
}

SamplingDefaults read_sampling_defaults(const Json& config) {
  SamplingDefaults out;
  if (!config.is_object()) return out;
  const Fields fields(config);
  const auto read = [&](const char* key, auto&& assign) {
    try {
      assign(key);
    } catch (const Error& e) {
      log_warning("Serve", "generation config ignored: {}", e.what());
    }
  };
  const auto number = [&](const char* key, std::optional<float>& target, float low, float high) {
    read(key, [&](const char* k) {
      const auto value = fields.number(k);
      if (value && (*value < low || *value > high)) fields.refuse(k, "is out of range");
      target = value;
    });
  };
  number("temperature", out.temperature, 0, 1e6f);
  number("top_p", out.top_p, 1e-9f, 1);
  number("min_p", out.min_p, 0, 1);
  number("repetition_penalty", out.repetition_penalty, 1e-9f, 1e6f);
  read("top_k", [&](const char* k) {
    if (const auto v = fields.integer(k, -1, 1 << 30)) out.top_k = static_cast<int32_t>(*v);
  });
  read("max_new_tokens", [&](const char* k) { out.max_tokens = fields.integer(k, 1); });
  return out;
}

std::optional<int32_t> parse_logprobs_count(const Fields& fields, const char* key,
                                            const RequestContext& context) {
  const auto count = fields.integer(key, -1);
  if (!count) return std::nullopt;
  const int64_t limit = context.max_logprobs < 0
                            ? context.vocab_size
                            : std::min(context.max_logprobs, context.vocab_size);
  const int64_t wanted = *count == -1 ? context.vocab_size : *count;
  if (wanted > limit) {
    fields.refuse(key, fmt::format("must be between 0 and {}, got {}", limit, *count));
  }
  return static_cast<int32_t>(wanted);
}

GenerationFields parse_generation_fields(const Fields& fields, const RequestContext& context) {
  GenerationFields out;
  out.model = context.resolve_model(fields.string("model"));
  if (out.model != context.model_names.front()) out.adapter = out.model;
  refuse_unsupported(fields);
  parse_sampling(fields, context, out.params);
  parse_limits(fields, context, out.params);
  out.stream = fields.boolean("stream").value_or(false);
  if (const Json* stream_options = fields.object("stream_options")) {
    if (!out.stream) fields.refuse("stream_options", "is only allowed when 'stream' is true");
    const Fields options(*stream_options, "stream_options.");
    out.include_usage = options.boolean("include_usage").value_or(false);
    out.continuous_usage =
        out.include_usage && options.boolean("continuous_usage_stats").value_or(false);
  }
  if (out.stream && out.params.prompt_logprobs) {
    fields.refuse("prompt_logprobs", "is not available when 'stream' is true");
  }
  out.return_token_ids = fields.boolean("return_token_ids").value_or(false);
  out.tokens_as_ids =
      fields.boolean("return_tokens_as_token_ids").value_or(context.return_tokens_as_token_ids);
  out.priority = fields.integer("priority").value_or(0);
  out.request_id = fields.string("request_id").value_or("");
  if (out.request_id.size() > 256) fields.refuse("request_id", "is longer than 256 bytes");
  if (const auto salt = fields.string("cache_salt")) {
    if (salt->empty() || count_code_points(*salt) > 1024) {
      fields.refuse("cache_salt", "must have between 1 and 1024 characters");
    }
    out.cache_salt = *salt;
  }
  out.truncate_prompt_tokens = fields.integer("truncate_prompt_tokens", -1, context.max_model_len);
  if (out.truncate_prompt_tokens == 0) {
    fields.refuse("truncate_prompt_tokens", "must be -1 or at least 1: 0 leaves no prompt");
  }
  return out;
}

void fit_prompt(std::vector<int32_t>& prompt, GenerationFields& request,
                const RequestContext& context, const std::string& prompt_field) {
  if (request.truncate_prompt_tokens) {
    const int64_t keep = *request.truncate_prompt_tokens == -1 ? context.max_model_len - 1
                                                               : *request.truncate_prompt_tokens;
    if (static_cast<int64_t>(prompt.size()) > keep)
      prompt.erase(prompt.begin(), prompt.end() - keep);
  }
  if (prompt.empty()) {
    throw RequestError(fmt::format("'{}' is empty: it has no tokens", prompt_field), prompt_field);
  }
  const auto length = static_cast<int64_t>(prompt.size());
  if (length >= context.max_model_len) {
    throw RequestError(
        fmt::format("This model's maximum context length is {} tokens. However, '{}' has {} tokens "
                    "and at least one is needed for the answer: please shorten it",
                    context.max_model_len, prompt_field, length),
        prompt_field, 400, "context_length_exceeded");
  }
  const int64_t room = context.max_model_len - length;
  auto& max_tokens = request.params.max_tokens;
  if (max_tokens && !request.max_tokens_field.empty() && *max_tokens > room) {
    throw RequestError(
        fmt::format("'{}' is too large: {}. This model's maximum context length is {} tokens and "
                    "the prompt has {}, which leaves {}",
                    request.max_tokens_field, *max_tokens, context.max_model_len, length, room),
        request.max_tokens_field, 400, "context_length_exceeded");
  }
  max_tokens = std::min(max_tokens.value_or(room), room);
  if (request.params.min_tokens > *max_tokens) {
    throw RequestError(fmt::format("'min_tokens' is {}, but at most {} tokens can be generated",
                                   request.params.min_tokens, *max_tokens),
                       "min_tokens");
  }
}

}  // namespace reft
