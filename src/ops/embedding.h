// Token embedding.
#pragma once

#include "ops/weight.h"

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

}  // namespace reft
