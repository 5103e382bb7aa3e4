// What a Linear multiplies by: data in any dtype or block format, in the layout of the file, and
// optionally the backend's own layout of it. Families never look inside.
#pragma once

#include <memory>

#include "ops/kernel.h"
#include "tensor/tensor.h"

namespace reft {

// A backend's private layout of a weight (interleaved rows, reordered nibbles …). Immutable once
// built.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual int64_t nbytes() const = 0;
};

struct Weight {
  Tensor data;    // [N, K] row-major; may be undefined when only `packed` is kept
  Tensor scales;  // formats with separate scales only (fp8 blocks, AWQ/GPTQ); else undefined
  std::shared_ptr<const PackedWeight>
      packed;                 // null until prepare_weight, or when the backend uses `data`
  DType dtype = DType::kF32;  // of `data`
  int64_t out_features = 0;   // N
  int64_t in_features = 0;    // K

  bool defined() const { return out_features > 0; }
  // Wraps [N, K] data. Throws Error unless it has two dimensions.
  static Weight from(Tensor data);
};

// Moves the weight to `device` and builds the backend's layout for `linear`. With `keep_data`,
// `embedding` can look rows up: `data` stays, unless the packed form holds the same values;
// otherwise it is dropped when a packed form replaces it. `compute` is the dtype that the user
// asked for: with kF32, block formats are expanded to float32 so that `linear` is exact; else they
// stay as they are.
void prepare_weight(Weight& weight, Device device, DType compute, bool keep_data = false);
extern Kernel<void(Weight& weight, DType compute, bool keep_data)> prepare_weight_kernel;

}  // namespace reft
