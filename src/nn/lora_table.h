// Adapters that are served: all of one model, each row of a step with its own or none.
#pragma once

#include <string>
#include <vector>

#include "ops/lora_rows.h"

namespace reft {

// The adapters of one matrix of a Linear, by slot: columns [begin, end) of y.
struct LoraTable {
  int64_t begin = 0, end = 0;
  LoraStack stack;
};

// While it lives, products of this thread add the adapters of `slots` ([T] int32, see
// Batch::adapters; undefined: none).
class AdapterScope {
 public:
  explicit AdapterScope(const Tensor& slots);
  ~AdapterScope();
  AdapterScope(const AdapterScope&) = delete;
  AdapterScope& operator=(const AdapterScope&) = delete;

  // Null where no adapters are in use.
  static const Tensor* current();

 private:
  const Tensor* outer_;
};

}  // namespace reft
