#include "cli/command.h"

namespace reft {

const std::vector<Command>& all_commands() {
  static const std::vector<Command> commands = {
      serve_command(),       chat_command(),          run_command(),
      transcribe_command(),  train_command(),         export_command(),
      bench_serve_command(), bench_latency_command(), bench_throughput_command(),
      inspect_command(),     tokenize_command(),      pull_command(),
      completion_command(),
  };
  return commands;
}

}  // namespace reft
