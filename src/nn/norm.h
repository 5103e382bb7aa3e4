// RMS normalisation with a learned weight.
#pragma once

#include "nn/module.h"
#include "ops/norm.h"

namespace reft {

class Norm : public Module {
 public:
  // Parameter "weight" [size], kept in float32.
  Norm(Module* parent, std::string name, int64_t size, float eps, NormKind kind = NormKind::kPlain)
      : Module(parent, std::move(name)), eps_(eps), kind_(kind) {
    add_parameter({.name = "weight",
                   .shape = {size},
                   .set = [this](const Tensor& t) { weight_ = t.to(DType::kF32).contiguous(); },
                   .dummy_mean = kind == NormKind::kOnePlus ? 0.0f : 1.0f});
  }

  // x: [T, D]. Returns the normalised x.
  Tensor operator()(const Tensor& x) const { return rms_norm(x, weight_, eps_, kind_); }
  // residual += delta (where defined), returns the normalised residual. Both [T, D].
  Tensor add(Tensor& residual, const Tensor& delta) const {
    if (!delta.defined()) return rms_norm(residual, weight_, eps_, kind_);
    return add_rms_norm(residual, delta, weight_, eps_, kind_);
  }
  const Tensor& weight() const { return weight_; }

  void finish_loading(Device device, DType) override {
    place(own_parameters()[0], weight_, device);
  }
  int64_t weight_bytes() const override { return weight_.defined() ? weight_.nbytes() : 0; }

 private:
  float eps_;
  NormKind kind_;
  Tensor weight_;
};

}  // namespace reft
