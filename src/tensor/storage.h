// A block of memory on one device, with whatever keeps it alive: an allocator's block, a mapped
// file, or memory that somebody else owns.
#pragma once

#include <cstddef>
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

 private:
  Device device_;
  std::byte* data_;
  size_t bytes_;
  std::function<void()> release_;
};

using StoragePtr = std::shared_ptr<Storage>;

}  // namespace reft
