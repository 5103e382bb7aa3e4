#include "ops/embedding.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Tensor& out, const Tensor& ids, const Weight& table, float scale)>
    embedding_kernel{"embedding"};
constinit Kernel<void(Tensor& out, const Tensor& x, const Tensor& rows)> gather_rows_kernel{
    "gather_rows"};
constinit Kernel<void(const Tensor& out, const Tensor& x, const Tensor& rows, float scale)>
    scatter_add_rows_kernel{"scatter_add_rows"};

namespace {

// What is not accumulated into begins as zeros.
void scatter_into(const GradientSlot& to, const Tensor& gradient, const Tensor& rows, float scale) {
  if (!to.accumulate) to.tensor.fill_zero();
  scatter_add_rows(to.tensor, gradient, rows, scale);
}

}  // namespace

Tensor embedding(const Tensor& ids, const Weight& table, DType out_dtype, float scale) {
  check(ids.dims() == 1 && ids.dtype() == DType::kI32, "embedding: ids are {}, not int32 [T]", ids);
  check(table.data.defined() || table.packed != nullptr, "embedding: the table is empty");
  check(is_float(out_dtype), "embedding: cannot write {}", dtype_name(out_dtype));
  Tensor out = Tensor::empty({ids.size(0), table.in_features}, out_dtype, ids.device());
  if (out.numel() > 0) embedding_kernel(ids.device(), out, ids, table, scale);
  if (Tape* tape = Tape::recording({&table.data})) {
    tape->record("embedding", {table.data}, {out}, [ids, scale](Tape::Gradients& g) {
      scatter_into(g.input(0), g.output(), ids, scale);
    });
  }
  return out;
}

Tensor gather_rows(const Tensor& x, const Tensor& rows) {
  check(x.dims() == 2, "gather_rows: x is {}, not [T, D]", x);
  check(rows.dims() == 1 && rows.dtype() == DType::kI32, "gather_rows: rows are {}, not int32 [R]",
        rows);
  Tensor out = Tensor::empty({rows.size(0), x.size(1)}, x.dtype(), x.device());
  if (out.numel() > 0) gather_rows_kernel(x.device(), out, x, rows);
  if (Tape* tape = Tape::recording({&x})) {
    tape->record("gather_rows", {x}, {out},
                 [rows](Tape::Gradients& g) { scatter_into(g.input(0), g.output(), rows, 1.0f); });
  }
  return out;
}

void scatter_add_rows(const Tensor& out, const Tensor& x, const Tensor& rows, float scale) {
  check(x.dims() == 2 && out.dims() == 2 && out.size(1) == x.size(1) && is_float(x.dtype()) &&
            (out.dtype() == DType::kF32 || out.dtype() == x.dtype()),
        "scatter_add_rows: {} cannot be added to rows of {}", x, out);
  check(rows.dims() == 1 && rows.dtype() == DType::kI32 && rows.size(0) == x.size(0),
        "scatter_add_rows: rows are {}, not int32 [{}]", rows, x.size(0));
  if (x.numel() > 0) scatter_add_rows_kernel(x.device(), out, x, rows, scale);
}

}  // namespace reft
