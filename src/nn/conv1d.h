// A convolution along time, as a matrix product of unfolded windows.
#pragma once

#include "nn/module.h"
#include "ops/encoder.h"
#include "ops/linear.h"

namespace reft {

// Parameters "weight" [N, C, K] and "bias" [N]. Padding (K − 1) / 2 on both sides. Follows
// torch.nn.Conv1d.
class Conv1d : public Module {
 public:
  Conv1d(Module* parent, std::string name, int64_t in_channels, int64_t out_channels,
         int64_t kernel, int64_t stride);

  // x: [B T, C], B = `sequences`. Returns [B T', N] with T' = (T − 1) / stride + 1 for an odd K, in
  // float32 on the CPU, in the compute dtype elsewhere.
  Tensor operator()(const Tensor& x, int64_t sequences) const;

  void finish_loading(Device device, DType compute) override;
  int64_t weight_bytes() const override;

 private:
  Unfold unfold_;
  DType activation_ = DType::kF32;
  Tensor file_tensor_;  // until finish_loading
  Weight weight_;       // [N, K C]
  Tensor bias_;
};

}  // namespace reft
