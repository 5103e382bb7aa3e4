// Sums over rows in two steps that give the same bits every time: blocks sum pieces of the rows,
// then the pieces are added up in order.
#pragma once

#include "backends/cuda/common.h"
#include "tensor/gradient.h"

namespace reft {

// to[i] (+)= Σ over p of pieces[p, offset + i], p in order. pieces: [P, columns] float32; to: [n].
void add_pieces(const GradientSlot& to, const Tensor& pieces, int64_t offset = 0);

// Blocks that a sum over `rows` is cut into so that the device is busy.
inline int64_t num_pieces(int64_t rows, int64_t rows_per_block, int device_index) {
  const int64_t wanted = (rows + rows_per_block - 1) / rows_per_block;
  const int64_t most = int64_t{4} * cuda_num_sms(device_index);
  return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

}  // namespace reft
