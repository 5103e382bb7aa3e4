// Writing GGUF files, version 3: what gguf.h reads. Tensors are made and written one after the
// other, so that only one is in memory at a time.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tensor/gguf.h"

namespace reft {

using GgufMetadata = std::map<std::string, GgufValue>;

// A tensor to be written: row-major, of a dtype that GGUF has. `make` is called once, and its
// result must be of that dtype and shape.
struct GgufTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  std::function<Tensor()> make;
};

// Metadata is written in the types that llama.cpp asks for: whole numbers as uint32 (int32 where
// negative, 64 bits where they need them), their lists as int32, numbers as float32. The file is
// written aside, synced and renamed. Throws Error naming the file and the tensor.
void write_gguf(const std::string& path, const GgufMetadata& metadata,
                const std::vector<GgufTensor>& tensors);

// Whether values can be written in this dtype: GGUF has it, and there is a quantiser.
bool gguf_can_hold(DType dtype);
// The values of a tensor of any float or block format in `dtype`. Throws Error where one is beyond
// float16's range.
Tensor quantized(const Tensor& value, DType dtype);

}  // namespace reft
