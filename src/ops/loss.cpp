#include "ops/loss.h"

#include <algorithm>

#include "ops/linear.h"
#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(const Tensor& losses, const Tensor& logits, const Tensor& labels,
                      const Tensor& dlosses, const Tensor& dlogits, float soft_cap)>
    cross_entropy_kernel{"cross_entropy"};

namespace {

// Where the gradient of the logits goes: over them, in the type that it is multiplied in.
Tensor gradient_over(const Tensor& logits, const Weight& weight) {
  const DType dtype = weight.data.defined() ? weight.data.dtype() : DType::kF32;
  if (logits.device() == kCpuDevice || !is_float(dtype) || dtype == DType::kF32) return logits;
  const int64_t wide = row_bytes(DType::kF32, logits.size(1)) / row_bytes(dtype, 1);
  return Tensor(logits.storage(), 0, dtype, {logits.size(0), wide}).columns(0, logits.size(1));
}

// What one walk over the chunks computes: the losses, where defined, and, where dlosses is defined,
// the gradients.
struct Walk {
  Tensor x;
  Weight weight;
  Tensor labels;
  float soft_cap;
  int64_t chunk_rows;

  void run(const Tensor& losses, const Tensor& dlosses, const GradientSlot& dx,
           GradientSlot dweight) const {
    const Device device = x.device();
    for (int64_t begin = 0; begin < x.size(0); begin += chunk_rows) {
      const int64_t end = std::min(x.size(0), begin + chunk_rows);
      const auto part = [&](const Tensor& t) { return t.defined() ? t.rows(begin, end) : t; };
      const Tensor logits = linear(x.rows(begin, end), weight, {}, DType::kF32);
      const Tensor dlogits = dlosses.defined() ? gradient_over(logits, weight) : Tensor();
      cross_entropy_kernel(device, part(losses), logits, labels.rows(begin, end), part(dlosses),
                           dlogits, soft_cap);
      if (dx) {
        const GradientSlot rows{dx.tensor.rows(begin, end), dx.accumulate};
        linear_input_backward_kernel(device, rows, dlogits, weight);
      }
      if (dweight) {
        linear_weight_backward_kernel(device, dweight, dlogits, x.rows(begin, end), weight.dtype);
        dweight.accumulate = true;
      }
    }
    if (x.size(0) == 0 && dweight && !dweight.accumulate) dweight.tensor.fill_zero();
  }
};

}  // namespace

int64_t loss_chunk_bytes(Device device) {
  return device == kCpuDevice ? int64_t{256} << 20 : int64_t{2} << 30;
}

Tensor linear_cross_entropy(const Tensor& x, const Weight& weight, const Tensor& labels,
                            const CrossEntropyOptions& options) {
  check(x.dims() == 2 && x.size(1) == weight.in_features,
        "linear_cross_entropy: x is {}, the weight is [{}, {}]", x, weight.out_features,
        weight.in_features);
  check(labels.dims() == 1 && labels.dtype() == DType::kI32 && labels.size(0) == x.size(0) &&
            labels.device() == x.device(),
        "linear_cross_entropy: labels must be int32 [{}] on {}, got {}", x.size(0), x.device(),
        labels);
  check(options.soft_cap >= 0 && options.chunk_rows >= 0,
        "linear_cross_entropy: soft cap {} and chunk_rows {} must not be negative",
        options.soft_cap, options.chunk_rows);
  // Chunks of one size, in whole tiles of a product.
  constexpr int64_t kTile = 256;
  const int64_t fitting = std::max<int64_t>(
      1, loss_chunk_bytes(x.device()) / 4 / std::max<int64_t>(weight.out_features, 1));
  const int64_t chunks = std::max<int64_t>(1, (x.size(0) + fitting - 1) / fitting);
  const int64_t even = (x.size(0) + chunks - 1) / chunks;
  const int64_t chunk_rows =
      std::max<int64_t>(1, std::min(fitting, (even + kTile - 1) / kTile * kTile));
  const Walk walk{x, weight, labels, options.soft_cap,
                  options.chunk_rows > 0 ? options.chunk_rows : chunk_rows};
  Tensor losses = Tensor::empty({x.size(0)}, DType::kF32, x.device());
  Tape* tape = Tape::recording({&x, &weight.data});
  const bool later = tape != nullptr && options.in_backward;
  if (!later) {
    const Tape::Pause pause;
    walk.run(losses, {}, {}, {});
  }
  if (tape != nullptr) {
    tape->record("linear_cross_entropy", {x, weight.data}, {losses},
                 [walk, to = later ? losses : Tensor()](Tape::Gradients& g) {
                   const GradientSlot dx = g.input(0);
                   walk.run(to, g.output(), dx, g.input(1));
                 });
  }
  return losses;
}

}  // namespace reft
