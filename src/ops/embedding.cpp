#include "ops/embedding.h"

namespace reft {

constinit Kernel<void(Tensor& out, const Tensor& ids, const Weight& table, float scale)>
    embedding_kernel{"embedding"};
constinit Kernel<void(Tensor& out, const Tensor& x, const Tensor& rows)> gather_rows_kernel{
    "gather_rows"};

Tensor embedding(const Tensor& ids, const Weight& table, DType out_dtype, float scale) {
  check(ids.dims() == 1 && ids.dtype() == DType::kI32, "embedding: ids are {}, not int32 [T]", ids);
  check(table.data.defined() || table.packed != nullptr, "embedding: the table is empty");
  check(is_float(out_dtype), "embedding: cannot write {}", dtype_name(out_dtype));
  Tensor out = Tensor::empty({ids.size(0), table.in_features}, out_dtype, ids.device());
  if (out.numel() > 0) embedding_kernel(ids.device(), out, ids, table, scale);
  return out;
}

Tensor gather_rows(const Tensor& x, const Tensor& rows) {
  check(x.dims() == 2, "gather_rows: x is {}, not [T, D]", x);
  check(rows.dims() == 1 && rows.dtype() == DType::kI32, "gather_rows: rows are {}, not int32 [R]",
        rows);
  Tensor out = Tensor::empty({rows.size(0), x.size(1)}, x.dtype(), x.device());
  if (out.numel() > 0) gather_rows_kernel(x.device(), out, x, rows);
  return out;
}

}  // namespace reft
