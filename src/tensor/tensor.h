// A typed, strided view of a storage. Copying a Tensor copies the view, not the data. Row-major;
// the strides of all dimensions but the first are those of a packed row unless a view made them
// otherwise.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "tensor/device.h"
#include "tensor/dtype.h"
#include "tensor/float_types.h"
#include "tensor/storage.h"

namespace reft {

inline constexpr int kMaxDims = 5;

// Up to kMaxDims sizes, none negative.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}
  explicit Shape(std::span<const int64_t> sizes);

  int dims() const { return dims_; }
  int64_t operator[](int i) const { return sizes_[static_cast<size_t>(i < 0 ? i + dims_ : i)]; }
  int64_t numel() const;
  std::span<const int64_t> sizes() const { return {sizes_.data(), static_cast<size_t>(dims_)}; }
  bool operator==(const Shape& other) const;
  std::string str() const;  // "[2, 3]"

 private:
  std::array<int64_t, kMaxDims> sizes_{};
  int dims_ = 0;
};

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::kF32;
}
template <>
constexpr DType dtype_of<f16>() {
  return DType::kF16;
}
template <>
constexpr DType dtype_of<bf16>() {
  return DType::kBF16;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::kI32;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::kI64;
}
template <>
constexpr DType dtype_of<int8_t>() {
  return DType::kI8;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::kU8;
}

class Tensor {
 public:
  Tensor() = default;  // undefined: no storage
  // A packed view of `storage` from byte `offset`. Throws Error when it does not fit.
  Tensor(StoragePtr storage, size_t offset, DType dtype, Shape shape);

  // Contents undefined.
  static Tensor empty(Shape shape, DType dtype, Device device = kCpuDevice);
  static Tensor zeros(Shape shape, DType dtype, Device device = kCpuDevice);
  // Borrows host memory: `data` must outlive every view.
  static Tensor borrow(void* data, Shape shape, DType dtype);
  template <class T>
  static Tensor from_vector(const std::vector<T>& values, Shape shape) {
    check(static_cast<int64_t>(values.size()) == shape.numel(),
          "from_vector: {} values for shape {}", values.size(), shape.str());
    Tensor t = empty(shape, dtype_of<T>());
    std::copy(values.begin(), values.end(), t.data<T>());
    return t;
  }
  template <class T>
  static Tensor from_vector(const std::vector<T>& values) {
    return from_vector(values, Shape{static_cast<int64_t>(values.size())});
  }

  bool defined() const { return storage_ != nullptr; }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : kCpuDevice; }
  const Shape& shape() const { return shape_; }
  int dims() const { return shape_.dims(); }
  int64_t size(int i) const { return shape_[i]; }
  int64_t numel() const { return shape_.numel(); }
  // In elements. For block formats only the last dimension may be split into blocks; its stride
  // is 1.
  int64_t stride(int i) const { return strides_[static_cast<size_t>(i < 0 ? i + dims() : i)]; }
  bool is_contiguous() const;
  int64_t nbytes() const;  // of a packed copy
  const StoragePtr& storage() const { return storage_; }

  std::byte* raw() const { return storage_->data() + offset_; }
  // Checked against the dtype.
  template <class T>
  T* data() const {
    check(dtype_ == dtype_of<T>(), "tensor is {}, not {}", dtype_name(dtype_),
          dtype_name(dtype_of<T>()));
    return reinterpret_cast<T*>(raw());
  }

  // Views. Rows [begin, end) of dimension 0.
  Tensor rows(int64_t begin, int64_t end) const;
  // Columns [begin, end) of the last dimension (not across the blocks of a block format).
  Tensor columns(int64_t begin, int64_t end) const;
  // Same elements, other shape; the tensor must be contiguous.
  Tensor reshape(Shape shape) const;
  // The same shape, strides and offset in elements, moved by `shift` elements, in another storage,
  // whose elements are of a dtype that is no block format. Throws Error when it does not fit.
  Tensor view_in(StoragePtr storage, DType dtype, int64_t shift = 0) const;
  // Shape, strides, offset and dtype alone: keeps no memory alive. Only view_in may be called.
  Tensor without_storage() const;

  // Copies. `to` returns *this when nothing would change; conversions are among the float types
  // and, from block formats, to float types (on the CPU).
  Tensor contiguous() const;
  Tensor to(DType dtype) const;
  Tensor to(Device device) const;
  // Contiguous.
  void fill_zero() const;
  // Copies all elements of `source` (same shape and dtype, any device) into this view. Both
  // contiguous.
  void copy_from(const Tensor& source) const;
  template <class T>
  std::vector<T> to_vector() const {
    const Tensor host = to(kCpuDevice).contiguous();
    return std::vector<T>(host.data<T>(), host.data<T>() + host.numel());
  }

  std::string str() const;  // "float32 [2, 3] on cpu"

 private:
  StoragePtr storage_;
  size_t offset_ = 0;  // bytes
  DType dtype_ = DType::kF32;
  Shape shape_;
  std::array<int64_t, kMaxDims> strides_{};
};

}  // namespace reft

// Tensors, shapes and devices are formatted only when an error is: check(ok, "got {}", tensor)
// costs nothing else.
template <>
struct fmt::formatter<reft::Tensor> : formatter<string_view> {
  auto format(const reft::Tensor& t, format_context& context) const {
    return formatter<string_view>::format(t.str(), context);
  }
};
template <>
struct fmt::formatter<reft::Shape> : formatter<string_view> {
  auto format(const reft::Shape& shape, format_context& context) const {
    return formatter<string_view>::format(shape.str(), context);
  }
};
template <>
struct fmt::formatter<reft::Device> : formatter<string_view> {
  auto format(reft::Device device, format_context& context) const {
    return formatter<string_view>::format(reft::device_name(device), context);
  }
};
