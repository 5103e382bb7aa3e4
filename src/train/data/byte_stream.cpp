#include "train/data/byte_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace reft {
namespace {

constexpr size_t kBufferBytes = size_t{256} << 10;

class PlainSource : public ByteSource {
 public:
  explicit PlainSource(const std::string& path)
      : path_(path), file_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    check(file_ >= 0, "cannot open '{}': {}", path, std::strerror(errno));
  }
  ~PlainSource() override { ::close(file_); }

  size_t read(char* out, size_t size) override {
    ssize_t n = -1;
    do n = ::read(file_, out, size);
    while (n < 0 && errno == EINTR);
    check(n >= 0, "cannot read '{}': {}", path_, std::strerror(errno));
    return static_cast<size_t>(n);
  }
  void seek(int64_t offset) override {
    check(::lseek(file_, offset, SEEK_SET) == offset, "cannot go to byte {} of '{}': {}", offset,
          path_, std::strerror(errno));
  }

 private:
  std::string path_;
  int file_;
};

// Decompressed bytes can only be read forwards: to seek is to start again and to skip.
void skip_bytes(ByteSource& source, int64_t count, const std::string& path) {
  std::vector<char> buffer(kBufferBytes);
  while (count > 0) {
    const size_t n = source.read(buffer.data(), std::min<size_t>(buffer.size(), count));
    check(n > 0, "'{}' ends before the place where reading is to go on", path);
    count -= static_cast<int64_t>(n);
  }
}

class GzipSource : public ByteSource {
 public:
  explicit GzipSource(const std::string& path) : path_(path), file_(::gzopen(path.c_str(), "rb")) {
    check(file_ != nullptr, "cannot open '{}': {}", path, std::strerror(errno));
  }
  ~GzipSource() override { ::gzclose(file_); }

  size_t read(char* out, size_t size) override {
    const int n = ::gzread(file_, out, static_cast<unsigned>(size));
    int code = Z_OK;
    const char* message = ::gzerror(file_, &code);
    // A file that ends in the middle is told by Z_BUF_ERROR beside the bytes that could be read.
    check(n >= 0 && (code == Z_OK || code == Z_STREAM_END), "cannot decompress '{}': {}", path_,
          code == Z_BUF_ERROR ? "the file is truncated" : message);
    return static_cast<size_t>(n);
  }
  void seek(int64_t offset) override {
    check(::gzrewind(file_) == 0, "cannot read '{}' again", path_);
    skip_bytes(*this, offset, path_);
  }

 private:
  std::string path_;
  gzFile file_;
};

class ZstdSource : public ByteSource {
 public:
  explicit ZstdSource(const std::string& path)
      : path_(path), file_(path), stream_(ZSTD_createDStream()), input_(ZSTD_DStreamInSize()) {
    check(stream_ != nullptr, "cannot decompress '{}': out of memory", path);
  }
  ~ZstdSource() override { ZSTD_freeDStream(stream_); }

  size_t read(char* out, size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0) {
      if (view_.pos == view_.size) {
        view_ = {input_.data(), file_.read(input_.data(), input_.size()), 0};
        if (view_.size == 0) {
          check(!inside_frame_, "cannot decompress '{}': the file is truncated", path_);
          return 0;
        }
      }
      const size_t left = ZSTD_decompressStream(stream_, &output, &view_);
      check(!ZSTD_isError(left), "cannot decompress '{}': {}", path_, ZSTD_getErrorName(left));
      inside_frame_ = left != 0;
    }
    return output.pos;
  }
  void seek(int64_t offset) override {
    file_.seek(0);
    ZSTD_initDStream(stream_);
    view_ = {};
    inside_frame_ = false;
    skip_bytes(*this, offset, path_);
  }

 private:
  std::string path_;
  PlainSource file_;
  ZSTD_DStream* stream_;
  std::vector<char> input_;
  ZSTD_inBuffer view_{};
  bool inside_frame_ = false;
};

std::unique_ptr<ByteSource> open_source(const std::string& path) {
  struct stat info {};
  check(::stat(path.c_str(), &info) == 0, "cannot open '{}': {}", path, std::strerror(errno));
  check(S_ISREG(info.st_mode), "'{}' is not a regular file", path);
  if (path.ends_with(".gz")) return std::make_unique<GzipSource>(path);
  if (path.ends_with(".zst")) return std::make_unique<ZstdSource>(path);
  return std::make_unique<PlainSource>(path);
}

}  // namespace

ByteStream::ByteStream(std::string path)
    : path_(std::move(path)), source_(open_source(path_)), buffer_(kBufferBytes) {}

bool ByteStream::fill() {
  buffer_offset_ += static_cast<int64_t>(end_);
  next_ = 0;
  end_ = source_->read(buffer_.data(), buffer_.size());
  return end_ > 0;
}

bool ByteStream::read_line(std::string* line) {
  line->clear();
  if (peek() < 0) return false;
  while (peek() >= 0) {
    const char* begin = buffer_.data() + next_;
    const char* end = buffer_.data() + end_;
    const char* newline = static_cast<const char*>(std::memchr(begin, '\n', end - begin));
    const char* stop = newline != nullptr ? newline : end;
    line->append(begin, stop);
    next_ += static_cast<size_t>(stop - begin);
    check(line->size() <= kMaxRowBytes, "'{}' has a line of more than {} bytes", path_,
          kMaxRowBytes);
    if (newline != nullptr) {
      ++next_;
      break;
    }
  }
  if (line->ends_with('\r')) line->pop_back();
  return true;
}

void ByteStream::skip_byte_order_mark() {
  if (offset() != 0 || peek() != 0xEF) return;
  if (end_ >= 3 && std::memcmp(buffer_.data(), "\xEF\xBB\xBF", 3) == 0) next_ = 3;
}

void ByteStream::seek(int64_t offset) {
  source_->seek(offset);
  buffer_offset_ = offset;
  next_ = end_ = 0;
}

}  // namespace reft
