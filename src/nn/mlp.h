// Feed-forward layers.
#pragma once

#include "nn/linear.h"
#include "ops/activation.h"

namespace reft {

// What a block applies to each token by itself.
class FeedForward : public Module {
 public:
  using Module::Module;
  // x: [T, D]. Returns [T, D].
  virtual Tensor operator()(const Tensor& x) const = 0;
};

// down(act(gate(x)) * up(x)). Parameters {gate,up,down}_proj.{weight,bias}. Follows LlamaMLP.
class Mlp : public FeedForward {
 public:
  Mlp(Module* parent, std::string name, int64_t hidden_size, int64_t intermediate_size,
      Activation activation, bool bias = false)
      : FeedForward(parent, std::move(name)),
        activation_(activation),
        gate_up_(this, hidden_size,
                 {{"gate_proj", intermediate_size}, {"up_proj", intermediate_size}}, bias),
        down_(this, "down_proj", intermediate_size, hidden_size, bias) {}

  Tensor operator()(const Tensor& x) const override {
    return down_(gate_up_.gated(x, activation_));
  }

 private:
  Activation activation_;
  Linear gate_up_;
  Linear down_;
};

}  // namespace reft
