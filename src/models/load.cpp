#include <algorithm>
#include <cstring>
#include <filesystem>
#include <unordered_map>
#include <unordered_set>

#include "base/log.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "models/config.h"
#include "models/dummy.h"
#include "models/expert_checkpoint.h"
#include "models/gguf_checkpoint.h"
#include "models/model.h"
#include "models/parameter_loading.h"
#include "tensor/allocator.h"
#include "tensor/dequantize.h"
#include "tensor/safetensors.h"

namespace reft {

namespace {

namespace fs = std::filesystem;

// With the experts' tensors as the family names them: GPT-OSS keeps a layer's together.
std::unique_ptr<CheckpointReader> with_experts(std::unique_ptr<CheckpointReader> reader,
                                               const Json& config) {
  if (read_architecture(config) == "GptOssForCausalLM")
    return join_gate_up(join_mxfp4(std::move(reader)));
  return split_experts(std::move(reader));
}

// What lies at the path, before any weight is touched.
struct Source {
  Json config;
  Json generation_config = Json::object();
  std::unique_ptr<CheckpointReader> reader;  // null for load_format dummy
  bool gguf = false;
};

// Older tools write what is quantization_config now into a file of its own: AutoGPTQ, AutoAWQ and
// ModelOpt.
void adopt_quantization_file(Json& config, const fs::path& folder) {
  const auto own = config.find("quantization_config");
  if (own != config.end() && !own->is_null()) return;
  for (const auto& [name, method] :
       {std::pair("quantize_config.json", "gptq"), std::pair("quant_config.json", "awq"),
        std::pair("hf_quant_config.json", "modelopt")}) {
    if (!fs::exists(folder / name)) continue;
    Json file = read_json_file((folder / name).string());
    if (file.is_object() && file.contains("quantization")) file = file["quantization"];
    check(file.is_object(), "{}: not a JSON object", (folder / name).string());
    // AutoAWQ's names.
    if (file.contains("q_group_size")) file["group_size"] = file["q_group_size"];
    if (!file.contains("quant_method")) file["quant_method"] = method;
    config["quantization_config"] = std::move(file);
    return;
  }
}

Source open_source(const std::string& path, bool dummy) {
  check(fs::exists(path), "no model at '{}': there is no such file or folder", path);
  Source source;
  fs::path config_path = fs::path(path) / "config.json";
  if (dummy && fs::path(path).extension() == ".json") config_path = path;
  if (!fs::exists(config_path)) {
    // A GGUF file, or a folder with one; anything else is an error of open_checkpoint's.
    std::string file = path;
    if (fs::is_directory(path)) {
      const std::unique_ptr<CheckpointReader> any = open_checkpoint(path);
      check(!any->entries().empty(), "'{}' holds no tensors", path);
      file = any->entries().front().file;
      check(file.ends_with(".gguf"), "'{}' is missing", config_path.string());
    }
    check(file.ends_with(".gguf"), "'{}' is neither a model folder nor a .gguf file", path);
    GgufCheckpoint gguf = open_gguf_checkpoint(file);
    source.config = std::move(gguf.config);
    source.generation_config = std::move(gguf.generation_config);
    if (!dummy) source.reader = with_experts(std::move(gguf.reader), source.config);
    source.gguf = true;
    return source;
  }
  source.config = read_json_file(config_path.string());
  check(source.config.is_object(), "{}: not a JSON object", config_path.string());
  const fs::path generation = config_path.parent_path() / "generation_config.json";
  if (fs::exists(generation)) {
    source.generation_config = read_json_file(generation.string());
    check(source.generation_config.is_object(), "{}: not a JSON object", generation.string());
  }
  adopt_quantization_file(source.config, config_path.parent_path());
  if (!dummy) source.reader = with_experts(open_checkpoint(path), source.config);
  return source;
}

const ModelFamily& find_family(const Json& config) {
  const std::string architecture = read_architecture(config);
  std::string known;
  for (const ModelFamily& family : model_families()) {
    for (const std::string& name : family.architectures) {
      if (name == architecture) return family;
      known += (known.empty() ? "" : ", ") + name;
    }
  }
  check(!architecture.empty(),
        "config.json: architectures and model_type are missing; known are {}", known);
  check(!config.contains("auto_map"),
        "config.json: architecture '{}' comes with Python code of its own (auto_map), which is "
        "never run; known "
        "are {}",
        architecture, known);
  fail("config.json: architecture '{}' is not supported; known are {}", architecture, known);
}

// Checkpoints differ in what stands before the language model's keys: "model." mostly, nothing
// (saved without the head), "language_model.model." or "model.language_model." (the text part of a
// multimodal model). Our names have "model.".
class CanonicalNames {
 public:
  explicit CanonicalNames(const CheckpointReader& reader) {
    constexpr std::string_view kEmbedding = "embed_tokens.weight";
    for (const TensorEntry& entry : reader.entries()) {
      if (!entry.name.ends_with(kEmbedding)) continue;
      prefix_ = entry.name.substr(0, entry.name.size() - kEmbedding.size());
      break;
    }
    for (const TensorEntry& entry : reader.entries()) {
      const std::string name = name_of(entry.name);
      if (!name.empty()) entries_.emplace(name, &entry);
    }
  }

