// The flags that say which model runs and how, shared by every command that loads one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/args.h"
#include "engine/engine.h"
#include "models/model.h"
#include "models/speech_model.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace reft {

// Everything a command needs to serve a model in this process.
struct ServingModel {
  std::string path;  // of the weights: a folder or a .gguf file
  LoadedModel loaded;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: none, prompts are token ids
  std::shared_ptr<const ChatTemplate>
      chat_template;  // null: the model has none, and none was chosen

  // For commands that take text. Throws Error when there is none.
  const Tokenizer& require_tokenizer() const;
};

// The same for a speech model.
struct ServingSpeechModel {
  std::string path;
  LoadedSpeechModel loaded;
  std::shared_ptr<const Tokenizer> tokenizer;
};

struct ModelFlags {
  std::string model;
  std::string tokenizer;
  std::string revision = "main";
  std::string hf_token;
  std::string download_dir;
  std::string dtype = "auto";
  std::string device = "auto";
  std::string quantization = "auto";
  std::string load_format = "auto";
  std::string chat_template;
  bool skip_tokenizer_init = false;
  int64_t threads = 0;
  int64_t seed = 0;
  bool quiet = false;
  std::string adapter;  // folder
  EngineOptions engine;

  // Which model: --model, --tokenizer, --chat_template, --threads and the hub's flags.
  void declare_source(ArgParser& parser);
  // declare_source, and how to load it for serving. `positional` adds MODEL as the first argument
  // too.
  void declare_model(ArgParser& parser, bool positional);
  void declare_engine(ArgParser& parser);
  // --lora of one adapter for everything (run, chat).
  void declare_adapter(ArgParser& parser);
  // --seed, where sampling flags do not have one of their own.
  void declare_seed(ArgParser& parser);

  // Sets the compute threads, finds (or downloads) and loads the model. Without --model: the
  // default model.
  ServingModel load() const;
  // Throws Error where the model is none of speech.
  ServingSpeechModel load_speech() const;
  void apply_threads() const;
  LoadOptions load_options() const;
  // Only the files' place, and the tokenizer with its template.
  std::string resolve_path() const;
  std::shared_ptr<const Tokenizer> load_tokenizer_for(const std::string& path) const;
};

// "cpu", "cuda", or "auto": the first GPU where this build and machine have one, which is logged
// where they have none. Throws Error for a "cuda" that is not there.
Device choose_device(const std::string& name);

// "name=folder", "folder" (named by its last part) or {"name": …, "path": …} of --lora.
struct AdapterFlag {
  std::string name;
  std::string path;
};
// Throws Error naming the flag.
AdapterFlag parse_adapter(const std::string& text);
// Room for these adapters: max_loras and max_lora_rank where they are 0. Reads their ranks.
void make_room_for_adapters(const std::vector<AdapterFlag>& adapters, EngineOptions* options);

// Where quickstart.sh puts the default model: $XDG_CACHE_HOME/reft/models, else
// ~/.cache/reft/models.
std::string default_model_path();
// "SmolLM2-135M-Instruct" for .../SmolLM2-135M-Instruct.Q4_1.gguf, else the last part of the path.
std::string short_model_name(const std::string& path);

}  // namespace reft
