// What of a model a run trains, saves and plans its memory by.
#pragma once

#include <string>

#include "models/model.h"
#include "tensor/safetensors_writer.h"
#include "train/flops.h"
#include "train/memory_estimate.h"
#include "train/optimizer.h"

namespace reft {

// The trained parameters of a loaded model: views of its weights and gradients.
std::vector<TrainParameter> train_parameters(CausalLmModel& model);

// Random weights for a model that learns everything from nothing: matrices normal with deviation
// `deviation`, biases and norms as an untrained model's. The same seed gives the same values. All
// parameters must be trained.
void initialize_weights(CausalLmModel& model, double deviation, uint64_t seed);

// The whole model by the keys of the checkpoint that it was loaded from: trained tensors as they
// are now, all others as they lie there (block formats in `dtype`). An empty `source`: the model
// came from no checkpoint, and all is trained.
NamedTensors model_tensors(CausalLmModel& model, const std::string& source, DType dtype);

// Bytes that the weights of a checkpoint take in memory when they are loaded so, packed forms and
// matrices of other types than float32 as they lie there.
int64_t loaded_bytes(const std::string& path, const LoadOptions& options);

// Of a model whose parameters are marked as trainable or not, loaded or without weights. Heads and
// feed-forward width are read from the shapes of block 0.
MemoryModel memory_model_of(CausalLmModel& model, DType dtype);
FlopModel flop_model_of(CausalLmModel& model);

}  // namespace reft
