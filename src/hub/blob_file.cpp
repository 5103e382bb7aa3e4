#include "hub/blob_file.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

#include "base/check.h"
#include "base/file.h"

namespace reft {
namespace {

// How much a kill may cost.
constexpr int64_t kSaveEvery = int64_t{8} << 20;
constexpr const char* kRecordVersion = "reft-progress-1";

bool is_hex(const std::string& text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

}  // namespace

BlobFile::BlobFile(const std::filesystem::path& blob, int64_t size, int64_t segment_bytes)
    : blob_(blob),
      file_(blob.string() + ".reft-incomplete"),
      record_(blob.string() + ".reft-progress"),
      size_(size) {
  for (int64_t begin = 0; begin < size; begin += segment_bytes) {
    segments_.push_back({begin, std::min(segment_bytes, size - begin), 0});
  }
  if (segments_.empty()) segments_.push_back({0, std::max<int64_t>(size, 0), 0});
  fd_ = ::open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  check(fd_ >= 0, "cannot create '{}': {}", file_.string(), std::strerror(errno));
  if (!read_record()) clear();
}

BlobFile::~BlobFile() {
  if (fd_ < 0) return;
  if (unsaved_ > 0) {
    try {
      save_record();
    } catch (const Error&) {  // a full disk: the next try begins a little earlier
    }
  }
  ::close(fd_);
}

Segment BlobFile::segment(size_t i) const {
  std::lock_guard lock(mutex_);
  return segments_[i];
}

bool BlobFile::complete() const {
  std::lock_guard lock(mutex_);
  return std::ranges::all_of(segments_, &Segment::complete);
}

int64_t BlobFile::done() const {
  std::lock_guard lock(mutex_);
  int64_t total = 0;
  for (const Segment& segment : segments_) total += segment.done;
  return total;
}

void BlobFile::append(size_t i, std::string_view data) {
  const Segment segment = this->segment(i);
  const auto bytes = static_cast<int64_t>(data.size());
  check(open_ended() || bytes <= segment.size - segment.done, "the server sends more than {} bytes",
        segment.size);
  int64_t at = segment.begin + segment.done;
  while (!data.empty()) {
    const ssize_t written = ::pwrite(fd_, data.data(), data.size(), at);
    if (written < 0 && errno == EINTR) continue;
    check(written >= 0, "cannot write '{}': {}", file_.string(), std::strerror(errno));
    data.remove_prefix(static_cast<size_t>(written));
    at += written;
  }
  std::lock_guard lock(mutex_);
  segments_[i].done += bytes;
  if (open_ended()) segments_[i].size = segments_[i].done;
  unsaved_ += bytes;
  if (unsaved_ >= kSaveEvery) save_record();
}

void BlobFile::restart() {
  std::lock_guard lock(mutex_);
  segments_ = {{0, std::max<int64_t>(size_, 0), 0}};
  clear();
}

void BlobFile::clear() {
  const bool good = ::ftruncate(fd_, 0) == 0 && ::ftruncate(fd_, std::max<int64_t>(size_, 0)) == 0;
  check(good, "cannot write '{}': {}", file_.string(), std::strerror(errno));
  save_record();
}

std::string BlobFile::verify(const std::string& etag) const {
  const bool sha256 = etag.size() == 64 && is_hex(etag);
  const bool git_sha1 = etag.size() == 40 && is_hex(etag);
  if (!sha256 && !git_sha1) return "";
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(),
                                                                   &EVP_MD_CTX_free);
  bool good =
      context && EVP_DigestInit_ex(context.get(), sha256 ? EVP_sha256() : EVP_sha1(), nullptr) == 1;
  if (git_sha1) {
    struct stat info {};
    good = good && ::fstat(fd_, &info) == 0;
    std::string header = fmt::format("blob {}", static_cast<int64_t>(info.st_size));
    header += '\0';
    good = good && EVP_DigestUpdate(context.get(), header.data(), header.size()) == 1;
  }
  std::vector<char> buffer(size_t{1} << 20);
  int64_t at = 0;
  for (;;) {
    const ssize_t got = ::pread(fd_, buffer.data(), buffer.size(), at);
    if (got < 0 && errno == EINTR) continue;
    check(good && got >= 0, "cannot read '{}': {}", file_.string(), std::strerror(errno));
    if (got == 0) break;
    good = EVP_DigestUpdate(context.get(), buffer.data(), static_cast<size_t>(got)) == 1;
    at += got;
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  check(EVP_DigestFinal_ex(context.get(), digest, &length) == 1, "cannot hash '{}'",
        file_.string());
  std::string text;
  for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
  if (text == etag) return "";
  return fmt::format("its {} is {}, not {}", sha256 ? "sha256" : "git hash", text, etag);
}

void BlobFile::commit() {
  std::lock_guard lock(mutex_);
  check(::fsync(fd_) == 0, "cannot sync '{}': {}", file_.string(), std::strerror(errno));
  std::error_code error;
  std::filesystem::rename(file_, blob_, error);
  check(!error, "cannot rename '{}': {}", file_.string(), error.message());
  closed_ = true;
  std::filesystem::remove(record_, error);
}

void BlobFile::discard() {
  // Another worker may be appending: the lock keeps it from saving between these lines.
  std::lock_guard lock(mutex_);
  closed_ = true;
  std::error_code ignored;
  std::filesystem::remove(file_, ignored);
  std::filesystem::remove(record_, ignored);
}

// The version, the size, then begin, size and progress of every segment.
std::string BlobFile::record_text() const {
  std::string text = fmt::format("{} {}\n", kRecordVersion, size_);
  for (const Segment& s : segments_) text += fmt::format("{} {} {}\n", s.begin, s.size, s.done);
  return text;
}

bool BlobFile::read_record() {
  std::error_code error;
  const auto file_size = std::filesystem::file_size(file_, error);
  // A stream of unknown length cannot be continued.
  if (open_ended() || error || static_cast<int64_t>(file_size) != size_) return false;
  if (!std::filesystem::is_regular_file(record_, error)) return false;
  std::istringstream in(read_file(record_.string()));
  std::string version;
  int64_t size = 0;
  if (!(in >> version >> size) || version != kRecordVersion || size != size_) return false;
  std::vector<Segment> segments = segments_;
  for (Segment& segment : segments) {
    Segment read;
    if (!(in >> read.begin >> read.size >> read.done)) return false;
    const bool same = read.begin == segment.begin && read.size == segment.size;
    if (!same || read.done < 0 || read.done > read.size) return false;
    segment.done = read.done;
  }
  segments_ = std::move(segments);
  return true;
}

// Not synced: after a power cut it may claim bytes that are lost, and the hash will tell.
void BlobFile::save_record() {
  if (closed_) return;
  const std::string temporary = record_.string() + ".tmp";
  std::ofstream(temporary, std::ios::trunc) << record_text();
  std::error_code error;
  std::filesystem::rename(temporary, record_, error);
  check(!error, "cannot write '{}': {}", record_.string(), error.message());
  unsaved_ = 0;
}

}  // namespace reft
