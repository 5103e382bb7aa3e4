// What the op tests share. Every test file of this folder runs its cases on each device of
// test_devices() and adds the ops that it covers; OpCoverage fails for a registered op that nobody
// covers.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "tensor/allocator.h"
#include "tensor/tensor.h"

namespace reft {

// Names of ops (KernelSlot::name) with a test:
//   const bool covered = cover_ops({"linear", "prepare_weight"});
inline std::set<std::string>& covered_ops() {
  static auto* names = new std::set<std::string>();
  return *names;
}
inline bool cover_ops(const std::vector<std::string>& names) {
  covered_ops().insert(names.begin(), names.end());
  return true;
}

// The devices that this build and machine have.
inline std::vector<Device> test_devices() {
  std::vector<Device> devices = {kCpuDevice};
  try {
    allocator_for({DeviceType::kCuda, 0});
    devices.push_back({DeviceType::kCuda, 0});
  } catch (const Error&) {  // built without it, or no such card
  }
  return devices;
}

}  // namespace reft