  // Our name of a key; empty where it is none of the language model's.
  std::string name_of(const std::string& key) const {
    if (key.starts_with("lm_head.")) return key;
    if (key.starts_with("language_model.lm_head.")) return key.substr(15);
    return key.starts_with(prefix_) ? "model." + key.substr(prefix_.size()) : "";
  }

  // Null when absent.
  const TensorEntry* find(const std::string& name) const {
    const auto it = entries_.find(name);
    return it == entries_.end() ? nullptr : it->second;
  }

 private:
  std::string prefix_ = "model.";
  std::unordered_map<std::string, const TensorEntry*> entries_;
};

constexpr const char* kEmbeddingName = "model.embed_tokens.weight";
constexpr const char* kHeadName = "lm_head.weight";

// A config may tie the head while the file holds one. As transformers does: where the two differ,
// the file is right.
void settle_tying(Json& config, const CheckpointReader& reader, const CanonicalNames& names) {
  const TensorEntry* head = names.find(kHeadName);
  const TensorEntry* embedding = names.find(kEmbeddingName);
  if (head == nullptr || embedding == nullptr) return;
  const auto tied = config.find("tie_word_embeddings");
  if (tied != config.end() && *tied != true) return;
  bool equal = head->dtype == embedding->dtype && head->shape == embedding->shape;
  if (equal) {
    const Tensor a = reader.read(head->name);
    const Tensor b = reader.read(embedding->name);
    equal = std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.nbytes())) == 0;
  }
  if (!equal) config["tie_word_embeddings"] = false;
}

}  // namespace

TensorAssignment assign_tensors(Module& model, const CheckpointReader& reader,
                                const std::string& path,
                                FunctionRef<const TensorEntry*(const std::string& name)> find,
                                FunctionRef<bool(const std::string& key)> ignored,
                                const QuantizedTensors* quantized) {
  TensorAssignment assignment;
  std::unordered_set<const TensorEntry*> used;
  model.visit([&](const std::string& name, Parameter& parameter) {
    if (quantized != nullptr && parameter.set_scales) {
      if (const auto matrix = quantized->find(name, parameter.shape)) {
        used.insert({matrix->codes, matrix->scales, matrix->zeros, matrix->order});
        assignment.emplace(name, AssignedTensor{.quantized = matrix});
        return;
      }
    }
    const TensorEntry* entry = find(name);
    if (entry == nullptr) {
      check(parameter.optional, "{}: tensor '{}' is missing", path, name);
      return;
    }
    check(entry->shape == parameter.shape,
          "{}: tensor '{}' has the shape {}, but config.json makes it {}", entry->file, entry->name,
          entry->shape.str(), parameter.shape.str());
    check(is_float(entry->dtype) || is_block_format(entry->dtype),
          "{}: tensor '{}' is {}, which is not supported here", entry->file, entry->name,
          dtype_name(entry->dtype));
    assignment.emplace(name, AssignedTensor{.plain = entry});
    used.insert(entry);
  });
  int64_t num_extra = 0;
  std::string examples;
  for (const TensorEntry& entry : reader.entries()) {
    const std::string& name = entry.name;
    if (used.count(&entry) > 0 || ignored(name)) continue;
    if (++num_extra <= 3) examples += (examples.empty() ? "" : ", ") + name;
  }
  if (num_extra > 0) {
    log_warning("model", "{}: {} tensors are not used: {}{}", path, num_extra, examples,
                num_extra > 3 ? ", …" : "");
  }
  return assignment;
}

