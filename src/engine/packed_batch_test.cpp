#include "engine/packed_batch.h"

#include <gtest/gtest.h>

namespace reft {
namespace {

TEST(PackedBatch, ArraysLieEndToEndOn16Bytes) {
  const BatchSizes sizes{.tokens = 5, .sequences = 3, .table_width = 3, .logit_rows = 1};
  const int64_t size = packed_size(sizes);
  EXPECT_EQ(size, 3 * 8 + 4 + 4 + 12 + 4);
  const Tensor block = Tensor::zeros({size}, DType::kI32);
  Batch batch = view_packed(block, sizes);
  EXPECT_EQ(batch.num_tokens(), 5);
  EXPECT_EQ(batch.num_sequences(), 3);
  EXPECT_EQ(batch.num_logit_rows(), 1);
  EXPECT_EQ(batch.attention.query_start.numel(), 4);
  EXPECT_EQ(batch.attention.block_table.size(1), 3);
  int32_t value = 0;
  int64_t filled = 0;
  for (const Tensor* array : arrays_of(batch)) {
    EXPECT_EQ((array->data<int32_t>() - block.data<int32_t>()) % 4, 0);
    ++value;
    std::fill_n(array->data<int32_t>(), array->numel(), value);
    filled += array->numel();
  }
  // No array overlaps another.
  int64_t found = 0;
  for (int64_t i = 0; i < size; ++i) found += block.data<int32_t>()[i] != 0;
  EXPECT_EQ(found, filled);
  value = 0;
  for (const Tensor* array : arrays_of(batch)) {
    ++value;
    for (int64_t i = 0; i < array->numel(); ++i) EXPECT_EQ(array->data<int32_t>()[i], value);
  }
  const BatchSizes again = sizes_of(batch);
  EXPECT_EQ(packed_size(again), size);
  EXPECT_EQ(again.table_width, 3);
}

}  // namespace
}  // namespace reft
