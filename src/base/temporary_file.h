// A file that is written piece by piece and appears as a whole, or not at all.
#pragma once

#include <cstddef>
#include <string>

namespace reft {

// Written to `path`.tmp-PID; commit() syncs it and gives it its name. Without commit() it is
// removed and a file of that name stays as it was. Errors name the file and the system's reason.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string path);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void write(const void* data, size_t bytes);
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  bool committed_ = false;
};

}  // namespace reft
