// Products with quantised weights, beside those of linear.cu.
#pragma once

#include "base/function_ref.h"
#include "ops/activation.h"
#include "ops/linear.h"

namespace reft {

// Weights in a block format, packed into the records of tensor/block_tiles.h.
class BlockTiles final : public PackedWeight {
 public:
  BlockTiles(Tensor records, DType dtype) : records_(std::move(records)), dtype_(dtype) {}
  int64_t nbytes() const override { return records_.nbytes(); }
  const Tensor& records() const { return records_; }
  DType dtype() const { return dtype_; }

 private:
  Tensor records_;  // uint8
  DType dtype_;
};

// The packed form of weight.data, which is on the device; drops the data.
void pack_blocks_cuda(Weight& weight);
// As linear() and gated_linear(); `gated` false where the case has no fused form, and nothing is
// done.
void blocks_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias);
bool blocks_gated_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                              Activation activation);
void blocks_embedding_cuda(Tensor& out, const Tensor& ids, const Weight& table, float scale);

// fp8 with scales for rows or blocks. Block scales lie in rows of a multiple of 4 (see
// prepare_fp8_cuda), as cuBLASLt reads them.
void prepare_fp8_cuda(Weight& weight);
void fp8_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias);
bool fp8_gated_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                           Activation activation);

// y += bias, rows of y may be strided.
void add_bias_cuda(Tensor& y, const Tensor& bias);

// y = x Wᵀ + b by way of 16-bit rows of W, some at a time: expand(rows, begin) fills them from row
// `begin` on.
void expanded_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                          FunctionRef<void(Tensor& rows, int64_t begin)> expand);

}  // namespace reft
