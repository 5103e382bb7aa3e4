// Where the tensors of a checkpoint lie: what the safetensors and the GGUF reader have in common.
#pragma once

#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "tensor/checkpoint_reader.h"

namespace reft {

// A tensor and the bytes that hold it.
struct TensorLocation {
  TensorEntry entry;
  uint64_t begin = 0;  // in the file
  uint64_t end = 0;
};

class TensorTable {
 public:
  // A mapped file; tensors read from it keep the mapping alive. Returns its number for `add`.
  size_t add_file(std::shared_ptr<const MappedFile> file);
  // Bytes that somebody else keeps alive.
  size_t add_bytes(std::span<const std::byte> bytes);
  // Throws Error naming both files when the name is taken.
  void add(size_t file, TensorLocation location);

  const std::vector<TensorEntry>& entries() const { return entries_; }
  // Null when absent.
  const TensorEntry* find(const std::string& name) const;
  // A view, or a copy where the file did not align the tensor to its element. Throws Error when the
  // tensor is absent, or when its file was written to since it was mapped (a file cut short would
  // kill the process).
  Tensor read(const std::string& name) const;
  void release_pages() const;

 private:
  struct File {
    std::shared_ptr<const MappedFile> mapping;  // null for bytes in memory
    StoragePtr storage;
    std::string path;  // empty for bytes in memory
    uint64_t inode = 0;
    int64_t size = 0;
    int64_t modified_ns = 0;
  };
  struct Place {
    size_t entry;
    size_t file;
    uint64_t begin;
  };

  static void check_unchanged(const File& file, const std::string& name);

  std::vector<File> files_;
  std::vector<TensorEntry> entries_;
  std::unordered_map<std::string, Place> places_;
};

// Bytes of a packed tensor of the shape. Throws Error when rows are not whole blocks or the size
// overflows.
uint64_t packed_bytes(DType dtype, const Shape& shape);

// Sorts by position and throws Error naming the file and both tensors when two share bytes.
void check_disjoint(std::vector<TensorLocation>& tensors, const std::string& what);

}  // namespace reft
