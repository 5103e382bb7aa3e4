// Device memory and streams.
#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "backends/cuda/common.h"
#include "backends/cuda/staging.h"
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

// Freed blocks are kept and handed out again at once: all work of a device is on one stream, so the
// next user is ordered behind the last one. A request takes the smallest block that holds it, of at
// most twice its size: what steps of all sizes keep is then at most about twice what the largest
// one needs. For recorded graphs, the largest of which comes first, any block will do.
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
      const auto it = pool.lower_bound(size);
      if (it != pool.end() && (for_graphs || it->first <= 2 * size)) {
        size = it->first;
        data = it->second.back();
        it->second.pop_back();
        if (it->second.empty()) pool.erase(it);
        use_.cached -= static_cast<int64_t>(size);
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
    for (const auto& [size, blocks] : free_) {
      for (void* block : blocks) cudaFree(block);
      use_.cached -= static_cast<int64_t>(size * blocks.size());
    }
    free_.clear();
  }

  MemoryUse use() const override {
    std::lock_guard lock(mutex_);
    return use_;
  }

  bool recording() const {
    std::lock_guard lock(mutex_);
    return recording_;
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
    if (from_device.type == DeviceType::kCpu) {
      check(!recording(), "a copy from the host while a graph is recorded");
      return copy_to_device(device_.index, to, from, bytes);
    }
    const cudaStream_t stream = cuda_stream(device_.index);
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copying memory");
    if (to_device.type == DeviceType::kCpu)
      cuda_check(cudaStreamSynchronize(stream), "waiting for a copy");
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
    if (status == cudaErrorMemoryAllocation && !recording()) {  // a recording cannot be waited for
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
  std::map<size_t, std::vector<void*>> free_;        // by size; none of them empty
  std::map<size_t, std::vector<void*>> graph_free_;  // see GraphMemory
  bool recording_ = false;
  MemoryUse use_;
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
