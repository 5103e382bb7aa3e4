// Layer normalisation with a learned weight and bias.
#pragma once

#include "nn/module.h"
#include "ops/encoder.h"

namespace reft {

class LayerNorm : public Module {
 public:
  // Parameters "weight" and "bias" [size], kept in float32.
  LayerNorm(Module* parent, std::string name, int64_t size, float eps)
      : Module(parent, std::move(name)), eps_(eps) {
    add_parameter({.name = "weight",
                   .shape = {size},
                   .set = [this](const Tensor& t) { weight_ = t.to(DType::kF32).contiguous(); },
                   .dummy_mean = 1.0f});
    add_parameter({.name = "bias", .shape = {size}, .set = [this](const Tensor& t) {
                     bias_ = t.to(DType::kF32).contiguous();
                   }});
  }

  // x: [T, D]. Returns the normalised x.
  Tensor operator()(const Tensor& x) const { return layer_norm(x, weight_, bias_, eps_); }

  void finish_loading(Device device, DType) override {
    place(own_parameters()[0], weight_, device);
    place(own_parameters()[1], bias_, device);
  }
  int64_t weight_bytes() const override {
    return weight_.defined() ? weight_.nbytes() + bias_.nbytes() : 0;
  }

 private:
  float eps_;
  Tensor weight_, bias_;
};

}  // namespace reft
