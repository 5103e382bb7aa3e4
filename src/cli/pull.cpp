// reft pull: fetch a model from the hub into its cache.
#include <cstdio>

#include "cli/command.h"
#include "hub/resolve.h"

namespace reft {
namespace {

struct PullOptions {
  static constexpr const char* kName = "pull";
  static constexpr const char* kSummary = "download a model from the hub into the hub cache";
  static constexpr const char* kDescription =
      "Downloads what a server needs of org/name (weights, configuration, tokenizer) in parallel, "
      "continues what "
      "was broken off, checks the hashes, and prints the folder. The cache has the hub's own "
      "layout, so that other "
      "tools find the model too. HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE "
      "are read.";

  std::string model;
  HubOptions hub;

  void declare(ArgParser& parser) {
    parser.positional("MODEL", &model,
                      "org/name, or org/name:QUANT for one file of a GGUF repository.", true);
    parser.add("revision", &hub.revision, "Branch, tag or commit.");
    parser.add("hf_token", &hub.token, "Token for gated models.", {"token"});
    parser.add("download_dir", &hub.cache_dir, "Hub cache folder.", {"cache_dir"});
    parser.add("quiet", &hub.quiet, "No progress bar.", {"q"});
    parser.example("reft pull Qwen/Qwen3-0.6B", "All that `reft serve Qwen/Qwen3-0.6B` needs:");
  }

  int execute(const ArgParser&) {
    hub.update = true;
    std::printf("%s\n", resolve_model(model, hub).c_str());
    return 0;
  }
};

}  // namespace

Command pull_command() { return make_command<PullOptions>(); }

}  // namespace reft
