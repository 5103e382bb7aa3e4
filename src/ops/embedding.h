// Token embedding.
#pragma once

#include "ops/weight.h"
#include "tensor/gradient.h"

namespace reft {

// out[t] = table[ids[t]] * scale. ids: [T] int32; table: [V, D] in any float dtype or block format,
// prepared with `keep_data`. Returns [T, D] in `out_dtype`. Ids outside [0, V) throw Error on the
// CPU. Follows torch.nn.Embedding; `scale` is Gemma's sqrt(D).
Tensor embedding(const Tensor& ids, const Weight& table, DType out_dtype, float scale = 1.0f);
extern Kernel<void(Tensor& out, const Tensor& ids, const Weight& table, float scale)>
    embedding_kernel;

// out[r] = x[rows[r]]. x: [T, D], rows: [R] int32. Returns [R, D].
Tensor gather_rows(const Tensor& x, const Tensor& rows);
extern Kernel<void(Tensor& out, const Tensor& x, const Tensor& rows)> gather_rows_kernel;

// out[rows[r]] += scale * x[r], what undoes both. x: [R, D], rows: [R] int32, out: [N, D] float32
// or x's dtype. Rows that are named several times are added in the order of r.
void scatter_add_rows(const Tensor& out, const Tensor& x, const Tensor& rows, float scale = 1.0f);
extern Kernel<void(const Tensor& out, const Tensor& x, const Tensor& rows, float scale)>
    scatter_add_rows_kernel;

}  // namespace reft
