#include "tensor/tape.h"

#include <gtest/gtest.h>

namespace reft {
namespace {

// y = a · b element by element, as an op would be written.
Tensor multiply(const Tensor& a, const Tensor& b) {
  Tensor y = Tensor::empty(a.shape(), DType::kF32);
  for (int64_t i = 0; i < y.numel(); ++i)
    y.data<float>()[i] = a.data<float>()[i] * b.data<float>()[i];
  if (Tape* tape = Tape::current()) {
    tape->record("multiply", {y},
                 [a, b](const std::vector<Tensor>& dy, const Tape::AddGradient& add) {
                   Tensor da = Tensor::empty(a.shape(), DType::kF32),
                          db = Tensor::empty(a.shape(), DType::kF32);
                   for (int64_t i = 0; i < a.numel(); ++i) {
                     da.data<float>()[i] = dy[0].data<float>()[i] * b.data<float>()[i];
                     db.data<float>()[i] = dy[0].data<float>()[i] * a.data<float>()[i];
                   }
                   add(a, da);
                   add(b, db);
                 });
  }
  return y;
}

TEST(Tape, AccumulatesOverEveryUse) {
  const Tensor x = Tensor::from_vector<float>({2, 3}), unused = Tensor::from_vector<float>({1, 1});
  Tape tape;
  const Tensor cube = multiply(multiply(x, x), x);
  multiply(unused, x);  // does not lead to the output
  tape.backward(cube, Tensor::from_vector<float>({1, 10}));
  EXPECT_EQ(tape.gradient(x).to_vector<float>(), (std::vector<float>{12, 270}));  // 3x² · seed
  EXPECT_FALSE(tape.gradient(unused).defined());
}

TEST(Tape, NestsAndNothingIsRecordedWithoutOne) {
  EXPECT_EQ(Tape::current(), nullptr);
  const Tensor x = Tensor::from_vector<float>({5});
  multiply(x, x);
  Tape outer;
  {
    Tape inner;
    EXPECT_EQ(Tape::current(), &inner);
    const Tensor y = multiply(x, x);
    inner.backward(y, Tensor::from_vector<float>({1}));
    EXPECT_EQ(inner.gradient(x).to_vector<float>()[0], 10);
  }
  EXPECT_EQ(Tape::current(), &outer);
  EXPECT_FALSE(outer.gradient(x).defined());
}

TEST(Tape, ErrorsNameTheOp) {
  const Tensor x = Tensor::from_vector<float>({1, 2});
  Tape tape;
  tape.record("broken", {x}, [x](const std::vector<Tensor>&, const Tape::AddGradient& add) {
    add(x, Tensor::from_vector<float>({1}));
  });
  try {
    tape.backward(x, Tensor::from_vector<float>({1, 1}));
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("backward of broken"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace reft
