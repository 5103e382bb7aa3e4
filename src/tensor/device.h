// Where memory lives and ops run.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reft {

enum class DeviceType : uint8_t { kCpu, kCuda, kCount };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;

  bool operator==(const Device&) const = default;
};

inline constexpr Device kCpuDevice{};

inline const char* device_type_name(DeviceType type) {
  return type == DeviceType::kCpu ? "cpu" : type == DeviceType::kCuda ? "cuda" : "?";
}
inline std::string device_name(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

}  // namespace reft
