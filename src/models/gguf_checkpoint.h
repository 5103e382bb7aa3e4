// A GGUF file in Hugging Face terms: config.json from its metadata, tensors under their Hugging
// Face keys and in their Hugging Face layout. Source: llama.cpp's conversion scripts, read
// backwards.
#pragma once

#include <memory>
#include <string>

#include "base/json.h"
#include "tensor/checkpoint_reader.h"

namespace reft {

struct GgufCheckpoint {
  Json config;
  Json generation_config;
  std::unique_ptr<CheckpointReader> reader;
};

// Throws Error naming file and key; an architecture that is not known lists those that are.
GgufCheckpoint open_gguf_checkpoint(const std::string& path);

}  // namespace reft
