// The arrays of a batch end to end in one block of memory, so that one copy moves them all.
#pragma once

#include <vector>

#include "nn/batch.h"

namespace reft {

struct BatchSizes {
  int64_t tokens = 0;
  int64_t sequences = 0;
  int64_t table_width = 0;
  int64_t logit_rows = 0;
  bool adapters = false;
};

BatchSizes sizes_of(const Batch& batch);

// int32s of a block for all arrays; each begins at a multiple of 16 bytes.
int64_t packed_size(const BatchSizes& sizes);

// The arrays as views of `block` [packed_size] int32. The two maxima stay 0.
Batch view_packed(const Tensor& block, const BatchSizes& sizes);

// A copy on `device`, moved as one block.
Batch move_packed(Batch& batch, Device device);

// All arrays that the batch has, in the order in which they lie in a block.
std::vector<Tensor*> arrays_of(Batch& batch);

}  // namespace reft
