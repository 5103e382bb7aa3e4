// The bytes of a file from first to last, decompressed when its name ends in .gz or .zst. Holds one
// buffer, whatever the size of the file. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace reft {

// What fills the buffer of a ByteStream.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Up to `size` bytes; 0 at the end. Throws Error naming the file.
  virtual size_t read(char* out, size_t size) = 0;
  // Goes on at this byte (of the decompressed file).
  virtual void seek(int64_t offset) = 0;
};

class ByteStream {
 public:
  // Throws Error naming `path` when it cannot be opened.
  explicit ByteStream(std::string path);

  const std::string& path() const { return path_; }
  // The next byte, or -1 at the end.
  int get() {
    if (next_ == end_ && !fill()) return -1;
    return static_cast<unsigned char>(buffer_[next_++]);
  }
  int peek() {
    if (next_ == end_ && !fill()) return -1;
    return static_cast<unsigned char>(buffer_[next_]);
  }
  // The bytes up to the next "\n", which is taken and left out, as is a "\r" before it. False at
  // the end of the file. Throws Error for a line longer than kMaxRowBytes.
  bool read_line(std::string* line);
  // Takes a UTF-8 byte order mark at the start of the file.
  void skip_byte_order_mark();
  // Bytes handed out so far, decompressed.
  int64_t offset() const { return buffer_offset_ + static_cast<int64_t>(next_); }
  // Goes on at `offset`. A compressed file is read again from its start.
  void seek(int64_t offset);

 private:
  bool fill();

  std::string path_;
  std::unique_ptr<ByteSource> source_;
  std::vector<char> buffer_;
  int64_t buffer_offset_ = 0;  // of buffer_[0] in the file
  size_t next_ = 0;
  size_t end_ = 0;
};

// A row that is larger is an error: it is more likely a broken file.
inline constexpr size_t kMaxRowBytes = size_t{1} << 30;

}  // namespace reft
