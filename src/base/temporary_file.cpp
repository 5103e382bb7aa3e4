#include "base/temporary_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/check.h"

namespace reft {

TemporaryFile::TemporaryFile(std::string path)
    : path_(std::move(path)), temporary_(fmt::format("{}.tmp-{}", path_, ::getpid())) {
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  check(fd_ >= 0, "cannot create '{}': {}", temporary_, std::strerror(errno));
}

TemporaryFile::~TemporaryFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!committed_) ::unlink(temporary_.c_str());
}

void TemporaryFile::write(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(fd_, at, bytes);
    if (written < 0 && errno == EINTR) continue;
    check(written >= 0, "cannot write '{}': {}", temporary_, std::strerror(errno));
    at += written;
    bytes -= static_cast<size_t>(written);
  }
}

void TemporaryFile::commit() {
  check(::fsync(fd_) == 0, "cannot sync '{}': {}", temporary_, std::strerror(errno));
  check(::rename(temporary_.c_str(), path_.c_str()) == 0, "cannot rename '{}' to '{}': {}",
        temporary_, path_, std::strerror(errno));
  committed_ = true;
}

}  // namespace reft
