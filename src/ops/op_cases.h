// What the op tests share: devices, dtypes, inputs, comparison against an fp64 oracle. Every test
// file of this folder runs its cases on each of test_devices() (inputs are made on the host, moved
// with .to(device), outputs compared on the host) and names the ops that it covers; OpCoverage
// fails for a registered op that nobody covers.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
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

// Dtypes of activations that a device computes in.
inline std::vector<DType> activation_dtypes(Device device) {
  if (device.type == DeviceType::kCpu) return {DType::kF32};
  return {DType::kF32, DType::kF16, DType::kBF16};
}

// Half an ulp of the dtype relative to the value, with room for a few roundings inside an op.
inline double tolerance(DType dtype) {
  if (dtype == DType::kF8E4M3) return 0.26;
  return dtype == DType::kF32 ? 4e-6 : dtype == DType::kF16 ? 2e-3 : 1.6e-2;
}

// Normal values on the host.
inline Tensor random_values(Shape shape, uint32_t seed, float deviation = 1.0f, float mean = 0.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(mean, deviation);
  Tensor t = Tensor::empty(shape, DType::kF32);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = normal(random);
  return t;
}

// The same values as a view with rows further apart, the gap filled with NaN.
inline Tensor strided_copy(const Tensor& x, int64_t gap) {
  Tensor wide = Tensor::empty({x.size(0), x.size(1) + gap}, x.dtype());
  for (int64_t i = 0; i < wide.numel(); ++i) wide.data<float>()[i] = NAN;
  for (int64_t t = 0; t < x.size(0); ++t) {
    std::copy_n(x.data<float>() + t * x.size(1), x.size(1),
                wide.data<float>() + t * wide.size(1) + gap / 2);
  }
  return wide.columns(gap / 2, gap / 2 + x.size(1));
}

// Values of a tensor of any float dtype and device, as doubles.
inline std::vector<double> doubles(const Tensor& t) {
  const Tensor host = t.to(kCpuDevice).contiguous().to(DType::kF32);
  return {host.data<float>(), host.data<float>() + host.numel()};
}

// |got − want| ≤ tolerance × max(scale, |want|) everywhere. Not finite: the same class.
inline void expect_close(const Tensor& got, const std::vector<double>& want, double tolerance,
                         const std::string& what, double scale = 1.0) {
  const std::vector<double> values = doubles(got);
  ASSERT_EQ(values.size(), want.size()) << what;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i])) {
      ASSERT_TRUE(std::isnan(values[i])) << what << " [" << i << "] is " << values[i];
    } else if (std::isinf(want[i])) {
      ASSERT_EQ(values[i], want[i]) << what << " [" << i << "]";
    } else {
      ASSERT_NEAR(values[i], want[i], tolerance * std::max(scale, std::abs(want[i])))
          << what << " [" << i << "]";
    }
  }
}

}  // namespace reft
