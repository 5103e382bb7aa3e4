// Page-locked host memory for copies that run beside the host.
#pragma once

#include <cstddef>

#include "backends/cuda/common.h"

namespace reft {

// A buffer from a pool, with the event that says when the device is done with it. Any thread; one
// at a time.
class Staging {
 public:
  static constexpr size_t kLargest = size_t{4} << 20;

  // At most kLargest bytes. Throws Error when there is no memory for it.
  Staging(int device_index, size_t bytes);
  ~Staging();  // goes back to the pool, which waits for the event before it is used again
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void* data() const;
  // What is queued on the device's stream so far is what done() and wait() are about.
  void record();
  bool done() const;
  // Throws Error when the device failed.
  void wait() const;

  struct Buffer;

 private:
  Buffer* buffer_;
};

// Copies host memory to the device, ordered with its ops. `from` may be reused on return; the copy
// itself may still run.
void copy_to_device(int device_index, void* to, const void* from, size_t bytes);

}  // namespace reft
