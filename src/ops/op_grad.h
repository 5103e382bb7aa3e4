// Gradient checks of the ops: what the tape computes against central differences of an oracle in
// double, on every device of test_devices() and in every dtype that it computes in.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "ops/op_cases.h"
#include "tensor/tape.h"

namespace reft {

using Doubles = std::vector<double>;

struct GradientCase {
  std::string what;
  // float32, contiguous; each is differentiated. In a 16-bit dtype matrices are rounded to it,
  // vectors (weights of norms, biases) stay float32, as in a model.
  std::vector<Tensor> inputs;
  // The op on `inputs` (which it must use as they are, with all else beside them, see beside()),
  // and the same in double.
  std::function<Tensor(std::vector<Tensor>& inputs)> op;
  std::function<Doubles(const std::vector<Doubles>& inputs)> oracle;
  double tolerance = 1e-4;  // of the largest gradient of an input, in float32
  // Values on the way to a gradient that are rounded to a 16-bit dtype: each is off by half an ulp,
  // and the tolerance is twice their sum.
  int roundings = 3;
  std::vector<size_t> weights = {};  // inputs with float32 gradients in all dtypes
  std::vector<DType> dtypes = {};    // those of devices other than the CPU; empty: all
  bool cpu_only = false;             // no other device has these ops so far
};

// On the device of `in`.
inline Tensor beside(const Tensor& t, const Tensor& in) { return t.to(in.device()); }

// Half an ulp of 1.
inline double unit_roundoff(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

// At most this many gradients of an input are compared, evenly spread.
inline constexpr int64_t kComparedGradients = 5000;

inline void check_gradients(const GradientCase& test, Device device, DType dtype) {
  constexpr float kUntouched = 7.0f;
  const size_t count = test.inputs.size();
  const bool exact = dtype == DType::kF32;
  const double unit = unit_roundoff(dtype);
  const std::string what = fmt::format("{} on {} in {}", test.what, device, dtype_name(dtype));
  std::vector<Tensor> inputs_here;
  std::vector<DType> gradient_dtypes;
  for (size_t i = 0; i < count; ++i) {
    const Tensor& x = test.inputs[i];
    inputs_here.push_back((x.dims() > 1 ? x.to(dtype) : x).to(device));
    const bool is_weight =
        std::find(test.weights.begin(), test.weights.end(), i) != test.weights.end();
    gradient_dtypes.push_back(is_weight ? DType::kF32 : inputs_here[i].dtype());
  }
  std::vector<Doubles> first(count);
  Doubles c;
  // Input `frozen` is not watched; count: all are.
  for (size_t frozen = count; frozen <= count; --frozen) {
    if (frozen < count && count == 1) break;
    std::vector<Tensor> inputs = inputs_here, gradients;
    Tape tape;
    for (size_t i = 0; i < count; ++i) {
      const std::vector<float> fill(static_cast<size_t>(inputs[i].numel()),
                                    i == frozen ? kUntouched : 0.0f);
      gradients.push_back(
          Tensor::from_vector(fill, inputs[i].shape()).to(gradient_dtypes[i]).to(device));
      if (i == frozen) continue;
      tape.watch(inputs[i], gradients[i]);
    }
    const auto pass = [&] {
      std::vector<Tensor> own = inputs;
      const Tensor y = test.op(own);
      const Tensor seed = random_values(y.shape(), 77).to(y.dtype());
      c = doubles(seed);
      tape.backward(y, seed.to(device));
    };
    pass();
    for (size_t i = 0; i < count; ++i) {
      const Doubles got = doubles(gradients[i]);
      if (frozen == count) {
        first[i] = got;
      } else if (i == frozen) {
        for (const double x : got) ASSERT_EQ(x, kUntouched) << what << ", frozen " << i;
      } else {
        ASSERT_EQ(got, first[i]) << what << ", input " << i << " beside the frozen " << frozen;
      }
    }
    if (frozen < count) continue;
    pass();
    for (size_t i = 0; i < count; ++i) {
      Doubles twice = first[i];
      double largest = 1e-30;
      for (double& x : twice) largest = std::max(largest, std::abs(x *= 2));
      // The first gradient was rounded before the second was added.
      expect_close(gradients[i], twice, exact ? 4e-6 : 2 * unit, what + ", second pass", largest);
    }
  }
  std::vector<Doubles> point;
  for (const Tensor& x : inputs_here) point.push_back(doubles(x));
  const auto loss = [&] {
    const Doubles y = test.oracle(point);
    EXPECT_EQ(y.size(), c.size()) << what;
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += c[i] * y[i];
    return sum;
  };
  const double tolerance = exact ? test.tolerance : 2 * test.roundings * unit;
  for (size_t i = 0; i < count; ++i) {
    Doubles want;
    double largest = 0;
    const size_t step = 1 + point[i].size() / (kComparedGradients + 1);
    for (size_t j = 0; j < point[i].size(); j += step) {
      constexpr double kStep = 1e-5;
      double& x = point[i][j];
      const double at = x;
      x = at + kStep;
      const double above = loss();
      x = at - kStep;
      want.push_back((above - loss()) / (2 * kStep));
      x = at;
      largest = std::max(largest, std::abs(want.back()));
    }
    for (size_t j = 0; j < want.size(); ++j) {
      ASSERT_NEAR(first[i][j * step], want[j], tolerance * largest + 1e-8)
          << what << ", gradient of input " << i << " [" << j * step << "]";
    }
  }
}

// d (c · y) / d input for fixed random c, against (f(x + h) − f(x − h)) / 2h. Also: with each input
// frozen in turn the others' gradients keep their bits and the frozen one gets none; a second pass
// adds the same again.
inline void check_gradients(const GradientCase& test) {
  for (const Device device : test_devices()) {
    if (test.cpu_only && device != kCpuDevice) continue;
    for (const DType dtype : activation_dtypes(device)) {
      const bool wanted =
          device == kCpuDevice || test.dtypes.empty() ||
          std::find(test.dtypes.begin(), test.dtypes.end(), dtype) != test.dtypes.end();
      if (!wanted) continue;
      check_gradients(test, device, dtype);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace reft
