// Dispatch: each op has one typed slot per device type, filled by the backend's own file at
// start-up.
//
//   ops/norm.h                extern Kernel<void(Tensor& y, const Tensor& x, …)> rms_norm_kernel;
//   ops/norm.cpp              constinit Kernel<…> rms_norm_kernel{"rms_norm"};  …
//   rms_norm_kernel(x.device(), y, x, …); backends/cpu/norm.cpp     const RegisterKernel
//   r(rms_norm_kernel, DeviceType::kCpu, &rms_norm_cpu);
//
// Slots are constinit, so a backend's registration may run before or after the op's own file is
// initialised.
//
// Nothing includes a backend. A missing entry is an Error naming op and device.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "base/check.h"
#include "tensor/device.h"

namespace reft {

// What `reft inspect` and the op tests list: every op and the devices that have it.
class KernelSlot {
 public:
  constexpr explicit KernelSlot(const char* name) : name_(name) {}
  KernelSlot(const KernelSlot&) = delete;
  KernelSlot& operator=(const KernelSlot&) = delete;

  const char* name() const { return name_; }
  virtual bool has(DeviceType device) const = 0;

 protected:
  ~KernelSlot() = default;
  void list() const;  // makes all_kernel_slots() know this slot

 private:
  const char* name_;
};

// Every slot that some backend filled, sorted by name.
std::vector<const KernelSlot*> all_kernel_slots();

template <class Signature>
class Kernel;

template <class Result, class... Args>
class Kernel<Result(Args...)> final : public KernelSlot {
 public:
  using Function = Result (*)(Args...);
  constexpr explicit Kernel(const char* name) : KernelSlot(name) {}

  bool has(DeviceType device) const override {
    return functions_[static_cast<size_t>(device)] != nullptr;
  }
  void set(DeviceType device, Function function) {
    functions_[static_cast<size_t>(device)] = function;
    list();
  }

  Result operator()(Device device, Args... args) const {
    Function function = functions_[static_cast<size_t>(device.type)];
    check(function != nullptr, "op '{}' is not implemented on {}", name(),
          device_type_name(device.type));
    return function(static_cast<Args&&>(args)...);
  }

 private:
  std::array<Function, static_cast<size_t>(DeviceType::kCount)> functions_{};
};

struct RegisterKernel {
  template <class Signature>
  RegisterKernel(Kernel<Signature>& kernel, DeviceType device,
                 typename Kernel<Signature>::Function function) {
    kernel.set(device, function);
  }
};

}  // namespace reft
