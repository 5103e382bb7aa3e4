// Weights for `--load_format dummy`.
#pragma once

#include "nn/module.h"

namespace reft {

// A CPU tensor of `dtype` with parameter.shape, random normal around parameter.dummy_mean. The same
// seed and name give the same values, whatever the threads. Numbers repeat in a pattern of some ten
// thousand: for speed tests and sizes only.
Tensor dummy_tensor(const Parameter& parameter, const std::string& name, DType dtype,
                    uint64_t seed);

}  // namespace reft
