// The subcommands of `reft`. Each command is one file: it declares its flags, parses them, builds
// objects and runs them; nothing else lives here.
#pragma once

#include <string>
#include <vector>

#include "base/args.h"

namespace reft {

struct Command {
  const char* name;     // "serve", "bench serve"
  const char* summary;  // one line for `reft --help`
  // Declares the flags on a parser and, unless `help_only`, parses and runs. Returns the exit
  // status; throws Error for what the user did wrong.
  int (*run)(const std::vector<std::string>& args);
  // The flags, for completion.
  std::vector<std::string> (*flags)();
};

// In the order of the help.
const std::vector<Command>& all_commands();

// From a type with `void declare(ArgParser&)`, `int execute(const ArgParser&)` and the constants
// kName, kSummary and kDescription.
template <class Options>
int run_command(const std::vector<std::string>& args) {
  Options options;
  ArgParser parser(std::string("reft ") + Options::kName, Options::kSummary, Options::kDescription);
  options.declare(parser);
  if (!parser.parse(args)) return 0;
  return options.execute(parser);
}

template <class Options>
std::vector<std::string> command_flags() {
  Options options;
  ArgParser parser(Options::kName, Options::kSummary, Options::kDescription);
  options.declare(parser);
  return parser.flag_names();
}

template <class Options>
Command make_command() {
  return {Options::kName, Options::kSummary, &run_command<Options>, &command_flags<Options>};
}

Command serve_command();
Command chat_command();
Command run_command();
Command transcribe_command();
Command bench_serve_command();
Command bench_latency_command();
Command bench_throughput_command();
Command inspect_command();
Command tokenize_command();
Command pull_command();
Command train_command();
Command export_command();
Command completion_command();

}  // namespace reft
