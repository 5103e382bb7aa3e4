// From the tensors of a checkpoint into the parameters of a module tree: what the loaders of
// language and speech models share.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>

#include "base/function_ref.h"
#include "models/quantized.h"
#include "nn/module.h"
#include "tensor/checkpoint_reader.h"

namespace reft {

struct AssignedTensor {
  const TensorEntry* plain = nullptr;
  std::optional<QuantizedMatrix> quantized;  // where there is no plain one
};
// Where each parameter's tensor is, by the parameter's name.
using TensorAssignment = std::unordered_map<std::string, AssignedTensor>;

// Finds (null: absent) the tensor of every parameter and checks its shape and dtype before the
// first byte is converted. `quantized` (may be null) knows matrices in other forms. Warns of
// tensors that nothing uses, but for those that `ignored` knows. Throws Error naming file and
// tensor.
TensorAssignment assign_tensors(Module& model, const CheckpointReader& reader,
                                const std::string& path,
                                FunctionRef<const TensorEntry*(const std::string& name)> find,
                                FunctionRef<bool(const std::string& key)> ignored,
                                const QuantizedTensors* quantized = nullptr);

struct LoadPlan {
  DType compute;
  const QuantizedTensors* quantized = nullptr;  // null where nothing is
  bool convert;  // plain weights become `compute`; else they stay as the file has them
  Device device;
  uint64_t seed;
  std::optional<DType> quantize;  // block format of plain matrices (see LoadOptions)
};

// Sets all parameters and finishes all modules. `reader` null: random weights (load_format dummy).
// Module by module, so that the file's form and the packed form of only a few weights exist at a
// time.
void load_parameters(Module& model, const CheckpointReader* reader,
                     const TensorAssignment& assignment, const LoadPlan& plan, bool quiet);

}  // namespace reft
