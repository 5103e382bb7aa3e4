// From what a user calls a model to a path on disk: a file or folder as it is, `org/name` from the
// Hugging Face hub's cache, else downloaded into it.
#pragma once

#include <string>

namespace reft {

struct HubOptions {
  std::string revision;   // branch, tag or commit; empty: main
  std::string token;      // empty: HF_TOKEN, else the file that `hf auth login` writes
  std::string cache_dir;  // empty: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub
  std::string endpoint;   // empty: HF_ENDPOINT, else https://huggingface.co
  bool offline = false;   // only the cache is looked at, as with HF_HUB_OFFLINE=1
  bool update = false;    // asks the hub for a newer commit even when the cache has the model
  bool quiet = false;     // no progress bar
  int connections = 8;    // parallel downloads
};

// A path to a folder (safetensors, config, tokenizer) or to a .gguf file.
//   existing file or folder   itself
//   org/name                  its snapshot folder; of a repository with GGUF files only, one of
//   them, Q4_K_M first org/name:Q4_K_M           the GGUF file of that quantisation (any case)
//   org/name:path/x.gguf      that file
// Throws Error that says what to do: no such model, gated (set HF_TOKEN), offline and not cached,
// disk full, a server that does not send what it promised.
std::string resolve_model(const std::string& model, const HubOptions& options = {});

}  // namespace reft
