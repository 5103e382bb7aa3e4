#include "train/train_data.h"

#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "tensor/gguf.h"
#include "text/chat_template.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

constexpr double kDefaultValidation = 0.01;

bool is_gguf(const std::string& path) { return fs::path(path).extension() == ".gguf"; }

const std::string& tokenizer_path(const TrainerOptions& options) {
  return options.tokenizer_path.empty() ? options.model_path : options.tokenizer_path;
}

std::string template_of(const TrainerOptions& options, const Tokenizer& tokenizer) {
  if (!options.chat_template.empty()) return options.chat_template;
  if (!tokenizer.chat_template().empty()) return tokenizer.chat_template();
  const std::string config = options.model_path + "/config.json";
  if (!fs::exists(config)) return "";
  return default_chat_template(json_get<std::string>(read_json_file(config), "model_type", ""));
}

// By --val_size, or by --test_every alone: then no row may be held out.
void choose_validation(const TrainerOptions& options, TrainData* data) {
  double& fraction = data->training.mix.validation_fraction;
  const bool by_default = fraction < 0;
  if (by_default) fraction = options.test_every > 0 ? kDefaultValidation : 0;
  data->validation = data->training;
  data->validation.mix.validation = true;
  data->validation.mix.shuffle = false;
  if (options.test_every <= 0 || fraction <= 0) return;
  try {
    data->validation_batches = measure_epoch(data->validation, *data->encoder).batches;
  } catch (const Error&) {
    if (!by_default) throw;
    fraction = 0;
    log_warning("train", "No evaluation: {:g}% of these rows are none; choose --val_size",
                100 * kDefaultValidation);
  }
}

}  // namespace

TrainData open_train_data(const TrainerOptions& options) {
  TrainData data;
  const std::string& path = tokenizer_path(options);
  data.tokenizer = is_gguf(path) ? load_tokenizer(*open_gguf(path)) : load_tokenizer(path);
  const std::string chat_template = template_of(options, *data.tokenizer);
  if (!chat_template.empty()) {
    data.chat =
        std::make_unique<ChatEncoder>(chat_template, *data.tokenizer, options.chat_template_kwargs);
  }
  data.encoder =
      std::make_unique<ExampleEncoder>(*data.tokenizer, data.chat.get(), options.encoder);
  data.training = options.loader;
  choose_validation(options, &data);
  return data;
}

ModelFiles files_of_trained_model(const TrainerOptions& options, const Json& config, DType dtype) {
  ModelFiles files;
  if (!is_gguf(options.model_path)) files = read_model_files(options.model_path);
  if (!options.tokenizer_path.empty() && options.tokenizer_path != options.model_path) {
    std::erase_if(files, [](const auto& file) { return file.first != "generation_config.json"; });
    ModelFiles others;
    if (fs::is_directory(options.tokenizer_path)) {
      others = read_model_files(options.tokenizer_path);
    } else if (const fs::path path = options.tokenizer_path; path.extension() == ".json") {
      others["tokenizer.json"] = read_file(path);
    }
    others.erase("generation_config.json");
    files.merge(others);
  }
  if (!options.chat_template.empty()) {
    files.erase("chat_template.json");
    files["chat_template.jinja"] = options.chat_template;
  }
  files["config.json"] = config_for_dtype(config.dump(), dtype);
  return files;
}

}  // namespace reft
