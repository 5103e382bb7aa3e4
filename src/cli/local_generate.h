// One generation at a time on an engine of this process: what `reft run`, `reft chat` and the
// offline benchmarks do.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/args.h"
#include "base/json.h"
#include "cli/model_flags.h"
#include "engine/engine.h"

namespace reft {

struct SamplingFlags {
  SamplingParams params;
  double temperature = 1.0, top_p = 1.0, min_p = 0.0, repetition_penalty = 1.0;
  int64_t top_k = 0, max_tokens = 0, seed = -1;
  std::vector<std::string> stop;
  void declare(ArgParser& parser);
  // The flags that were given over the model's generation_config.json.
  SamplingParams resolve(const ArgParser& parser, const Json& generation_config) const;
};

struct GenerationResult {
  std::string text;
  FinishReason finish_reason = FinishReason::kNone;
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;
  int64_t num_output_tokens = 0;
  double first_token_seconds = 0;  // from the call to the first token
  double total_seconds = 0;
};

// An engine with the model and, where --lora named one, its adapter under kLocalAdapter, which
// generate() then uses.
inline constexpr const char* kLocalAdapter = "adapter";
std::unique_ptr<Engine> make_local_engine(ServingModel& serving, const ModelFlags& flags);

// Submits and waits; `on_text` gets the text as it comes, on another thread. Ctrl-C ends the
// generation, not the program. Throws RequestError or Error.
GenerationResult generate(Engine& engine, std::vector<int32_t> prompt, SamplingParams params,
                          const std::function<void(const std::string&)>& on_text);

// Ids of a conversation, the template applied. Throws Error when the model has no template.
std::vector<int32_t> encode_chat(const ServingModel& model, const Json& messages,
                                 const Json& kwargs = Json::object());

}  // namespace reft
