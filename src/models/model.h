// What the engine and the trainer know of a model.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "nn/batch.h"
#include "nn/causal_lm.h"
#include "nn/kv_cache.h"
#include "nn/module.h"

namespace reft {

// The facts that every layer above needs. Families read their own keys from the config.json
// themselves.
struct ModelInfo {
  std::string architecture;  // "Qwen3ForCausalLM"
  int64_t vocab_size = 0;    // rows of the logits
  int64_t max_position = 0;  // longest sequence
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t num_experts = 0;  // of a layer that has experts (parameters "….experts.…"); 0: none
  int64_t experts_per_token = 0;
  int64_t feed_forward_size = 0;  // features that a token has in the widest feed-forward layer
  DType checkpoint_dtype = DType::kBF16;  // dtype (torch_dtype) of the config
};

// Of a parameter's elements those that a token is multiplied with: of experts, its own.
inline int64_t active_elements(const ModelInfo& info, const std::string& name, const Shape& shape) {
  const bool experts = info.num_experts > 0 && name.find(".experts.") != std::string::npos;
  return experts ? shape.numel() / info.num_experts * info.experts_per_token : shape.numel();
}

// A model that predicts the next token. `forward` is called by one thread at a time.
class CausalLmModel : public Module {
 public:
  virtual const ModelInfo& info() const = 0;
  virtual std::vector<LayerCacheSpec> cache_specs() const = 0;
  // Logits of batch.logit_rows: [R, V] float32 (any temporaries are freed on return). Writes this
  // step's keys and values to `cache`.
  virtual Tensor forward(const Batch& batch, KvCache& cache) = 0;
  // As forward, and calls tap(layer, hidden [T, D]) with the embedding (layer 0) and after each
  // block: for the goldens. hidden is the residual stream, the last one after the final norm, as
  // output_hidden_states gives it.
  using Tap = std::function<void(int64_t layer, const Tensor& hidden)>;
  virtual Tensor forward_with_tap(const Batch& batch, KvCache& cache, const Tap& tap) = 0;

  // Without a cache, and with gradients while a tape is the thread's: the final norm's result [R,
  // D] of batch.logit_rows, and from it the losses of the tokens, −log p(labels[r]): [R] float32, 0
  // where the label is negative. labels: [R] int32. See TrainingForward and ops/loss.h. A model
  // that cannot be trained throws Error.
  virtual Tensor hidden_states(const Batch& batch, const TrainingForward& options);
  virtual Tensor token_losses(const Batch& batch, const Tensor& labels,
                              const TrainingForward& options);
};

inline Tensor CausalLmModel::hidden_states(const Batch&, const TrainingForward&) {
  fail("{} cannot be trained", info().architecture);
}
inline Tensor CausalLmModel::token_losses(const Batch&, const Tensor&, const TrainingForward&) {
  fail("{} cannot be trained", info().architecture);
}

struct LoadOptions {
  Device device = kCpuDevice;
  std::string dtype = "auto";  // auto | float32 | float16 | bfloat16; auto: the checkpoint's, GGUF
                               // blocks as they are
  // auto: as the checkpoint's quantization_config says | none | fp8: float weights of linear layers
  // (but the head) become fp8 with a scale per row | the checkpoint's own method by name.
  std::string quantization = "auto";
  std::string load_format = "auto";  // auto | dummy (random weights from config.json alone)
  uint64_t seed = 0;                 // for dummy
  int64_t max_model_len = 0;         // sizes the rotary tables; 0: the model's own
  bool quiet = false;                // no progress bar
  // Says by its Hugging Face name which parameters are to be trained (see Parameter in
  // nn/module.h); the modules of all others are packed for speed. Empty: none.
  std::function<bool(const std::string& name)> trainable;
  // A block format that plain matrices of the blocks are rounded to (see is_quantized_at_load), but
  // those of modules that are trained. With `dtype` float32 they are expanded again.
  std::optional<DType> quantize;
};

// Matrices of the decoder blocks whose rows are whole blocks of the format; not embedding and head.
bool is_quantized_at_load(const std::string& name, const Shape& shape, DType format);

struct LoadedModel {
  std::unique_ptr<CausalLmModel> model;
  Json config;               // config.json, or what the GGUF metadata says in its terms
  Json generation_config;    // generation_config.json or {}
  Device device;             // where the weights are
  DType compute_dtype;       // float32, float16 or bfloat16: the KV cache's dtype under "auto"
  int64_t weight_bytes = 0;  // in memory, packed
  int64_t num_parameters = 0;
};

// Loads a Hugging Face folder or a .gguf file. Throws Error naming the file, key or tensor at
// fault; an architecture that is not known lists those that are. Thread-safe.
LoadedModel load_model(const std::string& path, const LoadOptions& options);

// The model without its weights, for what info() and Module::visit tell of it. Throws what
// load_model throws about configurations.
std::unique_ptr<CausalLmModel> describe_model(const std::string& path, const LoadOptions& options);

// A tensor of a checkpoint as it lies there: a view of the mapped file.
struct CheckpointTensor {
  std::string key;        // in the file
  std::string parameter;  // its name in Module::visit; empty where it has none
  Tensor value;
};
// In the order of the file(s); GGUF keys are renamed to Hugging Face's. Throws Error as load_model.
std::vector<CheckpointTensor> checkpoint_tensors(const std::string& path);

// A family: how to build the model from a config.json. GGUF files are renamed to Hugging Face keys
// first.
struct ModelFamily {
  std::vector<std::string> architectures;  // names in config.json's "architectures"
  std::unique_ptr<CausalLmModel> (*create)(const Json& config, const LoadOptions& options);
};
// The table in models/registry.cpp: one line per family.
const std::vector<ModelFamily>& model_families();

}  // namespace reft
