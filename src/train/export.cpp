#include "train/export.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <set>

#include "base/file.h"
#include "base/log.h"
#include "engine/lora_merge.h"
#include "models/gguf_export.h"
#include "models/model.h"
#include "tensor/gguf.h"
#include "tensor/gguf_writer.h"
#include "text/gguf_tokenizer.h"
#include "train/export_check.h"
#include "train/objective.h"
#include "train/train_data.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

// A tensor of the result. What an adapter changes is made when it is needed.
struct Part {
  std::string key;        // in a Hugging Face folder
  std::string parameter;  // empty: none of the language model's
  Tensor base;
  const LoraWeights* lora = nullptr;

  bool changed() const { return lora != nullptr; }
  // In float32 where it was changed, else as it lies in the file.
  Tensor value() const { return changed() ? merge_lora(parameter, base, *lora) : base; }
};

bool is_gguf(const std::string& path) { return fs::path(path).extension() == ".gguf"; }

class Exporter {
 public:
  explicit Exporter(const ExportOptions& options);
  ExportResult run();

 private:
  void apply_adapter();
  Part& part_of(const std::string& parameter, const std::string& what);
  void untie_head();
  DType folder_dtype() const;
  TrainerOptions file_options() const;
  void write_folder(const std::string& folder, DType dtype) const;
  std::string write_gguf_file() const;
  GgufMetadata tokenizer_metadata() const;
  DType format_of(const Part& part) const;

  const ExportOptions& options_;
  std::unique_ptr<CausalLmModel> described_;
  Json config_;
  std::vector<Part> parts_;
  bool tied_ = false;
  LoraAdapter adapter_;
};

Json config_of(const std::string& path) {
  if (fs::exists(path + "/config.json")) return read_json_file(path + "/config.json");
  return open_gguf_checkpoint(path).config;
}

Exporter::Exporter(const ExportOptions& options) : options_(options) {
  check(!options.output.empty(), "--output is missing: the folder or .gguf file to be written");
  check(fs::exists(options.model_path), "no model at '{}'", options.model_path);
  check(!fs::exists(options.output) || !fs::equivalent(options.output, options.model_path),
        "--output is the model itself: '{}'", options.output);
  described_ = describe_model(options.model_path, {});
  config_ = config_of(options.model_path);
  std::set<std::string> known;
  described_->visit([&](const std::string& name, Parameter&) { known.insert(name); });
  tied_ = !known.contains(kHead);
  for (CheckpointTensor& t : checkpoint_tensors(options.model_path)) {
    // A copy of the embedding beside a tied head.
    if (tied_ && t.parameter == kHead) continue;
    if (!known.contains(t.parameter)) t.parameter.clear();
    parts_.push_back({.key = t.key, .parameter = t.parameter, .base = t.value});
  }
  if (!options.adapter.empty()) apply_adapter();
}

Part& Exporter::part_of(const std::string& parameter, const std::string& what) {
  if (parameter == kHead && tied_) untie_head();
  for (Part& part : parts_) {
    if (part.parameter == parameter) return part;
  }
  fail("{}: the model has no '{}' that '{}' would change", options_.adapter, parameter, what);
}

// The head as a matrix of its own, which begins as the embedding.
void Exporter::untie_head() {
  const auto embedding = std::ranges::find(parts_, kEmbedding, &Part::parameter);
  check(embedding != parts_.end(), "{}: no token embedding", options_.model_path);
  parts_.push_back({.key = kHead, .parameter = kHead, .base = embedding->base});
  tied_ = false;
  config_["tie_word_embeddings"] = false;
}

void Exporter::apply_adapter() {
  adapter_ = read_adapter(options_.adapter);
  // PEFT's embedding is one of its own when it was trained: the head stays what it was.
  const bool embeds = adapter_.saved.contains(kEmbedding) && tied_;
  if (embeds) untie_head();
  for (const auto& [name, tensor] : adapter_.saved) {
    Part& part = part_of(name, name);
    check(tensor.shape() == part.base.shape(), "{}: '{}' is {}, the model's is {}",
          options_.adapter, name, tensor, part.base.shape());
    part.base = tensor;
  }
  for (const auto& [path, weights] : adapter_.layers) {
    part_of(path + ".weight", path).lora = &weights;
  }
  log_info(
      "export", "Adapter {}: {} layers{}, rank {}", options_.adapter, adapter_.layers.size(),
      adapter_.saved.empty() ? "" : fmt::format(" and {} whole tensors", adapter_.saved.size()),
      adapter_.config.rank);
}

DType Exporter::folder_dtype() const {
  if (options_.dtype) return *options_.dtype;
  const bool blocks =
      std::ranges::any_of(parts_, [](const Part& p) { return is_block_format(p.base.dtype()); });
  return blocks ? DType::kBF16 : described_->info().checkpoint_dtype;
}

TrainerOptions Exporter::file_options() const {
  TrainerOptions files;
  files.model_path = options_.model_path;
  files.tokenizer_path = options_.tokenizer_path;
  files.chat_template = options_.chat_template;
  return files;
}

