#include <filesystem>

#include "base/file.h"
#include "models/config.h"
#include "models/ctranslate2_checkpoint.h"
#include "models/parameter_loading.h"
#include "models/speech_model.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

struct SpeechFamily {
  const char* architecture;
  std::unique_ptr<SpeechModel> (*create)(const Json& config);
};
constexpr SpeechFamily kFamilies[] = {{"WhisperForConditionalGeneration", create_whisper}};

const SpeechFamily* find_family(const Json& config) {
  std::string architecture = read_architecture(config);
  if (architecture.empty() && config.value("model_type", "") == "whisper")
    architecture = kFamilies[0].architecture;
  for (const SpeechFamily& family : kFamilies) {
    if (architecture == family.architecture) return &family;
  }
  return nullptr;
}

Json read_object(const fs::path& path) {
  if (!fs::exists(path)) return Json::object();
  Json json = read_json_file(path.string());
  check(json.is_object(), "{}: not a JSON object", path.string());
  return json;
}

struct Source {
  Json config, generation_config;
  std::unique_ptr<CheckpointReader> reader;  // null for load_format dummy
};

Source open_source(const std::string& path, bool dummy) {
  Source source;
  source.config = read_object(fs::path(path) / "config.json");
  source.generation_config = read_object(fs::path(path) / "generation_config.json");
  if (is_ctranslate2_whisper(path)) {
    Ctranslate2Checkpoint checkpoint = open_ctranslate2_checkpoint(path);
    // Its config.json says what a Hugging Face generation_config.json does, under other names.
    const auto copy = [&](const char* from, const char* to) {
      if (source.config.contains(from)) source.generation_config[to] = source.config[from];
    };
    copy("suppress_ids", "suppress_tokens");
    copy("suppress_ids_begin", "begin_suppress_tokens");
    copy("alignment_heads", "alignment_heads");
    source.config = std::move(checkpoint.config);
    if (!dummy) source.reader = std::move(checkpoint.reader);
    return source;
  }
  // Old checkpoints keep these in config.json.
  for (const char* key : {"suppress_tokens", "begin_suppress_tokens"}) {
    if (!source.generation_config.contains(key) && source.config.contains(key))
      source.generation_config[key] = source.config[key];
  }
  if (!dummy) source.reader = open_checkpoint(path);
  return source;
}

}  // namespace

bool is_speech_model(const std::string& path) {
  if (is_ctranslate2_whisper(path)) return true;
  const fs::path config = fs::path(path) / "config.json";
  std::error_code error;
  return fs::is_regular_file(config, error) && find_family(read_object(config)) != nullptr;
}

LoadedSpeechModel load_speech_model(const std::string& path, const LoadOptions& options) {
  const bool dummy = options.load_format == "dummy";
  check(fs::exists(path), "no model at '{}': there is no such file or folder", path);
  Source source = open_source(path, dummy);
  const SpeechFamily* family = find_family(source.config);
  check(family != nullptr, "{}: config.json does not name a speech model", path);
  LoadedSpeechModel loaded;
  if (source.reader && !read_dtype(source.config) && !source.reader->entries().empty())
    source.config["dtype"] = dtype_name(source.reader->entries().front().dtype);
  try {
    loaded.model = family->create(source.config);
  } catch (const Error& e) {
    fail("{}: {}", path, e.what());
  }
  loaded.device = options.device;
  loaded.compute_dtype = options.dtype == "auto" ? loaded.model->info().checkpoint_dtype
                                                 : parse_float_dtype(options.dtype);
  TensorAssignment assignment;
  if (source.reader) {
    std::unordered_map<std::string, const TensorEntry*> entries;
    for (const TensorEntry& entry : source.reader->entries()) entries[entry.name] = &entry;
    assignment = assign_tensors(
        *loaded.model, *source.reader, path,
        [&](const std::string& name) {
          const auto it = entries.find(name);
          return it == entries.end() ? nullptr : it->second;
        },
        [](const std::string& key) { return key == "proj_out.weight"; });
  }
  load_parameters(*loaded.model, source.reader.get(), assignment,
                  {.compute = loaded.compute_dtype,
                   .convert = true,
                   .device = options.device,
                   .seed = options.seed},
                  options.quiet);
  if (source.reader) source.reader->release_pages();
  loaded.model->visit([&](const std::string& name, Parameter& parameter) {
    if (!source.reader || assignment.contains(name))
      loaded.num_parameters += parameter.shape.numel();
  });
  loaded.model->for_each_module(
      [&](Module& module) { loaded.weight_bytes += module.weight_bytes(); });
  loaded.config = std::move(source.config);
  loaded.generation_config = std::move(source.generation_config);
  return loaded;
}

}  // namespace reft
