#include "tensor/tensor_table.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>

namespace reft {
namespace {

// Readers hand out tensors that nobody writes to; Storage has no read-only kind.
void* writable(const std::byte* data) { return const_cast<std::byte*>(data); }

int64_t modified_ns(const struct stat& info) {
  return static_cast<int64_t>(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

size_t TensorTable::add_file(std::shared_ptr<const MappedFile> file) {
  File entry;
  entry.path = file->path();
  struct stat info {};
  if (::stat(entry.path.c_str(), &info) == 0) {
    entry.inode = info.st_ino;
    entry.size = info.st_size;
    entry.modified_ns = modified_ns(info);
  }
  const auto bytes = file->bytes();
  entry.storage =
      std::make_shared<Storage>(kCpuDevice, writable(bytes.data()), bytes.size(), [file] {});
  entry.mapping = std::move(file);
  files_.push_back(std::move(entry));
  return files_.size() - 1;
}

void TensorTable::release_pages() const {
  for (const File& file : files_) {
    if (file.mapping != nullptr) file.mapping->release_pages();
  }
}

size_t TensorTable::add_bytes(std::span<const std::byte> bytes) {
  File entry;
  entry.storage =
      std::make_shared<Storage>(kCpuDevice, writable(bytes.data()), bytes.size(), nullptr);
  files_.push_back(std::move(entry));
  return files_.size() - 1;
}

void TensorTable::add(size_t file, TensorLocation location) {
  const auto [it, added] =
      places_.try_emplace(location.entry.name, Place{entries_.size(), file, location.begin});
  if (!added) {
    const std::string& first = entries_[it->second.entry].file;
    fail("{}: tensor '{}' is already in '{}'", location.entry.file, location.entry.name, first);
  }
  entries_.push_back(std::move(location.entry));
}

const TensorEntry* TensorTable::find(const std::string& name) const {
  const auto it = places_.find(name);
  return it == places_.end() ? nullptr : &entries_[it->second.entry];
}

Tensor TensorTable::read(const std::string& name) const {
  const auto it = places_.find(name);
  if (it == places_.end()) {
    fail("checkpoint '{}' has no tensor '{}'", entries_.empty() ? "" : entries_.front().file, name);
  }
  const TensorEntry& entry = entries_[it->second.entry];
  const File& file = files_[it->second.file];
  check_unchanged(file, name);
  const auto offset = static_cast<size_t>(it->second.begin);
  const DTypeInfo& info = dtype_info(entry.dtype);
  const size_t alignment = is_block_format(entry.dtype) ? 1 : static_cast<size_t>(info.block_bytes);
  if (reinterpret_cast<uintptr_t>(file.storage->data() + offset) % alignment == 0) {
    return Tensor(file.storage, offset, entry.dtype, entry.shape);
  }
  Tensor copy = Tensor::empty(entry.shape, entry.dtype);
  std::memcpy(copy.raw(), file.storage->data() + offset, static_cast<size_t>(copy.nbytes()));
  return copy;
}

void TensorTable::check_unchanged(const File& file, const std::string& name) {
  struct stat info {};
  // A file that was removed or replaced by another is no harm: the mapping keeps the old one.
  if (file.path.empty() || ::stat(file.path.c_str(), &info) != 0 || info.st_ino != file.inode)
    return;
  check(info.st_size == file.size && modified_ns(info) == file.modified_ns,
        "{}: the file changed while it was being loaded (tensor '{}')", file.path, name);
}

uint64_t packed_bytes(DType dtype, const Shape& shape) {
  const int64_t last = shape.dims() > 0 ? shape[-1] : 1;
  const int64_t row = row_bytes(dtype, last);
  int64_t total = row;
  for (int i = 0; i + 1 < shape.dims(); ++i) {
    check(!__builtin_mul_overflow(total, shape[i], &total), "the size of shape {} overflows",
          shape.str());
  }
  return static_cast<uint64_t>(total);
}

void check_disjoint(std::vector<TensorLocation>& tensors, const std::string& what) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const TensorLocation& a, const TensorLocation& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  for (size_t i = 1; i < tensors.size(); ++i) {
    check(tensors[i].begin >= tensors[i - 1].end, "{}: tensors '{}' and '{}' overlap", what,
          tensors[i - 1].entry.name, tensors[i].entry.name);
  }
}

}  // namespace reft
