#include "engine/packed_batch.h"

namespace reft {
namespace {

constexpr int64_t kAlign = 4;  // int32s in 16 bytes

int64_t padded(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

// In the order of arrays_of.
std::vector<Shape> shapes_of(const BatchSizes& s) {
  std::vector<Shape> shapes = {Shape{s.tokens},    Shape{s.tokens},
                               Shape{s.tokens},    Shape{s.sequences + 1},
                               Shape{s.sequences}, Shape{s.sequences, s.table_width},
                               Shape{s.logit_rows}};
  if (s.adapters) shapes.emplace_back(Shape{s.tokens});
  return shapes;
}

}  // namespace

BatchSizes sizes_of(const Batch& batch) {
  return {batch.num_tokens(), batch.num_sequences(), batch.attention.block_table.size(1),
          batch.num_logit_rows(), batch.adapters.defined()};
}

int64_t packed_size(const BatchSizes& sizes) {
  int64_t total = 0;
  for (const Shape& shape : shapes_of(sizes)) total += padded(shape.numel());
  return total;
}

Batch view_packed(const Tensor& block, const BatchSizes& sizes) {
  Batch batch;
  std::vector<Tensor*> arrays = arrays_of(batch);
  if (sizes.adapters) arrays.push_back(&batch.adapters);
  const auto shapes = shapes_of(sizes);
  int64_t at = 0;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const int64_t n = shapes[i].numel();
    *arrays[i] = block.rows(at, at + n).reshape(shapes[i]);
    at += padded(n);
  }
  return batch;
}

Batch move_packed(Batch& batch, Device device) {
  const BatchSizes sizes = sizes_of(batch);
  const Tensor host = Tensor::empty({packed_size(sizes)}, DType::kI32);
  Batch packed = view_packed(host, sizes);
  const auto from = arrays_of(batch);
  const auto to = arrays_of(packed);
  for (size_t i = 0; i < from.size(); ++i) to[i]->copy_from(*from[i]);
  Batch moved = view_packed(host.to(device), sizes);
  moved.attention.max_query_len = batch.attention.max_query_len;
  moved.attention.max_context_len = batch.attention.max_context_len;
  return moved;
}

std::vector<Tensor*> arrays_of(Batch& batch) {
  std::vector<Tensor*> arrays = {&batch.token_ids,
                                 &batch.positions,
                                 &batch.slots,
                                 &batch.attention.query_start,
                                 &batch.attention.context_len,
                                 &batch.attention.block_table,
                                 &batch.logit_rows};
  if (batch.adapters.defined()) arrays.push_back(&batch.adapters);
  return arrays;
}

}  // namespace reft
