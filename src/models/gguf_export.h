// A model's configuration in GGUF's terms, for writing such files: what open_gguf_checkpoint reads.
#pragma once

#include "models/gguf_checkpoint.h"
#include "models/model.h"
#include "tensor/gguf_writer.h"

namespace reft {

struct GgufDescription {
  GgufMetadata metadata;            // general.architecture and that architecture's keys
  std::vector<GgufTensor> tensors;  // what the file says by tensors: rope_freqs.weight
  GgufNames names;
};

// `model` may be without weights. Throws Error naming what GGUF files of the architecture cannot
// say.
GgufDescription describe_for_gguf(const Json& config, const CausalLmModel& model);

}  // namespace reft
