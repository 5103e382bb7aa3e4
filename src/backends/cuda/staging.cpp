#include "backends/cuda/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

namespace reft {

struct Staging::Buffer {
  int device_index;
  size_t size;
  void* data = nullptr;
  cudaEvent_t event = nullptr;
};

namespace {

constexpr size_t kSmallest = 4096;
constexpr size_t kMostOfASize = 24;  // more wait for the oldest: 96 MB of the largest

// Buffers by size; those in front were given back first. They live as long as the process.
struct Pool {
  std::mutex mutex;
  struct Size {
    std::deque<Staging::Buffer*> free;
    size_t count = 0;
  };
  std::map<std::pair<int, size_t>, Size> sizes;
};
Pool& pool() {
  static auto* p = new Pool();
  return *p;
}

// Not ready is no error, but the runtime keeps it as the thread's last one.
bool is_done(cudaEvent_t event) {
  const cudaError_t status = cudaEventQuery(event);
  if (status == cudaErrorNotReady) cudaGetLastError();
  return status != cudaErrorNotReady;
}

Staging::Buffer* make_buffer(int device_index, size_t size) {
  auto buffer = std::make_unique<Staging::Buffer>(Staging::Buffer{device_index, size});
  cuda_check(cudaSetDevice(device_index), "selecting the device");
  cuda_check(cudaHostAlloc(&buffer->data, size, cudaHostAllocDefault), "page-locking memory");
  cuda_check(cudaEventCreateWithFlags(&buffer->event, cudaEventDisableTiming), "creating an event");
  return buffer.release();
}

Staging::Buffer* take_buffer(int device_index, size_t bytes) {
  const size_t size = std::max(kSmallest, std::bit_ceil(bytes));
  Pool& p = pool();
  Staging::Buffer* oldest = nullptr;
  {
    std::lock_guard lock(p.mutex);
    Pool::Size& of_size = p.sizes[{device_index, size}];
    if (!of_size.free.empty() &&
        (is_done(of_size.free.front()->event) || of_size.count >= kMostOfASize)) {
      oldest = of_size.free.front();
      of_size.free.pop_front();
    } else {
      ++of_size.count;
    }
  }
  if (oldest == nullptr) return make_buffer(device_index, size);
  cuda_check(cudaEventSynchronize(oldest->event), "waiting for a copy");
  return oldest;
}

}  // namespace

Staging::Staging(int device_index, size_t bytes) : buffer_(nullptr) {
  check(bytes <= kLargest, "a staging buffer of {} bytes", bytes);
  buffer_ = take_buffer(device_index, bytes);
}

Staging::~Staging() {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.sizes[{buffer_->device_index, buffer_->size}].free.push_back(buffer_);
}

void* Staging::data() const { return buffer_->data; }

void Staging::record() {
  cuda_check(cudaEventRecord(buffer_->event, cuda_stream(buffer_->device_index)),
             "recording an event");
}

bool Staging::done() const { return is_done(buffer_->event); }

void Staging::wait() const {
  cuda_check(cudaEventSynchronize(buffer_->event), "waiting for the device");
}

void copy_to_device(int device_index, void* to, const void* from, size_t bytes) {
  const cudaStream_t stream = cuda_stream(device_index);
  for (size_t at = 0; at < bytes; at += Staging::kLargest) {
    const size_t n = std::min(Staging::kLargest, bytes - at);
    Staging staging(device_index, n);
    std::memcpy(staging.data(), static_cast<const std::byte*>(from) + at, n);
    cuda_check(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, staging.data(), n,
                               cudaMemcpyHostToDevice, stream),
               "copying to the device");
    staging.record();
  }
}

}  // namespace reft