void Exporter::write_folder(const std::string& folder, DType dtype) const {
  fs::create_directories(folder);
  NamedTensors tensors;
  for (const Part& part : parts_) {
    const Tensor value = part.value();
    const bool number = is_float(value.dtype()) || is_block_format(value.dtype());
    try {
      tensors.emplace_back(part.key, number ? quantized(value, dtype) : value);
    } catch (const Error& e) {
      fail("tensor '{}': {}", part.key, e.what());
    }
  }
  write_model_folder(folder, std::string(kModelStem), tensors,
                     files_of_trained_model(file_options(), config_, dtype),
                     options_.max_shard_bytes);
  const std::string head = fmt::format("/{}.safetensors", kValueHeadStem);
  if (fs::exists(options_.model_path + head)) {
    write_file_atomic(folder + head, read_file(options_.model_path + head));
  }
}

DType Exporter::format_of(const Part& part) const {
  if (part.base.dims() < 2) return DType::kF32;
  DType format = options_.quant;
  const bool few_bits = is_block_format(format) && format != DType::kQ8_0;
  if (few_bits && (part.parameter == kEmbedding || part.parameter == kHead)) format = DType::kQ8_0;
  const auto whole = [&](DType dtype) {
    return part.base.size(part.base.dims() - 1) % dtype_info(dtype).block_elems == 0;
  };
  if (format == DType::kQ4_K && !whole(format)) format = DType::kQ5_0;
  return whole(format) ? format : DType::kF16;
}

GgufMetadata Exporter::tokenizer_metadata() const {
  const std::string& path =
      options_.tokenizer_path.empty() ? options_.model_path : options_.tokenizer_path;
  GgufMetadata out;
  if (is_gguf(path)) {
    out = gguf_tokenizer(*open_gguf(path));
  } else {
    check(has_tokenizer(path), "'{}' has no tokenizer: --tokenizer names one", path);
    out = gguf_tokenizer(path, *load_tokenizer(path), described_->info().vocab_size);
  }
  if (!options_.chat_template.empty()) out["tokenizer.chat_template"] = options_.chat_template;
  return out;
}

// llama.cpp's numbers of what most tensors are (llama_ftype).
int64_t file_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ8_0:
      return 7;
    case DType::kQ4_K:
      return 14;  // Q4_K_S
    default:
      return 32;  // BF16
  }
}

std::string model_name(const std::string& path) {
  fs::path name = fs::weakly_canonical(path);
  return is_gguf(path) ? name.stem().string() : name.filename().string();
}

std::string Exporter::write_gguf_file() const {
  std::string path = options_.output;
  if (!is_gguf(path)) {
    fs::create_directories(path);
    path = fmt::format("{}/{}.{}.gguf", path, model_name(options_.model_path),
                       options_.quant == DType::kBF16  ? "BF16"
                       : options_.quant == DType::kF16 ? "F16"
                       : options_.quant == DType::kF32 ? "F32"
                                                       : dtype_name(options_.quant));
  } else if (const fs::path folder = fs::path(path).parent_path(); !folder.empty()) {
    fs::create_directories(folder);
  }
  GgufDescription description = describe_for_gguf(config_, *described_);
  GgufMetadata& metadata = description.metadata;
  metadata.merge(tokenizer_metadata());
  metadata["general.name"] = model_name(options_.model_path);
  metadata["general.file_type"] = file_type(options_.quant);
  metadata["general.quantization_version"] = int64_t{2};
  std::vector<GgufTensor> tensors = std::move(description.tensors);
  for (const Part& part : parts_) {
    if (part.parameter.empty()) continue;
    const DType format = format_of(part);
    const GgufNames& names = description.names;
    tensors.push_back(
        {names.name_of(part.parameter), format, part.base.shape(), [&part, &names, format] {
           return quantized(names.value_of(part.parameter, part.value()), format);
         }});
  }
  write_gguf(path, metadata, tensors);
  return path;
}

ExportResult Exporter::run() {
  ExportResult result;
  if (options_.gguf) {
    result.path = write_gguf_file();
    const auto written = load_tokenizer(*open_gguf(result.path));
    const std::string& path =
        options_.tokenizer_path.empty() ? options_.model_path : options_.tokenizer_path;
    const auto source = is_gguf(path) ? load_tokenizer(*open_gguf(path)) : load_tokenizer(path);
    check_same_tokens(*written, *source);
  } else {
    write_folder(options_.output, folder_dtype());
    result.path = options_.output;
    if (is_gguf(options_.model_path) && options_.tokenizer_path.empty()) {
      log_warning("export",
                  "The tokenizer of a .gguf file cannot be written as tokenizer.json: "
                  "--tokenizer names a folder to copy one from");
    }
  }
  log_info("export", "Written: {}", result.path);
  if (!options_.verify) return result;
  const std::string exact = result.path + ".verify";
  fs::remove_all(exact);
  try {
    write_folder(exact, DType::kF32);
    result.difference = compare_models(exact, result.path, options_.quiet);
  } catch (...) {
    fs::remove_all(exact);
    throw;
  }
  fs::remove_all(exact);
  return result;
}

}  // namespace

DType parse_quant(const std::string& name) {
  for (const auto& [text, dtype] :
       {std::pair("F32", DType::kF32), std::pair("F16", DType::kF16),
        std::pair("BF16", DType::kBF16), std::pair("Q8_0", DType::kQ8_0),
        std::pair("Q4_0", DType::kQ4_0), std::pair("Q4_1", DType::kQ4_1),
        std::pair("Q4_K", DType::kQ4_K)}) {
    if (name == text) return dtype;
  }
  fail("--quant '{}' is not known: F32, F16, BF16, Q8_0, Q4_0, Q4_1 and Q4_K are", name);
}

ExportResult export_model(const ExportOptions& options) { return Exporter(options).run(); }

}  // namespace reft
