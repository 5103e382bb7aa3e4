// reft chat: a conversation in the terminal.
#include <histedit.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>

#include "base/log.h"
#include "cli/command.h"
#include "cli/local_generate.h"

namespace reft {
namespace {

// Reads lines with editing and history on a terminal, plainly otherwise.
class LineReader {
 public:
  LineReader() : terminal_(::isatty(STDIN_FILENO) == 1) {
    if (!terminal_) return;
    editor_ = el_init("reft", stdin, stdout, stderr);
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, 500);
    el_set(editor_, EL_HIST, history, history_);
    el_set(editor_, EL_EDITOR, "emacs");
    el_set(editor_, EL_SIGNAL, 1);
    el_set(
        editor_, EL_PROMPT, +[](EditLine*) -> char* {
          static char prompt[] = "> ";
          return prompt;
        });
  }
  ~LineReader() {
    if (editor_ != nullptr) el_end(editor_);
    if (history_ != nullptr) history_end(history_);
  }
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // False at the end of the input.
  bool read(std::string& line) {
    if (!terminal_) return static_cast<bool>(std::getline(std::cin, line));
    int count = 0;
    const char* text = el_gets(editor_, &count);
    if (text == nullptr || count <= 0) return false;
    line.assign(text, static_cast<size_t>(count));
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
    HistEvent event;
    if (!line.empty()) history(history_, &event, H_ENTER, line.c_str());
    return true;
  }
  bool terminal() const { return terminal_; }

 private:
  bool terminal_;
  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
};

struct ChatOptions {
  static constexpr const char* kName = "chat";
  static constexpr const char* kSummary = "chat with a model in the terminal";
  static constexpr const char* kDescription =
      "Answers stream as they are generated; Ctrl-C stops an answer, Ctrl-D leaves.\n/reset "
      "forgets the conversation, "
      "/system TEXT sets the system prompt, /regenerate answers again, /stats toggles timings, "
      "/exit leaves.";

  ModelFlags model;
  SamplingFlags sampling;
  std::string system;
  bool stats = true;

  void declare(ArgParser& parser) {
    model.declare_model(parser, true);
    model.declare_engine(parser);
    model.declare_adapter(parser);
    sampling.declare(parser);
    parser.group("Chat");
    parser.add("system", &system, "System prompt.", {"s"});
    parser.add("stats", &stats, "Show tokens per second after each answer.");
    parser.example("reft chat", "With the default model:");
    parser.example("reft chat --model Qwen/Qwen3-0.6B --temperature 0.6",
                   "With a model of the hub:");
  }

  // Answers the conversation and appends the answer.
  void answer(Engine& engine, const ServingModel& serving, const SamplingParams& params,
              Json& messages) const {
    const GenerationResult result =
        generate(engine, encode_chat(serving, messages), params, [](const std::string& text) {
          std::fwrite(text.data(), 1, text.size(), stdout);
          std::fflush(stdout);
        });
    std::printf("\n");
    messages.push_back({{"role", "assistant"}, {"content", result.text}});
    if (!stats) return;
    const double decode = result.total_seconds - result.first_token_seconds;
    const bool dim = ::isatty(STDOUT_FILENO) == 1;
    std::printf("%s[%lld tokens, TTFT %.0f ms, %.1f tokens/s%s]%s\n", dim ? "\x1b[2m" : "",
                static_cast<long long>(result.num_output_tokens), result.first_token_seconds * 1e3,
                decode > 0 ? static_cast<double>(result.num_output_tokens - 1) / decode : 0.0,
                result.finish_reason == FinishReason::kLength  ? ", cut by length"
                : result.finish_reason == FinishReason::kAbort ? ", stopped"
                                                               : "",
                dim ? "\x1b[0m" : "");
  }

  int execute(const ArgParser& parser) {
    set_log_level(LogLevel::kWarning);
    model.engine.max_num_seqs = 1;
    ServingModel serving = model.load();
    const SamplingParams params = sampling.resolve(parser, serving.loaded.generation_config);
    const std::unique_ptr<Engine> local = make_local_engine(serving, model);
    Engine& engine = *local;
    LineReader lines;
    Json messages = Json::array();
    const auto reset = [&] {
      messages = Json::array();
      if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
    };
    reset();
    if (lines.terminal()) {
      std::printf("%s. Ctrl-C stops an answer, Ctrl-D leaves, /reset starts anew.\n",
                  short_model_name(serving.path).c_str());
    }
    for (std::string line; lines.read(line);) {
      if (line.empty()) continue;
      try {
        if (line == "/exit" || line == "/quit" || line == "/bye") break;
        if (line == "/reset" || line == "/clear") {
          reset();
        } else if (line.starts_with("/system")) {
          system = line.size() > 8 ? line.substr(8) : "";
          reset();
        } else if (line == "/stats") {
          stats = !stats;
        } else if (line == "/regenerate") {
          check(messages.size() >= 2 && messages.back()["role"] == "assistant",
                "there is no answer to repeat");
          messages.erase(messages.size() - 1);
          answer(engine, serving, params, messages);
        } else if (line[0] == '/') {
          fail("unknown command '{}': /reset, /system TEXT, /regenerate, /stats, /exit", line);
        } else {
          messages.push_back({{"role", "user"}, {"content", line}});
          answer(engine, serving, params, messages);
        }
      } catch (const Error& e) {
        std::fprintf(stderr, "%s\n", e.what());
      }
    }
    return 0;
  }
};

}  // namespace

Command chat_command() { return make_command<ChatOptions>(); }

}  // namespace reft
