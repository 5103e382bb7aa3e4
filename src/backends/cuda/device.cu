// Device memory and streams.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "backends/cuda/common.h"
#include "tensor/allocator.h"

namespace reft {
namespace {

struct DeviceState {
  cudaStream_t stream = nullptr;
  int num_sms = 0;
  int compute_major = 0;
};

// Throws Error where there is no such card or no driver for it.
DeviceState open_device(int index) {
  DeviceState state;
  int count = 0;
  cuda_check(cudaGetDeviceCount(&count), "counting devices");
  check(index >= 0 && index < count, "there is no CUDA device {}: this machine has {}", index,
        count);
  cuda_check(cudaSetDevice(index), "selecting the device");
  cuda_check(cudaStreamCreateWithFlags(&state.stream, cudaStreamNonBlocking), "creating a stream");
  cuda_check(cudaDeviceGetAttribute(&state.num_sms, cudaDevAttrMultiProcessorCount, index),
             "reading the multiprocessor count");
  cuda_check(cudaDeviceGetAttribute(&state.compute_major, cudaDevAttrComputeCapabilityMajor, index),
             "reading the compute capability");
  return state;
}

DeviceState& device_state(int index) {
  static std::mutex mutex;
  static std::map<int, DeviceState> states;
  std::lock_guard lock(mutex);
  auto it = states.find(index);
  if (it == states.end()) it = states.emplace(index, open_device(index)).first;
  return it->second;
}

// Small copies to the device by way of pinned memory, so that the host need not wait for the work
// that is queued before them.
class Uploads {
 public:
  static constexpr size_t kSlotBytes = size_t{256} << 10;

  void copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    std::lock_guard lock(mutex_);
    if (memory_ == nullptr) allocate();
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    cuda_check(cudaEventSynchronize(slot.free), "waiting for a copy");
    std::memcpy(slot.data, from, bytes);
    cuda_check(cudaMemcpyAsync(to, slot.data, bytes, cudaMemcpyHostToDevice, stream),
               "copying memory");
    cuda_check(cudaEventRecord(slot.free, stream), "recording an event");
  }

 private:
  struct Slot {
    std::byte* data = nullptr;
    cudaEvent_t free = nullptr;
  };

  void allocate() {
    cuda_check(cudaMallocHost(&memory_, kSlotBytes * slots_.size()), "allocating pinned memory");
    for (size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].data = static_cast<std::byte*>(memory_) + i * kSlotBytes;
      cuda_check(cudaEventCreateWithFlags(&slots_[i].free, cudaEventDisableTiming),
                 "creating an event");
    }
  }

  std::mutex mutex_;
  void* memory_ = nullptr;
  std::array<Slot, 32> slots_;
  size_t next_ = 0;
};

// Freed blocks are kept by rounded size and handed out again at once: all work of a device is on
// one stream, so the next user is ordered behind the last one.
class CudaAllocator final : public Allocator {
 public:
  explicit CudaAllocator(int index) : device_{DeviceType::kCuda, index} {
    device_state(index);  // throws where there is no such card
  }

  StoragePtr allocate(size_t bytes) override {
    size_t size = round_up(bytes);
    void* data = nullptr;
    bool for_graphs = false;
    {
      std::lock_guard lock(mutex_);
      for_graphs = recording_;
      auto& pool = for_graphs ? graph_free_ : free_;
      // A large block may be up to an eighth larger than what was asked for.
      const size_t most = bytes < kLarge ? size : size + size / 8;
      for (auto it = pool.lower_bound(size); it != pool.end() && it->first <= most; ++it) {
        if (it->second.empty()) continue;
        data = it->second.back();
        it->second.pop_back();
        size = it->first;
        use_.cached -= static_cast<int64_t>(size);
        break;
      }
    }
    if (data == nullptr) data = device_allocate(size);
    {
      std::lock_guard lock(mutex_);
      use_.allocated += static_cast<int64_t>(size);
      use_.peak = std::max(use_.peak, use_.allocated);
    }
    return std::make_shared<Storage>(
        device_, data, bytes, [this, data, size, for_graphs] { release(data, size, for_graphs); });
  }

