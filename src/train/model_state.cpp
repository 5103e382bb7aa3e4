#include "train/model_state.h"

#include <cmath>
#include <map>
#include <numbers>

#include "base/thread_pool.h"
#include "nn/lora.h"
#include "ops/philox.h"

namespace reft {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

using ParameterMap = std::map<std::string, Parameter*>;

ParameterMap parameters_of(CausalLmModel& model) {
  ParameterMap parameters;
  model.visit([&](const std::string& name, Parameter& p) { parameters.emplace(name, &p); });
  return parameters;
}

// Rows of a matrix of block 0; 0 where it has none of that name.
int64_t rows_of(const ParameterMap& parameters, const std::string& name) {
  const auto it = parameters.find("model.layers.0." + name);
  return it == parameters.end() ? 0 : it->second->shape[0];
}

// Box and Muller's first number for each element, a function of its place alone.
Tensor normal_tensor(const Shape& shape, double deviation, uint64_t seed, uint64_t stream) {
  Tensor result = Tensor::empty(shape, DType::kF32);
  float* values = result.data<float>();
  compute_pool().parallel_for(result.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto bits = philox(seed, static_cast<uint64_t>(i), stream);
      const double u = (static_cast<double>(bits[0]) + 0.5) * 0x1p-32;
      const double v = static_cast<double>(bits[1]) * 0x1p-32;
      values[i] = static_cast<float>(deviation * std::sqrt(-2 * std::log(u)) *
                                     std::cos(2 * std::numbers::pi * v));
    }
  });
  return result;
}

Tensor constant_tensor(const Shape& shape, float value) {
  return Tensor::from_vector(std::vector<float>(static_cast<size_t>(shape.numel()), value), shape);
}

}  // namespace

std::vector<TrainParameter> train_parameters(CausalLmModel& model) {
  std::vector<TrainParameter> result;
  model.visit([&](const std::string& name, Parameter& p) {
    if (!p.trainable || !p.value.defined()) return;
    result.push_back({.name = name,
                      .value = p.value,
                      .grad = p.gradient,
                      .decay = wants_decay(p.value.shape())});
  });
  return result;
}

void initialize_weights(CausalLmModel& model, double deviation, uint64_t seed) {
  uint64_t stream = 0;
  model.visit([&](const std::string& name, Parameter& p) {
    check(p.value.defined(), "'{}' has no plain data: is it trained?", name);
    const Tensor values =
        p.shape.dims() > 1 ? normal_tensor(p.shape, deviation, seed, stream)
                           : constant_tensor(p.shape, name.ends_with(".bias") ? 0 : p.dummy_mean);
    p.value.copy_from(values.to(p.value.dtype()));
    ++stream;
  });
}

NamedTensors model_tensors(CausalLmModel& model, const std::string& source, DType dtype) {
  NamedTensors result;
  if (source.empty()) {
    model.visit([&](const std::string& name, Parameter& p) { result.emplace_back(name, p.value); });
    return result;
  }
  const ParameterMap parameters = parameters_of(model);
  for (const CheckpointTensor& tensor : checkpoint_tensors(source)) {
    const auto it = parameters.find(tensor.parameter);
    // A copy of the embedding beside a tied head would no longer be one.
    if (it == parameters.end() && tensor.parameter == kHead) continue;
    if (it != parameters.end() && it->second->trainable) {
      result.emplace_back(tensor.key, it->second->value);
    } else {
      const bool blocks = is_block_format(tensor.value.dtype());
      check(!blocks || tensor.value.dims() == 2,
            "{}: experts in {} cannot be written back; train the checkpoint in bfloat16",
            tensor.key, dtype_name(tensor.value.dtype()));
      result.emplace_back(tensor.key, blocks ? tensor.value.to(dtype) : tensor.value);
    }
  }
  return result;
}

int64_t loaded_bytes(const std::string& path, const LoadOptions& options) {
  int64_t bytes = 0;
  for (const CheckpointTensor& t : checkpoint_tensors(path)) {
    const bool matrix = t.value.dims() > 1;
    DType dtype = matrix ? t.value.dtype() : DType::kF32;
    const bool expands = options.dtype == "float32" || !is_block_format(dtype);
    if (matrix && expands) dtype = parse_float_dtype(options.dtype);
    if (options.quantize && is_quantized_at_load(t.parameter, t.value.shape(), *options.quantize))
      dtype = *options.quantize;
    bytes += row_bytes(dtype, t.value.numel());
  }
  return bytes;
}

MemoryModel memory_model_of(CausalLmModel& model, DType dtype) {
  const ParameterMap parameters = parameters_of(model);
  const LayerCacheSpec cache = model.cache_specs().at(0);
  MemoryModel m{.hidden = model.info().hidden_size,
                .intermediate = model.info().feed_forward_size,
                .layers = model.info().num_layers,
                .heads = rows_of(parameters, "self_attn.q_proj.weight") / cache.head_dim,
                .kv_heads = cache.num_kv_heads,
                .head_dim = cache.head_dim,
                .vocab = model.info().vocab_size,
                .qk_norm = parameters.contains("model.layers.0.self_attn.q_norm.weight")};
  for (const auto& [name, p] : parameters) {
    const int64_t elements = p->shape.numel();
    if (is_lora_parameter(name)) {
      m.trainable_parameters += elements;
      continue;
    }
    m.parameters += elements;
    if (name == kEmbedding || name == kHead) m.embedding_parameters += elements;
    if (p->trainable) m.trainable_parameters += elements;
  }
  m.weight_bytes = row_bytes(dtype, m.parameters);
  return m;
}

FlopModel flop_model_of(CausalLmModel& model) {
  const ParameterMap parameters = parameters_of(model);
  const LayerCacheSpec cache = model.cache_specs().at(0);
  FlopModel m{.layers = model.info().num_layers,
              .heads = rows_of(parameters, "self_attn.q_proj.weight") / cache.head_dim,
              .head_dim = cache.head_dim};
  const bool tied = !parameters.contains(kHead);
  for (const auto& [name, p] : parameters) {
    if (p->shape.dims() < 2 || (name == kEmbedding && !tied)) continue;
    const int64_t elements = active_elements(model.info(), name, p->shape);
    m.matmul_parameters += elements;
    if (p->trainable) m.trainable_parameters += elements;
  }
  return m;
}

}  // namespace reft
