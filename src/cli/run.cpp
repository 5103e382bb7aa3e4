// reft run: one prompt, one answer.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/log.h"
#include "cli/command.h"
#include "cli/local_generate.h"

namespace reft {
namespace {

struct RunOptions {
  static constexpr const char* kName = "run";
  static constexpr const char* kSummary = "answer one prompt and exit";
  static constexpr const char* kDescription =
      "The prompt is the argument, standard input, or both (the argument first). The chat template "
      "is applied "
      "unless --raw is given. The answer goes to standard output as it is generated.";

  ModelFlags model;
  SamplingFlags sampling;
  std::vector<std::string> words;
  std::string system;
  bool raw = false;
  bool stats = false;

  void declare(ArgParser& parser) {
    parser.positional_rest("PROMPT", &words, "The prompt.");
    model.declare_model(parser, false);
    model.declare_engine(parser);
    model.declare_adapter(parser);
    sampling.declare(parser);
    parser.group("Prompt");
    parser.add("system", &system, "System prompt.", {"s"});
    parser.add("raw", &raw, "Complete the text as it is, without a chat template.");
    parser.add("stats", &stats,
               "Print tokens, time to first token and tokens per second to standard error.");
    parser.example("reft run 'What is the capital of France?'", "The default model:");
    parser.example(
        "git diff | reft run --model model.gguf 'Write a commit message for this change.'",
        "With standard input:");
  }

  int execute(const ArgParser& parser) {
    std::string prompt;
    for (const std::string& word : words) prompt += (prompt.empty() ? "" : " ") + word;
    if (::isatty(STDIN_FILENO) == 0 || words.empty()) {
      const std::string input(std::istreambuf_iterator<char>(std::cin), {});
      prompt += (prompt.empty() || input.empty() ? "" : "\n\n") + input;
    }
    check(!prompt.empty(), "nothing to answer: give a prompt as argument or on standard input");
    if (!stats) set_log_level(LogLevel::kWarning);
    model.quiet = !stats;
    model.engine.max_num_seqs = 1;
    ServingModel serving = model.load();
    std::vector<int32_t> ids;
    if (raw) {
      ids = serving.require_tokenizer().encode(prompt);
    } else {
      Json messages = Json::array();
      if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
      messages.push_back({{"role", "user"}, {"content", prompt}});
      ids = encode_chat(serving, messages);
    }
    const SamplingParams params = sampling.resolve(parser, serving.loaded.generation_config);
    const std::unique_ptr<Engine> local = make_local_engine(serving, model);
    Engine& engine = *local;
    const GenerationResult result =
        generate(engine, std::move(ids), params, [](const std::string& text) {
          std::fwrite(text.data(), 1, text.size(), stdout);
          std::fflush(stdout);
        });
    std::printf("\n");
    if (stats) {
      const double decode = result.total_seconds - result.first_token_seconds;
      std::fprintf(stderr, "%lld prompt tokens, %lld output tokens, TTFT %.1f ms, %.1f tokens/s\n",
                   static_cast<long long>(result.num_prompt_tokens),
                   static_cast<long long>(result.num_output_tokens),
                   result.first_token_seconds * 1e3,
                   decode > 0 ? static_cast<double>(result.num_output_tokens - 1) / decode : 0.0);
    }
    return result.finish_reason == FinishReason::kAbort ? 130 : 0;
  }
};

}  // namespace

Command run_command() { return make_command<RunOptions>(); }

}  // namespace reft