  void trim() override {
    cuda_check(cudaStreamSynchronize(cuda_stream(device_.index)), "waiting for the stream");
    std::lock_guard lock(mutex_);
    for (auto& [size, blocks] : free_) {
      for (void* block : blocks) cudaFree(block);
    }
    free_.clear();
    use_.cached = 0;
  }

  MemoryUse use() const override {
    std::lock_guard lock(mutex_);
    return use_;
  }

  void set_recording(bool recording) {
    std::lock_guard lock(mutex_);
    recording_ = recording;
  }

  DeviceMemory device_memory() const override {
    size_t free_bytes = 0, total_bytes = 0;
    cuda_check(cudaMemGetInfo(&free_bytes, &total_bytes), "reading the free memory");
    return {.free = static_cast<int64_t>(free_bytes), .total = static_cast<int64_t>(total_bytes)};
  }

  void copy(void* to, const void* from, size_t bytes, Device to_device,
            Device from_device) override {
    if (bytes == 0) return;
    const cudaStream_t stream = cuda_stream(device_.index);
    if (from_device.type == DeviceType::kCpu && bytes <= Uploads::kSlotBytes)
      return uploads_.copy(to, from, bytes, stream);
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copying memory");
    // Host memory may be reused or read as soon as this returns.
    const bool host = to_device.type == DeviceType::kCpu || from_device.type == DeviceType::kCpu;
    if (host) cuda_check(cudaStreamSynchronize(stream), "waiting for a copy");
  }

  std::string name() const override {
    cudaDeviceProp properties{};
    cuda_check(cudaGetDeviceProperties(&properties, device_.index), "reading the name");
    return properties.name;
  }

  void fill_zero(void* to, size_t bytes) override {
    if (bytes > 0)
      cuda_check(cudaMemsetAsync(to, 0, bytes, cuda_stream(device_.index)), "clearing memory");
  }

 private:
  static constexpr size_t kLarge = size_t{1} << 20;

  static size_t round_up(size_t bytes) {
    const size_t unit = bytes < kLarge               ? 512
                        : bytes < (size_t{64} << 20) ? size_t{1} << 17
                                                     : size_t{1} << 21;
    return std::max<size_t>(unit, (bytes + unit - 1) / unit * unit);
  }

  void* device_allocate(size_t size) {
    cuda_check(cudaSetDevice(device_.index), "selecting the device");
    void* data = nullptr;
    cudaError_t status = cudaMalloc(&data, size);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      trim();
      status = cudaMalloc(&data, size);
    }
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free_bytes = 0, total_bytes = 0;
      cudaMemGetInfo(&free_bytes, &total_bytes);
      fail("out of memory on cuda:{}: {} bytes wanted, {} of {} free", device_.index, size,
           free_bytes, total_bytes);
    }
    cuda_check(status, "allocating device memory");
    return data;
  }

  void release(void* data, size_t size, bool for_graphs) {
    std::lock_guard lock(mutex_);
    use_.allocated -= static_cast<int64_t>(size);
    (for_graphs ? graph_free_ : free_)[size].push_back(data);
    use_.cached += static_cast<int64_t>(size);
  }

  Device device_;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  std::map<size_t, std::vector<void*>> graph_free_;  // see GraphMemory
  bool recording_ = false;
  MemoryUse use_;
  Uploads uploads_;
};

CudaAllocator& allocator_of(int index) {
  static std::mutex mutex;
  static auto* allocators =
      new std::map<int, CudaAllocator*>();  // storages may outlive static objects
  std::lock_guard lock(mutex);
  CudaAllocator*& allocator = (*allocators)[index];
  if (allocator == nullptr) allocator = new CudaAllocator(index);
  return *allocator;
}

Allocator& cuda_allocator(int index) { return allocator_of(index); }

const bool registered = (register_allocator(DeviceType::kCuda, &cuda_allocator), true);

}  // namespace

GraphMemory::GraphMemory(int device_index) : device_index_(device_index) {
  allocator_of(device_index).set_recording(true);
}
GraphMemory::~GraphMemory() { allocator_of(device_index_).set_recording(false); }

cudaStream_t cuda_stream(int device_index) { return device_state(device_index).stream; }
int cuda_compute_major(int device_index) { return device_state(device_index).compute_major; }
int cuda_num_sms(int device_index) { return device_state(device_index).num_sms; }

}  // namespace reft
