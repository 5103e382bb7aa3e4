// A block of memory on one device, with whatever keeps it alive: an allocator's block, a mapped
// file, or memory that somebody else owns.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "tensor/device.h"

namespace reft {

class Storage {
 public:
  // `release` runs when the last tensor lets go; it may be empty.
  Storage(Device device, void* data, size_t bytes, std::function<void()> release)
      : device_(device),
        data_(static_cast<std::byte*>(data)),
        bytes_(bytes),
        release_(std::move(release)) {}
  ~Storage() {
    if (release_) release_();
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Device device() const { return device_; }
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Of this storage alone in the whole life of the process, never 0: what tells values apart when
  // memory is used again.
  uint64_t id() const { return id_; }

 private:
  static uint64_t next_id() {
    static std::atomic<uint64_t> last{0};
    return last.fetch_add(1, std::memory_order_relaxed) + 1;
  }

  Device device_;
  std::byte* data_;
  size_t bytes_;
  std::function<void()> release_;
  uint64_t id_ = next_id();
};

using StoragePtr = std::shared_ptr<Storage>;

}  // namespace reft