namespace {

// The dtype of the checkpoint where config.json does not say it: the embedding's; of block formats,
// what they are computed in.
DType stored_dtype(const CheckpointReader& reader, const CanonicalNames& names) {
  const TensorEntry* embedding = names.find(kEmbeddingName);
  bool blocks = false;
  for (const TensorEntry& entry : reader.entries()) blocks = blocks || is_block_format(entry.dtype);
  // GPT-OSS keeps all but its experts in bfloat16; float16 could not hold its activations.
  if (blocks && (embedding == nullptr || embedding->dtype != DType::kBF16)) return DType::kF16;
  if (embedding != nullptr && is_float(embedding->dtype)) return embedding->dtype;
  return DType::kF32;
}

// A matrix of floats, each row in whole blocks.
Tensor to_blocks(const Tensor& matrix, DType format) {
  const Tensor from = matrix.contiguous();
  const int64_t rows = from.size(0), k = from.size(1);
  Tensor blocks = Tensor::empty(from.shape(), format);
  compute_pool().parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t i = begin; i < end; ++i) {
      dequantize_row(from.dtype(), from.raw() + i * row_bytes(from.dtype(), k), row.data(), k);
      quantize_row(format, row.data(), blocks.raw() + i * row_bytes(format, k), k);
    }
  });
  return blocks;
}

}  // namespace

void load_parameters(Module& model, const CheckpointReader* reader,
                     const TensorAssignment& assignment, const LoadPlan& plan, bool quiet) {
  struct Job {
    Module* module;
    std::string prefix;
    int64_t elements = 0;
  };
  std::vector<Job> jobs;
  int64_t num_tensors = 0, num_elements = 0;
  model.visit_modules([&](Module& module, const std::string& prefix) {
    Job job{&module, prefix};
    for (const Parameter& parameter : module.own_parameters())
      job.elements += parameter.shape.numel();
    num_elements += job.elements;
    num_tensors += static_cast<int64_t>(module.own_parameters().size());
    if (!module.own_parameters().empty()) jobs.push_back(std::move(job));
  });
  // Large ones first: the last job to finish is then a small one.
  std::stable_sort(jobs.begin(), jobs.end(),
                   [](const Job& a, const Job& b) { return a.elements > b.elements; });

  ProgressBar bar(num_tensors, "Loading weights", /*unit_bytes=*/false, quiet);
  const auto load_one = [&](const Job& job) {
    const bool trainable = job.module->is_trainable();
    for (Parameter& parameter : job.module->own_parameters()) {
      const std::string name =
          job.prefix.empty() ? parameter.name : job.prefix + "." + parameter.name;
      Tensor tensor;
      if (reader == nullptr) {
        tensor =
            dummy_tensor(parameter, name, parameter.dummy_dtype.value_or(plan.compute), plan.seed);
      } else if (const auto it = assignment.find(name); it != assignment.end()) {
        if (it->second.quantized) {
          QuantizedTensors::Data data = plan.quantized->read(*it->second.quantized, plan.compute,
                                                             plan.compute == DType::kF32);
          if (data.scales.defined()) parameter.set_scales(data.scales);
          parameter.set(data.data);
          bar.advance();
          continue;
        }
        tensor = reader->read(it->second.plain->name);
      } else {
        bar.advance();
        continue;
      }
      const bool matrix = tensor.dims() > 1 && is_float(tensor.dtype());
      // A module is trained as a whole or not at all; blocks become floats then.
      const bool plain = tensor.dims() > 1 && trainable;
      if (plan.quantize && matrix && !plain &&
          is_quantized_at_load(name, tensor.shape(), *plan.quantize)) {
        parameter.set(to_blocks(tensor, *plan.quantize));
        bar.advance();
        continue;
      }
      parameter.set((matrix && plan.convert) || plain ? tensor.to(plan.compute) : tensor);
      bar.advance();
    }
    job.module->finish_loading(plan.device, plan.compute);
  };
  // A job of more than a thread's share (the embedding, on many threads) has all threads to itself.
  const auto threads = static_cast<int64_t>(compute_pool().num_threads());
  size_t shared = 0;
  while (shared < jobs.size() && jobs[shared].elements * threads > num_elements)
    load_one(jobs[shared++]);
  compute_pool().parallel_for(static_cast<int64_t>(jobs.size() - shared), 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i)
                                  load_one(jobs[shared + static_cast<size_t>(i)]);
                              });
}

namespace {

// Completes source.config by what the weights say.
std::unique_ptr<CausalLmModel> create_model(Source& source,
                                            const std::optional<CanonicalNames>& names,
                                            const LoadOptions& options) {
  const ModelFamily& family = find_family(source.config);
  if (names) {
    settle_tying(source.config, *source.reader, *names);
    if (!read_dtype(source.config))
      source.config["dtype"] = dtype_name(stored_dtype(*source.reader, *names));
  }
  return family.create(source.config, options);
}

// `wanted` is the user's, beside what the checkpoint says. Dummy weights are floats: an fp8
// checkpoint's become fp8 too.
void request_quantization(CausalLmModel& model, const QuantizedTensors& quantized,
                          const std::string& wanted, bool dummy) {
  const std::string& stored = quantized.method();
  const bool as_stored = wanted == "auto" || wanted == stored;
  check(as_stored || stored.empty(),
        "quantization '{}' was asked for, but the checkpoint's quant_method is '{}'", wanted,
        stored);
  if (as_stored ? !(dummy && stored == "fp8") : wanted == "none") return;
  check(as_stored || wanted == "fp8",
        "quantization '{}' needs a checkpoint of that kind; at load, weights can be turned into "
        "fp8",
        wanted);
  model.visit([&](const std::string& name, Parameter& parameter) {
    parameter.quantize = parameter.set_scales && name != kHeadName && !parameter.trainable;
  });
}

}  // namespace

