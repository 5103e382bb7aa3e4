#include "tensor/tape.h"

#include <gtest/gtest.h>

#include "tensor/allocator.h"

namespace reft {
namespace {

using Floats = std::vector<float>;

// y = a · b element by element, as an op would be written.
Tensor multiply(const Tensor& a, const Tensor& b) {
  Tensor y = Tensor::empty(a.shape(), DType::kF32);
  for (int64_t i = 0; i < y.numel(); ++i)
    y.data<float>()[i] = a.data<float>()[i] * b.data<float>()[i];
  if (Tape* tape = Tape::recording({&a, &b})) {
    tape->record("multiply", {a, b}, {y}, [a, b](Tape::Gradients& g) {
      const float* dy = g.output().data<float>();
      for (size_t input = 0; input < 2; ++input) {
        const GradientSlot slot = g.input(input);
        if (!slot) continue;
        float* dx = slot.tensor.data<float>();
        const float* other = (input == 0 ? b : a).data<float>();
        for (int64_t i = 0; i < a.numel(); ++i)
          dx[i] = dy[i] * other[i] + (slot.accumulate ? dx[i] : 0.0f);
      }
    });
  }
  return y;
}

Tensor ones(int64_t n) { return Tensor::from_vector(Floats(static_cast<size_t>(n), 1.0f)); }
Tensor zeros(int64_t n) { return Tensor::zeros({n}, DType::kF32); }

TEST(Tape, AccumulatesOverEveryUse) {
  const Tensor x = Tensor::from_vector<float>({2, 3}), other = ones(2);
  const Tensor dx = Tensor::from_vector<float>({100, 100}), unused = zeros(2);
  Tape tape;
  tape.watch(x, dx);
  tape.watch(other, unused);
  const Tensor cube = multiply(multiply(x, x), x);
  multiply(other, x);  // does not lead to the output
  tape.backward(cube, Tensor::from_vector<float>({1, 10}));
  EXPECT_EQ(dx.to_vector<float>(), (Floats{112, 370}));  // 3x² · seed, added to what was there
  EXPECT_EQ(unused.to_vector<float>(), (Floats{0, 0}));
}

TEST(Tape, ViewsShareTheGradientOfTheirStorage) {
  const Tensor x = Tensor::from_vector<float>({1, 2, 3, 4, 5, 6}, {3, 2});
  const Tensor dx = Tensor::zeros({3, 2}, DType::kF32);
  Tape tape;
  // Only the last two rows are watched, and by two names; a view that begins where x begins is
  // another matter.
  tape.watch(x.rows(1, 2), dx.rows(1, 2));
  tape.watch(x.rows(2, 3), dx.rows(2, 3));
  const Tensor squares = multiply(x.reshape({6}), x.reshape({6}));
  const Tensor first = squares.rows(0, 2), last = squares.rows(4, 6);
  const Tensor y = multiply(first, last);
  tape.backward(y, ones(2));
  // y = (x0² x4², x1² x5²): the middle of `squares` was not used and gets zeros.
  EXPECT_EQ(dx.to_vector<float>(), (Floats{2 * 25, 2 * 2 * 36, 0, 0, 2 * 5, 4 * 2 * 6}));
}

TEST(Tape, GradientsMayLieInAFlatBuffer) {
  const Tensor x = Tensor::from_vector<float>({3, 4}), flat = zeros(5);
  Tape tape;
  tape.watch(x, flat.rows(2, 4));
  tape.backward(multiply(x, x), ones(2));
  EXPECT_EQ(flat.to_vector<float>(), (Floats{0, 0, 6, 8, 0}));
}

TEST(Tape, NestsAndNothingIsRecordedWithoutOne) {
  EXPECT_EQ(Tape::current(), nullptr);
  const Tensor x = ones(1), dx = zeros(1);
  multiply(x, x);
  Tape outer;
  {
    Tape inner;
    EXPECT_EQ(Tape::current(), &inner);
    EXPECT_EQ(Tape::recording({&x}), nullptr);
    inner.watch(x, dx);
    EXPECT_EQ(Tape::recording({&x}), &inner);
    {
      const Tape::Pause pause;
      EXPECT_EQ(Tape::recording({&x}), nullptr);
    }
    inner.backward(multiply(x, x), ones(1));
    EXPECT_EQ(dx.to_vector<float>()[0], 2);
  }
  EXPECT_EQ(Tape::current(), &outer);
  EXPECT_FALSE(outer.needs_gradient(x));
}

TEST(Tape, FrozenInputsGetNoGradientAndEndTheWalk) {
  const Tensor x = Tensor::from_vector<float>({2}), w = Tensor::from_vector<float>({5});
  const Tensor dw = zeros(1);
  Tape tape;
  tape.watch(w, dw);
  const Tensor below = multiply(x, x);  // depends on nothing that is watched
  EXPECT_FALSE(tape.needs_gradient(below));
  tape.backward(multiply(below, w), ones(1));
  EXPECT_EQ(dw.to_vector<float>()[0], 4);
  EXPECT_THROW(tape.backward(below, ones(1)), Error);
}

TEST(Tape, ReadyIsCalledOnceWhenAGradientIsComplete) {
  const Tensor early = Tensor::from_vector<float>({2}), late = Tensor::from_vector<float>({3});
  const Tensor unused = ones(1);
  const Tensor d_early = zeros(1), d_late = zeros(1), d_unused = zeros(1);
  std::vector<std::string> order;
  Tape tape;
  tape.watch(early, d_early, [&] {
    order.push_back("early");
    EXPECT_EQ(d_early.to_vector<float>()[0], 2 * 2 * 3 * 3);
  });
  tape.watch(late, d_late, [&] {
    order.push_back("late");
    EXPECT_EQ(d_late.to_vector<float>()[0], 4 * 2 * 3);
  });
  tape.watch(unused, d_unused, [&] { order.push_back("unused"); });
  const Tensor a = multiply(early, early);
  multiply(early, a);  // leads nowhere, and must not be waited for
  tape.backward(multiply(multiply(a, late), late), ones(1));
  EXPECT_EQ(order, (std::vector<std::string>{"unused", "late", "early"}));
}

TEST(Tape, BuffersGoBackAtTheirLastUse) {
  constexpr int64_t kSize = 1 << 16, kBytes = 4 * kSize;
  const Allocator& allocator = allocator_for(kCpuDevice);
  const Tensor x = ones(kSize), dx = zeros(kSize), seed = ones(kSize);
  Tape tape;
  tape.watch(x, dx);
  const int64_t before = allocator.use().allocated;
  int64_t at_the_end = 0;
  Tensor y = zeros(kSize);
  tape.record("bottom", {x}, {y},
              [&](Tape::Gradients&) { at_the_end = allocator.use().allocated; });
  for (int i = 0; i < 8; ++i) y = multiply(y, x);
  EXPECT_EQ(allocator.use().allocated, before + 9 * kBytes);  // 8 operands and the result
  tape.backward(std::exchange(y, {}), seed);
  EXPECT_EQ(at_the_end, before + 2 * kBytes);  // the result, which we held, and one gradient
  EXPECT_EQ(allocator.use().allocated, before);
}

TEST(Tape, CheckpointGivesTheSameBits) {
  const auto run = [](int depth, std::vector<std::string>* order) {
    const Tensor x = Tensor::from_vector<float>({1.1f, -0.7f}), dx = zeros(2);
    const Tensor w = Tensor::from_vector<float>({0.3f, 1.9f}), dw = zeros(2);
    Tape tape;
    tape.watch(x, dx, [&] {
      if (order) order->push_back("x");
    });
    tape.watch(w, dw, [&] {
      if (order) order->push_back("w");
    });
    // Two inputs and outputs, one of which is handed through.
    const Tape::Block inner = [w](const std::vector<Tensor>& in) -> std::vector<Tensor> {
      return {multiply(multiply(in[0], w), in[1]), in[1]};
    };
    const Tape::Block outer = [&, w](const std::vector<Tensor>& in) -> std::vector<Tensor> {
      std::vector<Tensor> y =
          depth > 1 ? Tape::current()->checkpoint({in[0], in[1]}, inner) : inner(in);
      y[0] = multiply(y[0], multiply(y[1], w));
      return y;
    };
    std::vector<Tensor> y = {multiply(x, w), x};
    for (int i = 0; i < 3; ++i) y = depth > 0 ? tape.checkpoint(y, outer) : outer(y);
    tape.backward(multiply(y[0], y[1]), Tensor::from_vector<float>({1.0f, 0.5f}));
    Floats all = dx.to_vector<float>();
    const Floats more = dw.to_vector<float>();
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  std::vector<std::string> plain, once, twice;
  const Floats want = run(0, &plain);
  EXPECT_EQ(run(1, &once), want);
  EXPECT_EQ(run(2, &twice), want);
  EXPECT_EQ(plain.size(), 2u);
  EXPECT_EQ(once, plain);
  EXPECT_EQ(twice, plain);
}

TEST(Tape, CheckpointKeepsItsInputsOnly) {
  constexpr int64_t kSize = 1 << 16, kBytes = 4 * kSize;
  const Tensor x = ones(kSize), dx = zeros(kSize);
  Tape tape;
  tape.watch(x, dx);
  const int64_t before = allocator_for(kCpuDevice).use().allocated;
  const auto y = tape.checkpoint({x}, [](const std::vector<Tensor>& in) -> std::vector<Tensor> {
    Tensor z = in[0];
    for (int i = 0; i < 10; ++i) z = multiply(z, in[0]);
    return {z};
  });
  EXPECT_EQ(allocator_for(kCpuDevice).use().allocated, before + kBytes);  // y alone
  tape.backward(y[0], ones(kSize));
  EXPECT_EQ(dx.data<float>()[kSize - 1], 11);
}

TEST(Tape, ErrorsNameTheOp) {
  const Tensor x = ones(2), dx = zeros(2);
  Tape tape;
  tape.watch(x, dx);
  EXPECT_THROW(tape.watch(x, zeros(3)), Error);
  EXPECT_THROW(tape.watch(x, zeros(2)), Error);  // another buffer than before
  const Tensor y = zeros(2);
  tape.record("broken", {x}, {y}, [](Tape::Gradients&) { fail("no way"); });
  EXPECT_THROW(tape.backward(y, ones(3)), Error);
  try {
    tape.backward(y, ones(2));
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "backward of broken: no way");
  }
}

}  // namespace
}  // namespace reft
