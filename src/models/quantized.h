// Checkpoints with a quantization_config: which of their tensors make up a parameter, and the one
// form of it that Weight knows.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "tensor/checkpoint_reader.h"

namespace reft {

// A matrix that a checkpoint stores quantised.
struct QuantizedMatrix {
  enum class Form {
    kFp8,                // float8_e4m3 codes, scales for the tensor, for rows or for blocks
    kInt8,               // signed codes, scales for the tensor or for rows
    kAwq,                // qweight [K, N/8], qzeros [G, N/8], scales [G, N]
    kGptq,               // qweight [K b/32, N], qzeros [G, N b/32], scales [G, N], g_idx [K]
    kCompressedTensors,  // weight_packed [N, K b/32], weight_scale [N, G], weight_zero_point
  };
  Form form = Form::kFp8;
  Shape shape;  // [N, K]
  const TensorEntry* codes = nullptr;
  const TensorEntry* scales = nullptr;
  const TensorEntry* zeros = nullptr;  // null: symmetric
  const TensorEntry* order = nullptr;  // the group of every k, or null
  int bits = 8;
  int64_t group = 0;  // values of k under one scale
};

// Read from the tensors themselves, so that modules which the config lists as not converted are
// simply those with plain weights.
class QuantizedTensors {
 public:
  // The tensor of our name for it, or null.
  using Find = std::function<const TensorEntry*(const std::string& name)>;

  // `reader` may be null where nothing is looked up. Throws Error naming the method where it is not
  // known.
  QuantizedTensors(const Json& config, const CheckpointReader* reader, Find find);

  // "fp8", "awq" …; empty: the checkpoint is not quantised.
  const std::string& method() const { return method_; }
  // Whether tensors with this ending are no parameters, but known (scales of activations).
  static bool is_auxiliary(const std::string& name);

  // The matrix `name` ("….weight") of this shape; nullopt where it is stored plainly, or not at
  // all. Throws Error naming file and tensor where its parts do not fit.
  std::optional<QuantizedMatrix> find(const std::string& name, const Shape& shape) const;

  struct Data {
    Tensor data;
    Tensor scales;  // of fp8, as in Weight
  };
  // fp8 stays fp8; 4-bit codes become Q4_0 (zero points all 8) or Q4_1 blocks, 8-bit ones Q8_0,
  // which keeps the codes and rounds scales and offsets to float16. With `expand`, and where there
  // is no such form (groups that are no multiple of 32, columns reordered by importance, fp8 blocks
  // that are not 128 × 128, 8 bits with zero points), floats in `compute`.
  Data read(const QuantizedMatrix& matrix, DType compute, bool expand) const;

 private:
  const TensorEntry* require(const std::string& prefix,
                             std::initializer_list<const char*> names) const;
  void find_group(QuantizedMatrix& matrix, int64_t num_groups) const;
  Data read_fp8(const QuantizedMatrix& matrix, DType compute, bool expand) const;
  Data read_int8(const QuantizedMatrix& matrix, DType compute, bool expand) const;
  Data read_codes(const QuantizedMatrix& matrix, DType compute, bool expand) const;

  const CheckpointReader* reader_;
  Find find_;
  std::string method_;
  std::vector<int64_t> groups_;                     // group sizes that the config names
  int64_t block_rows_ = 128, block_columns_ = 128;  // of fp8
  int zero_offset_ = 0;  // what GPTQ takes off zero points when it packs them
};

}  // namespace reft
