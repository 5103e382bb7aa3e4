#include "nn/conv1d.h"

#include "nn/linear.h"

namespace reft {

Conv1d::Conv1d(Module* parent, std::string name, int64_t in_channels, int64_t out_channels,
               int64_t kernel, int64_t stride)
    : Module(parent, std::move(name)),
      unfold_{.kernel = kernel, .stride = stride, .padding = (kernel - 1) / 2} {
  add_parameter({.name = "weight",
                 .shape = {out_channels, in_channels, kernel},
                 .set = [this](const Tensor& t) { file_tensor_ = t.contiguous(); }});
  add_parameter({.name = "bias", .shape = {out_channels}, .set = [this](const Tensor& t) {
                   bias_ = t.to(DType::kF32).contiguous();
                 }});
}

void Conv1d::finish_loading(Device device, DType compute) {
  activation_ = device.type == DeviceType::kCpu ? DType::kF32 : compute;
  const DType dtype = file_tensor_.dtype();
  const Tensor from = file_tensor_.to(DType::kF32);
  const int64_t rows = from.size(0), channels = from.size(1), kernel = from.size(2);
  Tensor to = Tensor::empty({rows, kernel * channels}, DType::kF32);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < kernel; ++k) {
        to.data<float>()[(n * kernel + k) * channels + c] =
            from.data<float>()[(n * channels + c) * kernel + k];
      }
    }
  }
  file_tensor_ = {};
  weight_ = Weight::from(to.to(dtype));
  prepare_weight(weight_, device, compute);
  bias_ = bias_.to(device);
}

Tensor Conv1d::operator()(const Tensor& x, int64_t sequences) const {
  Unfold options = unfold_;
  options.sequences = sequences;
  return linear(unfold(x, options, activation_), weight_, bias_);
}

int64_t Conv1d::weight_bytes() const {
  return (bias_.defined() ? bias_.nbytes() : 0) + weight_nbytes(weight_);
}

}  // namespace reft
