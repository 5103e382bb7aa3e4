#include "train/tensorboard.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "base/check.h"

namespace reft {
namespace {

double now_seconds() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

template <class T>
std::string bytes_of(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

// Protobuf's wire format: a key (field number and type), then the value.
std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}
std::string number_field(int field, uint64_t value) {
  return varint(static_cast<uint64_t>(field) << 3) + varint(value);
}
std::string double_field(int field, double value) {
  return varint(static_cast<uint64_t>(field) << 3 | 1) + bytes_of(value);
}
std::string float_field(int field, float value) {
  return varint(static_cast<uint64_t>(field) << 3 | 5) + bytes_of(value);
}
std::string bytes_field(int field, std::string_view value) {
  return varint(static_cast<uint64_t>(field) << 3 | 2) + varint(value.size()) + std::string(value);
}

// Event: wall_time = 1, step = 2, and one of file_version = 3, summary = 5, session_log = 7.
std::string event(int64_t step, int field, std::string_view content) {
  return double_field(1, now_seconds()) + number_field(2, static_cast<uint64_t>(step)) +
         bytes_field(field, content);
}

uint32_t masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xa282ead8u; }

}  // namespace

uint32_t crc32c(std::string_view data) {
  static const auto table = [] {
    std::array<uint32_t, 256> out{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t x = i;
      for (int bit = 0; bit < 8; ++bit) x = (x >> 1) ^ ((x & 1) != 0 ? 0x82f63b78u : 0);
      out[i] = x;
    }
    return out;
  }();
  uint32_t crc = ~0u;
  for (const char c : data) crc = table[(crc ^ static_cast<uint8_t>(c)) & 0xff] ^ (crc >> 8);
  return ~crc;
}

TensorBoardWriter::TensorBoardWriter(const std::string& folder, int64_t start_step) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  check(!error, "cannot create folder '{}': {}", folder, error.message());
  char host[256] = "host";
  ::gethostname(host, sizeof(host) - 1);
  path_ =
      fmt::format("{}/events.out.tfevents.{:.0f}.{}.{}", folder, now_seconds(), host, ::getpid());
  file_ = std::fopen(path_.c_str(), "abe");
  check(file_ != nullptr, "cannot create '{}': {}", path_, std::strerror(errno));
  write_record(event(0, 3, "brain.Event:2"));
  constexpr uint64_t kStart = 1;  // SessionLog.status
  if (start_step > 0) write_record(event(start_step + 1, 7, number_field(1, kStart)));
}

TensorBoardWriter::~TensorBoardWriter() { std::fclose(file_); }

void TensorBoardWriter::add_scalar(std::string_view tag, int64_t step, double value) {
  const std::string entry = bytes_field(1, tag) + float_field(2, static_cast<float>(value));
  write_record(event(step, 5, bytes_field(1, entry)));
}

void TensorBoardWriter::flush() {
  check(std::fflush(file_) == 0, "cannot write '{}': {}", path_, std::strerror(errno));
}

void TensorBoardWriter::write_record(std::string_view data) {
  const std::string length = bytes_of(static_cast<uint64_t>(data.size()));
  const std::string record = length + bytes_of(masked(crc32c(length))) + std::string(data) +
                             bytes_of(masked(crc32c(data)));
  check(std::fwrite(record.data(), 1, record.size(), file_) == record.size(),
        "cannot write '{}': {}", path_, std::strerror(errno));
}

}  // namespace reft
