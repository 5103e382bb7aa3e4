// A GGUF file in Hugging Face terms: config.json from its metadata, tensors under their Hugging
// Face keys and in their Hugging Face layout. Source: llama.cpp's conversion scripts, read
// backwards.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

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

// The other way round: how a GGUF file of an architecture names and stores tensors.
class GgufNames {
 public:
  // `architecture` as in config.json. Throws Error when GGUF files of it are not known.
  GgufNames(const std::string& architecture, int64_t head_dim);

  // general.architecture.
  const std::string& architecture() const { return architecture_; }
  // By our name ("model.norm.weight"). Throws Error where the file has no name for it.
  std::string name_of(const std::string& parameter) const;
  // The tensor as the file stores it: rows of q and k may be moved, and norms become 1 + w,
  // float32.
  Tensor value_of(const std::string& parameter, const Tensor& value) const;

 private:
  std::string architecture_;
  bool permuted_ = false, one_plus_ = false;
  int64_t head_dim_;
  std::vector<std::pair<std::string, std::string>> renames_;
};

}  // namespace reft
