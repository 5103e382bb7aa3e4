// Where the backward kernel of an op puts its results.
#pragma once

#include "tensor/tensor.h"

namespace reft {

// d loss / d input, of the input's shape.
struct GradientSlot {
  Tensor tensor;            // undefined: nobody wants this gradient
  bool accumulate = false;  // add to `tensor`; else its contents are undefined and all is written
  explicit operator bool() const { return tensor.defined(); }
};

}  // namespace reft
