// The activations of ops/activation.h on a value.
#pragma once

#include "backends/cuda/common.h"
#include "ops/activation.h"

namespace reft {

#ifdef __CUDACC__

__device__ __forceinline__ float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0f + __expf(-x));
    case Activation::kGeluTanh: {
      const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
      return 0.5f * x * (1.0f + tanhf(inner));
    }
    case Activation::kGeluErf:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;  // keeps NaN
    case Activation::kClampedSwiglu: {
      const float g = x > kSwigluLimit ? kSwigluLimit : x;
      return g / (1.0f + __expf(-kSwigluAlpha * g));
    }
  }
  return x;
}

// gated_activation of one gate and its `up`.
__device__ __forceinline__ float gated(float gate, float up, Activation activation) {
  if (activation == Activation::kClampedSwiglu)
    up = 1.0f + (up > kSwigluLimit ? kSwigluLimit : up < -kSwigluLimit ? -kSwigluLimit : up);
  return activate(gate, activation) * up;
}

#endif  // __CUDACC__

}  // namespace reft
