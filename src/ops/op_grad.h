// Gradient checks of the ops: what the tape computes in float32 against central differences of an
// oracle in double.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ops/op_cases.h"
#include "tensor/tape.h"

namespace reft {

using Doubles = std::vector<double>;

struct GradientCase {
  std::string what;
  std::vector<Tensor> inputs;  // float32, contiguous; each is differentiated
  // The op on `inputs` (which it must use as they are), and the same in double.
  std::function<Tensor(std::vector<Tensor>& inputs)> op;
  std::function<Doubles(const std::vector<Doubles>& inputs)> oracle;
  double tolerance = 1e-4;  // of the largest gradient of an input
};

// d (c · y) / d input for fixed random c, against (f(x + h) − f(x − h)) / 2h. Also: with each input
// frozen in turn the others' gradients keep their bits and the frozen one gets none; a second pass
// adds the same again.
inline void check_gradients(const GradientCase& test) {
  constexpr float kUntouched = 7.0f;
  const size_t count = test.inputs.size();
  std::vector<std::vector<float>> first(count);
  Doubles c;
  // Input `frozen` is not watched; count: all are.
  for (size_t frozen = count; frozen <= count; --frozen) {
    if (frozen < count && count == 1) break;
    std::vector<Tensor> inputs = test.inputs, gradients;
    Tape tape;
    for (size_t i = 0; i < count; ++i) {
      gradients.push_back(Tensor::zeros(inputs[i].shape(), DType::kF32));
      if (i == frozen) {
        for (int64_t j = 0; j < inputs[i].numel(); ++j) gradients[i].data<float>()[j] = kUntouched;
      } else {
        tape.watch(inputs[i], gradients[i]);
      }
    }
    const auto pass = [&] {
      std::vector<Tensor> own = inputs;
      const Tensor y = test.op(own);
      const Tensor seed = random_values(y.shape(), 77);
      c = doubles(seed);
      tape.backward(y, seed);
    };
    pass();
    for (size_t i = 0; i < count; ++i) {
      const std::vector<float> got = gradients[i].to_vector<float>();
      if (frozen == count) {
        first[i] = got;
      } else if (i == frozen) {
        for (const float x : got) ASSERT_EQ(x, kUntouched) << test.what << ", frozen " << i;
      } else {
        ASSERT_EQ(got, first[i]) << test.what << ", input " << i << " beside the frozen " << frozen;
      }
    }
    if (frozen < count) continue;
    pass();
    for (size_t i = 0; i < count; ++i) {
      Doubles twice(first[i].begin(), first[i].end());
      double largest = 1e-30;
      for (double& x : twice) largest = std::max(largest, std::abs(x *= 2));
      expect_close(gradients[i], twice, 4e-6, test.what + ", second pass", largest);
    }
  }
  std::vector<Doubles> point;
  for (const Tensor& x : test.inputs) point.push_back(doubles(x));
  const auto loss = [&] {
    const Doubles y = test.oracle(point);
    EXPECT_EQ(y.size(), c.size()) << test.what;
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += c[i] * y[i];
    return sum;
  };
  for (size_t i = 0; i < count; ++i) {
    Doubles want;
    double largest = 0;
    for (double& x : point[i]) {
      constexpr double kStep = 1e-5;
      const double at = x;
      x = at + kStep;
      const double above = loss();
      x = at - kStep;
      want.push_back((above - loss()) / (2 * kStep));
      x = at;
      largest = std::max(largest, std::abs(want.back()));
    }
    for (size_t j = 0; j < want.size(); ++j) {
      ASSERT_NEAR(first[i][j], want[j], test.tolerance * largest + 1e-8)
          << test.what << ", gradient of input " << i << " [" << j << "]";
    }
  }
}

}  // namespace reft