bool is_quantized_at_load(const std::string& name, const Shape& shape, DType format) {
  return name.starts_with("model.layers.") && shape.dims() == 2 &&
         shape[1] % dtype_info(format).block_elems == 0;
}

std::unique_ptr<CausalLmModel> describe_model(const std::string& path, const LoadOptions& options) {
  Source source = open_source(path, options.load_format == "dummy");
  std::optional<CanonicalNames> names;
  if (source.reader) names.emplace(*source.reader);
  try {
    return create_model(source, names, options);
  } catch (const Error& e) {
    fail("{}: {}", path, e.what());
  }
}

std::vector<CheckpointTensor> checkpoint_tensors(const std::string& path) {
  const Source source = open_source(path, false);
  const CanonicalNames names(*source.reader);
  std::vector<CheckpointTensor> tensors;
  for (const TensorEntry& entry : source.reader->entries()) {
    tensors.push_back({entry.name, names.name_of(entry.name), source.reader->read(entry.name)});
  }
  return tensors;
}

LoadedModel load_model(const std::string& path, const LoadOptions& options) {
  const bool dummy = options.load_format == "dummy";
  check(dummy || options.load_format == "auto",
        "load_format '{}' is not known; it is auto or dummy", options.load_format);
  Source source = open_source(path, dummy);
  LoadedModel loaded;
  std::optional<CanonicalNames> names;
  if (source.reader) names.emplace(*source.reader);
  try {
    loaded.model = create_model(source, names, options);
  } catch (const Error& e) {
    fail("{}: {}", path, e.what());
  }
  bool trains = false;
  if (options.trainable) {
    loaded.model->visit([&](const std::string& name, Parameter& parameter) {
      parameter.trainable = options.trainable(name);
      trains = trains || parameter.trainable;
    });
  }
  std::optional<QuantizedTensors> quantized;
  try {
    quantized.emplace(source.config, source.reader.get(),
                      [&](const std::string& name) { return names ? names->find(name) : nullptr; });
    check(!trains || dummy || quantized->method().empty(),
          "a checkpoint quantised by '{}' cannot be trained; use the unquantised one",
          quantized->method());
    request_quantization(*loaded.model, *quantized, options.quantization, dummy);
  } catch (const Error& e) {
    fail("{}: {}", path, e.what());
  }
  const bool as_stored = options.dtype == "auto";
  loaded.device = options.device;
  loaded.compute_dtype =
      as_stored ? loaded.model->info().checkpoint_dtype : parse_float_dtype(options.dtype);

  TensorAssignment assignment;
  if (source.reader) {
    assignment = assign_tensors(
        *loaded.model, *source.reader, path,
        [&](const std::string& name) { return names->find(name); },
        [&](const std::string& key) {
          return key.ends_with("rotary_emb.inv_freq") || key.ends_with(kHeadName) ||
                 (!quantized->method().empty() && QuantizedTensors::is_auxiliary(key));
        },
        &*quantized);
  }
  load_parameters(*loaded.model, source.reader.get(), assignment,
                  {.compute = loaded.compute_dtype,
                   .quantized = &*quantized,
                   .convert = !(as_stored && source.gguf),
                   .device = options.device,
                   .seed = options.seed,
                   .quantize = options.quantize},
                  options.quiet);
  // What stays of the file are the embedding's rows, where no packed form holds them.
  if (source.reader) source.reader->release_pages();

  // What loading needed for a while: the KV cache takes what is free.
  if (options.device.type != DeviceType::kCpu) allocator_for(options.device).trim();

  loaded.model->visit([&](const std::string& name, Parameter& parameter) {
    if (!source.reader || assignment.count(name) > 0)
      loaded.num_parameters += parameter.shape.numel();
  });
  loaded.model->for_each_module(
      [&](Module& module) { loaded.weight_bytes += module.weight_bytes(); });
  loaded.config = std::move(source.config);
  loaded.generation_config = std::move(source.generation_config);
  return loaded;
}

}  // namespace reft
