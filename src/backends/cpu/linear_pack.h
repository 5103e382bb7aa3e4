// Weights in the layouts of linear_layout.h.
#pragma once

#include <memory>

#include "backends/cpu/linear_kernels.h"
#include "ops/weight.h"

namespace reft::cpu {

// [N, K] in panels, with the kernels that multiply by it.
class CpuPackedWeight final : public PackedWeight {
 public:
  CpuPackedWeight(Layout layout, const TileKernels& kernels, const int8_t* table, int64_t n,
                  int64_t k);

  int64_t nbytes() const override { return bytes_.nbytes(); }
  Layout layout() const { return layout_; }
  const TileKernels& kernels() const { return *kernels_; }
  const int8_t* table() const { return table_; }
  int64_t out_features() const { return n_; }
  int64_t in_features() const { return k_; }
  int64_t num_panels() const { return (n_ + kPanel - 1) / kPanel; }
  int64_t panel_stride() const { return stride_; }
  std::byte* panel(int64_t i) const { return bytes_.raw() + i * stride_; }

 private:
  Layout layout_;
  const TileKernels* kernels_;
  const int8_t* table_;  // of Code::kLookup, else null
  int64_t n_;
  int64_t k_;
  int64_t stride_;
  Tensor bytes_;
};

// Packs float or block-format data [N, K] (rows may be strided) for the kernels that `features`
// allow. With `compute` float32, block formats are expanded to float32 and activations are never
// rounded. All compute threads take part. Throws Error on another dtype.
std::shared_ptr<const CpuPackedWeight> pack_weight(const Tensor& data, DType compute,
                                                   const CpuFeatures& features);

// Rows [begin, end) as floats, [end − begin, K]. Of block formats: scale · code + minimum.
void unpack_rows(const CpuPackedWeight& weight, int64_t begin, int64_t end, float* to);

// y = x Wᵀ + bias. x: [T, K] float32, y: [T, N] float32, rows of both may be strided; bias: [N]
// float32 or undefined.
void multiply_packed(Tensor& y, const Tensor& x, const CpuPackedWeight& weight, const Tensor& bias);

}  // namespace reft::cpu
