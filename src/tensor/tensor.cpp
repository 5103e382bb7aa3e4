#include "tensor/tensor.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include "base/thread_pool.h"
#include "tensor/allocator.h"
#include "tensor/dequantize.h"

namespace reft {

Shape::Shape(std::span<const int64_t> sizes) : dims_(static_cast<int>(sizes.size())) {
  check(sizes.size() <= kMaxDims, "a tensor has at most {} dimensions, got {}", kMaxDims,
        sizes.size());
  int64_t product = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    check(sizes[i] >= 0, "dimension {} is negative: {}", i, sizes[i]);
    check(!__builtin_mul_overflow(product, std::max<int64_t>(sizes[i], 1), &product),
          "the product of the dimensions overflows");
    sizes_[i] = sizes[i];
  }
}

int64_t Shape::numel() const {
  return std::accumulate(sizes_.begin(), sizes_.begin() + dims_, int64_t{1}, std::multiplies<>());
}

bool Shape::operator==(const Shape& other) const {
  return std::ranges::equal(sizes(), other.sizes());
}

std::string Shape::str() const {
  std::string out = "[";
  for (int i = 0; i < dims_; ++i) out += (i > 0 ? ", " : "") + std::to_string((*this)[i]);
  return out + "]";
}

Tensor::Tensor(StoragePtr storage, size_t offset, DType dtype, Shape shape)
    : storage_(std::move(storage)), offset_(offset), dtype_(dtype), shape_(shape) {
  int64_t stride = 1;
  for (int i = shape_.dims() - 1; i >= 0; --i) {
    strides_[static_cast<size_t>(i)] = stride;
    stride *= shape_[i];
  }
  const size_t needed = static_cast<size_t>(nbytes());
  check(offset_ <= storage_->bytes() && needed <= storage_->bytes() - offset_,
        "a {} tensor of shape {} needs {} bytes at offset {}, the storage has {}",
        dtype_name(dtype), shape_.str(), needed, offset_, storage_->bytes());
}

Tensor Tensor::empty(Shape shape, DType dtype, Device device) {
  const int64_t last = shape.dims() > 0 ? shape[-1] : 1;
  const int64_t bytes = last == 0 ? 0 : shape.numel() / last * row_bytes(dtype, last);
  return Tensor(allocator_for(device).allocate(static_cast<size_t>(bytes)), 0, dtype, shape);
}

Tensor Tensor::zeros(Shape shape, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  t.fill_zero();
  return t;
}

Tensor Tensor::borrow(void* data, Shape shape, DType dtype) {
  const int64_t last = shape.dims() > 0 ? shape[-1] : 1;
  const int64_t bytes = last == 0 ? 0 : shape.numel() / last * row_bytes(dtype, last);
  return Tensor(std::make_shared<Storage>(kCpuDevice, data, static_cast<size_t>(bytes), nullptr), 0,
                dtype, shape);
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (int i = dims() - 1; i >= 0; --i) {
    if (size(i) != 1 && stride(i) != expected) return false;
    expected *= size(i);
  }
  return true;
}

int64_t Tensor::nbytes() const {
  const int64_t last = dims() > 0 ? size(-1) : 1;
  return last == 0 ? 0 : numel() / last * row_bytes(dtype_, last);
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  check(dims() >= 1 && 0 <= begin && begin <= end && end <= size(0),
        "rows [{}, {}) of a tensor of shape {}", begin, end, shape_.str());
  Tensor view = *this;
  std::vector<int64_t> sizes(shape_.sizes().begin(), shape_.sizes().end());
  sizes[0] = end - begin;
  view.shape_ = Shape(std::span<const int64_t>(sizes));
  // row_bytes of the elements skipped: strides of dimension 0 are whole rows, hence whole blocks.
  view.offset_ += static_cast<size_t>(row_bytes(dtype_, begin * stride(0)));
  return view;
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  check(dims() >= 1 && 0 <= begin && begin <= end && end <= size(-1),
        "columns [{}, {}) of a tensor of shape {}", begin, end, shape_.str());
  Tensor view = *this;
  std::vector<int64_t> sizes(shape_.sizes().begin(), shape_.sizes().end());
  sizes.back() = end - begin;
  view.shape_ = Shape(std::span<const int64_t>(sizes));
  view.offset_ += static_cast<size_t>(row_bytes(dtype_, begin));
  return view;
}

