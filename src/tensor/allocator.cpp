#include "tensor/allocator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "base/check.h"

namespace reft {
namespace {

// Freed blocks are kept by exact rounded size. Rounding to an eighth of a power of two keeps waste
// under 12.5%.
class CpuAllocator final : public Allocator {
 public:
  StoragePtr allocate(size_t bytes) override {
    const size_t size = round_up(bytes);
    void* data = nullptr;
    {
      std::lock_guard lock(mutex_);
      auto it = free_.find(size);
      if (it != free_.end() && !it->second.empty()) {
        data = it->second.back();
        it->second.pop_back();
        use_.cached -= static_cast<int64_t>(size);
      }
      use_.allocated += static_cast<int64_t>(size);
      use_.peak = std::max(use_.peak, use_.allocated);
    }
    if (data == nullptr) data = system_allocate(size, bytes);
    return std::make_shared<Storage>(kCpuDevice, data, bytes,
                                     [this, data, size] { release(data, size); });
  }

  void trim() override {
    std::lock_guard lock(mutex_);
    for (auto& [size, blocks] : free_) {
      for (void* block : blocks) std::free(block);
    }
    free_.clear();
    use_.cached = 0;
  }

  MemoryUse use() const override {
    std::lock_guard lock(mutex_);
    return use_;
  }

  DeviceMemory device_memory() const override {
    const int64_t page = ::sysconf(_SC_PAGESIZE);
    return {.free = page * ::sysconf(_SC_AVPHYS_PAGES), .total = page * ::sysconf(_SC_PHYS_PAGES)};
  }

  void copy(void* to, const void* from, size_t bytes, Device, Device) override {
    std::memmove(to, from, bytes);
  }
  void fill_zero(void* to, size_t bytes) override { std::memset(to, 0, bytes); }

 private:
  static constexpr size_t kLargestCached = size_t{256} << 20;
  static constexpr size_t kHugePage = size_t{2} << 20;

  static size_t round_up(size_t bytes) {
    if (bytes <= 1024) return std::max<size_t>(64, (bytes + 63) / 64 * 64);
    if (bytes > kLargestCached) return (bytes + 4095) / 4096 * 4096;
    const size_t step = std::bit_floor(bytes) / 8;
    return (bytes + step - 1) / step * step;
  }

  static void* system_allocate(size_t size, size_t wanted) {
    const bool huge = size >= kHugePage;
    const size_t alignment = huge ? kHugePage : 64;
    void* data = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    check(data != nullptr, "out of memory: cannot allocate {} bytes on the CPU", wanted);
    if (huge) ::madvise(data, size, MADV_HUGEPAGE);
    return data;
  }

  void release(void* data, size_t size) {
    {
      std::lock_guard lock(mutex_);
      use_.allocated -= static_cast<int64_t>(size);
      if (size <= kLargestCached) {
        free_[size].push_back(data);
        use_.cached += static_cast<int64_t>(size);
        return;
      }
    }
    std::free(data);
  }

  mutable std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  MemoryUse use_;
};

Allocator& cpu_allocator(int) {
  static auto* allocator =
      new CpuAllocator();  // never destroyed: storages may outlive static objects
  return *allocator;
}

using GetAllocator = Allocator& (*)(int);
std::array<GetAllocator, static_cast<size_t>(DeviceType::kCount)> registered = {&cpu_allocator,
                                                                                nullptr};

}  // namespace

Allocator& allocator_for(Device device) {
  GetAllocator get = registered[static_cast<size_t>(device.type)];
  check(get != nullptr, "this build has no {} backend", device_type_name(device.type));
  return get(device.index);
}

void register_allocator(DeviceType type, Allocator& (*get)(int index)) {
  registered[static_cast<size_t>(type)] = get;
}

}  // namespace reft
