#include "ops/copy_rows.h"

namespace reft {

constinit Kernel<void(std::span<const RowsCopy>)> copy_rows_kernel{"copy_rows"};

void copy_rows(std::span<const RowsCopy> copies) {
  if (copies.empty()) return;
  check(copies.size() <= kMaxRowsCopies, "copy_rows: {} copies, at most {}", copies.size(),
        kMaxRowsCopies);
  const Device device = copies[0].to.device();
  const auto usable = [&](const Tensor& t) {
    return t.dtype() == DType::kI32 && t.device() == device && t.is_contiguous() && t.dims() >= 1 &&
           t.dims() <= 2;
  };
  for (const RowsCopy& c : copies) {
    const int64_t wide = c.to.dims() == 2 ? c.to.size(1) : 1;
    const int64_t narrow = c.from.dims() == 2 ? c.from.size(1) : 1;
    check(usable(c.to) && usable(c.from) && c.from.size(0) <= c.to.size(0) && narrow <= wide,
          "copy_rows: {} into {}", c.from, c.to);
    check(!c.values.defined() || usable(c.values), "copy_rows: values {}", c.values);
  }
  copy_rows_kernel(device, copies);
}

}  // namespace reft