Tensor Tensor::reshape(Shape shape) const {
  check(is_contiguous(), "reshape of a view that is not contiguous ({})", str());
  check(shape.numel() == numel(), "cannot reshape {} to {}", shape_.str(), shape.str());
  return Tensor(storage_, offset_, dtype_, shape);
}

Tensor Tensor::view_in(StoragePtr storage, DType dtype, int64_t shift) const {
  Tensor view = *this;
  const int64_t first =
      static_cast<int64_t>(offset_) / row_bytes(dtype_, 1) + shift;  // in elements
  int64_t end = numel() > 0 ? first + 1 : first;
  for (int i = 0; i < dims() && numel() > 0; ++i) end += (size(i) - 1) * stride(i);
  check(first >= 0 && row_bytes(dtype, end) <= static_cast<int64_t>(storage->bytes()),
        "a {} view of elements {} to {} in a storage of {} bytes", dtype_name(dtype), first, end,
        storage->bytes());
  view.storage_ = std::move(storage);
  view.dtype_ = dtype;
  view.offset_ = static_cast<size_t>(row_bytes(dtype, first));
  return view;
}

Tensor Tensor::without_storage() const {
  Tensor view = *this;
  view.storage_ = nullptr;
  return view;
}

namespace {

// Calls f(flat row index, byte offset of the row) for every row of the last dimension.
template <class F>
void for_each_row(const Tensor& t, F f) {
  const int64_t last = t.dims() > 0 ? t.size(-1) : 1;
  const int64_t n = last == 0 ? 0 : t.numel() / last;
  for (int64_t row = 0; row < n; ++row) {
    int64_t rest = row;
    int64_t elems = 0;
    for (int d = t.dims() - 2; d >= 0; --d) {
      elems += rest % t.size(d) * t.stride(d);
      rest /= t.size(d);
    }
    f(row, row_bytes(t.dtype(), elems));
  }
}

}  // namespace

Tensor Tensor::contiguous() const {
  if (!defined() || is_contiguous()) return *this;
  check(device() == kCpuDevice, "contiguous() of a strided view is only done on the CPU, not on {}",
        device_name(device()));
  Tensor out = empty(shape_, dtype_);
  const int64_t bytes = row_bytes(dtype_, size(-1));
  for_each_row(*this, [&](int64_t row, int64_t offset) {
    std::memcpy(out.raw() + row * bytes, raw() + offset, static_cast<size_t>(bytes));
  });
  return out;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  check(device() == kCpuDevice, "dtype conversion is only done on the CPU, not on {}",
        device_name(device()));
  Tensor out = empty(shape_, dtype);
  const Tensor source = contiguous();
  const int64_t cols = dims() > 0 ? size(-1) : 1;
  const int64_t num_rows = cols == 0 ? 0 : numel() / cols;
  const int64_t in_bytes = row_bytes(dtype_, cols);
  const int64_t out_bytes = row_bytes(dtype, cols);
  compute_pool().parallel_for(num_rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(cols, 1)),
                              [&](int64_t begin, int64_t end) {
                                std::vector<float> row(static_cast<size_t>(cols));
                                for (int64_t r = begin; r < end; ++r) {
                                  dequantize_row(dtype_, source.raw() + r * in_bytes, row.data(),
                                                 cols);
                                  quantize_row(dtype, row.data(), out.raw() + r * out_bytes, cols);
                                }
                              });
  return out;
}

Tensor Tensor::to(Device target) const {
  if (!defined() || target == device()) return *this;
  const Tensor source = contiguous();
  Tensor out = empty(shape_, dtype_, target);
  out.copy_from(source);
  return out;
}

void Tensor::fill_zero() const {
  check(is_contiguous(), "fill_zero of a view that is not contiguous ({})", str());
  allocator_for(device()).fill_zero(raw(), static_cast<size_t>(nbytes()));
}

void Tensor::copy_from(const Tensor& source) const {
  check(dtype_ == source.dtype_ && shape_ == source.shape_, "copy_from: {} from {}", str(),
        source.str());
  check(is_contiguous() && source.is_contiguous(),
        "copy_from between views that are not contiguous");
  const Device through = device().type == DeviceType::kCpu ? source.device() : device();
  allocator_for(through).copy(raw(), source.raw(), static_cast<size_t>(nbytes()), device(),
                              source.device());
}

std::string Tensor::str() const {
  if (!defined()) return "undefined tensor";
  return fmt::format("{} {} on {}", dtype_name(dtype_), shape_.str(), device_name(device()));
}

}  // namespace reft
