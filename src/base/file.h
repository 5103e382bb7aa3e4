// Files: read-only mappings, whole reads, atomic writes.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace reft {

// A file mapped read-only for the lifetime of the object. An empty file maps to an empty span.
class MappedFile {
 public:
  // Throws Error naming `path` when it cannot be opened or mapped, or is not a regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Takes the pages out of this process; they come back from the file when they are read again.
  void release_pages() const;
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Throws Error naming the path.
std::string read_file(const std::string& path);
// Writes to `path`.tmp-PID, syncs, renames. Throws Error naming the path; the old file survives a
// failure.
void write_file_atomic(const std::string& path, std::string_view data);

}  // namespace reft
