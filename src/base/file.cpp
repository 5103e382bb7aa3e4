#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/check.h"

namespace reft {
namespace {

// Closes a descriptor when it goes out of scope.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  check(file.fd >= 0, "cannot open '{}': {}", path, std::strerror(errno));
  struct stat info {};
  check(::fstat(file.fd, &info) == 0, "cannot stat '{}': {}", path, std::strerror(errno));
  check(S_ISREG(info.st_mode), "'{}' is not a regular file", path);
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  check(data != MAP_FAILED, "cannot map '{}' ({} bytes): {}", path, size_, std::strerror(errno));
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release_pages() const {
  if (data_ != nullptr) ::madvise(const_cast<std::byte*>(data_), size_, MADV_DONTNEED);
}

std::string read_file(const std::string& path) {
  const MappedFile file(path);
  return std::string(file.text());
}

void write_file_atomic(const std::string& path, std::string_view data) {
  const std::string temporary = fmt::format("{}.tmp-{}", path, ::getpid());
  const auto give_up = [&](const char* step) {
    const int error = errno;
    ::unlink(temporary.c_str());
    fail("cannot {} '{}': {}", step, temporary, std::strerror(error));
  };
  {
    Descriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
    if (file.fd < 0) give_up("create");
    while (!data.empty()) {
      const ssize_t written = ::write(file.fd, data.data(), data.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) give_up("write");
      data.remove_prefix(static_cast<size_t>(written));
    }
    if (::fsync(file.fd) != 0) give_up("sync");
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) give_up("rename");
}

}  // namespace reft
