// A blob on its way into the cache: a file of the final size whose segments fill up in any order,
// and a record of how far each is, so that a killed download loses little.
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace reft {

struct Segment {
  int64_t begin = 0;
  int64_t size = 0;
  int64_t done = 0;
  bool complete() const { return done == size; }
};

// Thread-safe, as long as no segment is written by two threads. What is appended after commit or
// discard leaves no trace.
class BlobFile {
 public:
  // Opens or creates `blob`.reft-incomplete. What is there is kept when size and segmentation are
  // the same.
  BlobFile(const std::filesystem::path& blob, int64_t size, int64_t segment_bytes);
  ~BlobFile();
  BlobFile(const BlobFile&) = delete;
  BlobFile& operator=(const BlobFile&) = delete;

  size_t num_segments() const { return segments_.size(); }
  Segment segment(size_t i) const;
  int64_t done() const;
  bool complete() const;
  // Appends to a segment. Throws Error when it would overflow, or on a full disk.
  void append(size_t i, std::string_view data);
  // Forgets all and goes on with one segment (the server cannot send ranges).
  void restart();
  // One segment of a size that only the end of the stream tells.
  bool open_ended() const { return size_ < 0; }

  // Empty when the content has the hash that `etag` is (sha256, or git's sha1), else what is wrong.
  // An etag that is no hash says nothing.
  std::string verify(const std::string& etag) const;
  // Renames it to its final name.
  void commit();
  // Removes file and record.
  void discard();

 private:
  std::string record_text() const;
  bool read_record();
  void clear();
  void save_record();

  std::filesystem::path blob_;
  std::filesystem::path file_;
  std::filesystem::path record_;
  int64_t size_;
  int fd_ = -1;
  mutable std::mutex mutex_;
  std::vector<Segment> segments_;
  int64_t unsaved_ = 0;
  bool closed_ = false;  // committed or discarded: the record must not come back
};

}  // namespace reft
