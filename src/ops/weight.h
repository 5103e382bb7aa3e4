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

// Side of the blocks that share a scale in block-scaled fp8.
inline constexpr int64_t kFp8Block = 128;

struct Weight {
  Tensor data;    // [N, K] row-major; may be undefined when only `packed` is kept
  Tensor scales;  // float8_e4m3 only: float32, by which the codes are multiplied, [N] (one a row)
                  // or [⌈N/128⌉, ⌈K/128⌉] (one for each block of 128 × 128); else undefined
  std::shared_ptr<const PackedWeight>
      packed;                 // null until prepare_weight, or when the backend uses `data`
  DType dtype = DType::kF32;  // of `data`
  int64_t out_features = 0;   // N
  int64_t in_features = 0;    // K

  bool defined() const { return out_features > 0; }
  // Wraps [N, K] data. Throws Error unless it has two dimensions, and scales as above.
  static Weight from(Tensor data, Tensor scales = {});
};

// The numbers that fp8 codes and their scales stand for, rounded to `dtype`, on the CPU.
Tensor expand_scaled(const Tensor& codes, const Tensor& scales, DType dtype);

// Rounds floats to fp8 with a scale for every row or, with group 128, for every 128 neighbours of a
// row: scale = max |x| / 448 (1 where that is 0), code = e4m3(x / scale). x: [R, K] float, rows may
// be strided; codes: [R, K] float8_e4m3; scales: float32, [R] with group 0, [⌈K/128⌉, R] with group
// 128. All on one device. Throws Error on other shapes.
void quantize_fp8(const Tensor& x, int64_t group, Tensor& codes, Tensor& scales);
extern Kernel<void(const Tensor& x, int64_t group, Tensor& codes, Tensor& scales)>
    quantize_fp8_kernel;

// Moves a weight of floats to `device` and turns it into fp8 with a scale for every row.
void quantize_weight(Weight& weight, Device device);

// Moves the weight to `device` and builds the backend's layout for `linear`. With `keep_data`,
// `embedding` can look rows up: `data` stays, unless the packed form holds the same values;
// otherwise it is dropped when a packed form replaces it. `compute` is the dtype that the user
// asked for: with kF32, block formats and fp8 are expanded to float32 so that `linear` is exact;
// else they stay as they are, but for fp8 on the CPU, which becomes `compute`.
void prepare_weight(Weight& weight, Device device, DType compute, bool keep_data = false);
extern Kernel<void(Weight& weight, DType compute, bool keep_data)> prepare_weight_kernel;

}  // namespace reft
