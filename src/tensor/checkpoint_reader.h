// A set of named tensors on disk, memory-mapped: one view for safetensors files (single or sharded)
// and GGUF. Readers validate everything before they hand out a pointer: a corrupt file is an Error
// that names the file and the tensor, never a crash. Reading is thread-safe once constructed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace reft {

struct TensorEntry {
  std::string name;
  DType dtype;
  Shape shape;
  std::string file;  // path of the file that holds it
};

class CheckpointReader {
 public:
  virtual ~CheckpointReader() = default;
  // In the order of the file(s).
  virtual const std::vector<TensorEntry>& entries() const = 0;
  virtual bool contains(const std::string& name) const = 0;
  // A zero-copy CPU view into the mapping, valid for as long as the tensor lives. Throws Error when
  // absent.
  virtual Tensor read(const std::string& name) const = 0;
  // Takes the mapped pages out of this process, where nothing that was read is needed soon. Tensors
  // stay valid.
  virtual void release_pages() const {}
};

// Opens `path`: a .safetensors or .gguf file, a model.safetensors.index.json, or a folder that
// holds model.safetensors, model.safetensors.index.json or a .gguf. Throws Error naming file and
// tensor.
std::unique_ptr<CheckpointReader> open_checkpoint(const std::string& path);

}  // namespace reft
