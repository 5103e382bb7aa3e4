// Memory per device. Each device type has one allocator, registered by its backend; the CPU's keeps
// freed blocks in size classes, so that the temporaries of a step cost no system call. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tensor/storage.h"

namespace reft {

// A device's memory as a whole, other processes included.
struct DeviceMemory {
  int64_t free = 0;
  int64_t total = 0;
};

struct MemoryUse {
  int64_t allocated = 0;  // bytes in live storages
  int64_t cached = 0;     // bytes freed but kept for reuse
  int64_t peak = 0;       // largest `allocated` so far
};

class Allocator {
 public:
  virtual ~Allocator() = default;
  // At least 64-byte aligned, contents undefined. Throws Error with the sizes when memory is out.
  virtual StoragePtr allocate(size_t bytes) = 0;
  // Gives cached blocks back to the system.
  virtual void trim() = 0;
  virtual MemoryUse use() const = 0;
  virtual DeviceMemory device_memory() const = 0;
  // What the driver calls the device ("NVIDIA H100 80GB HBM3"); empty: it has no name.
  virtual std::string name() const { return {}; }
  // Copies between this device and the host or within the device, ordered with the ops on it. Host
  // memory may be changed, and what was copied to it read, when it returns.
  virtual void copy(void* to, const void* from, size_t bytes, Device to_device,
                    Device from_device) = 0;
  virtual void fill_zero(void* to, size_t bytes) = 0;
};

// Throws Error when no backend registered one for the device.
Allocator& allocator_for(Device device);
// Called by a backend at start-up, before any tensor of that device type exists.
void register_allocator(DeviceType type, Allocator& (*get)(int index));

}  // namespace reft
