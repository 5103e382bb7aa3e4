#include "tensor/tape.h"

#include <utility>

namespace reft {
namespace {

thread_local Tape* tape_of_thread = nullptr;

}  // namespace

Tape::Tape() : outer_(std::exchange(tape_of_thread, this)) {}
Tape::~Tape() { tape_of_thread = outer_; }
Tape* Tape::current() { return tape_of_thread; }

void Tape::record(const char* op, std::vector<Tensor> outputs, Backward backward) {
  records_.push_back({op, std::move(outputs), std::move(backward)});
}

void Tape::add(const Tensor& x, const Tensor& gradient) {
  check(gradient.shape() == x.shape() && gradient.dtype() == DType::kF32 &&
            gradient.is_contiguous() && gradient.device() == kCpuDevice,
        "a gradient of {} for {}", gradient, x);
  Tensor& sum = gradients_[key(x)];
  if (!sum.defined()) {
    sum = Tensor::empty(gradient.shape(), DType::kF32);
    sum.copy_from(gradient);
    kept_.push_back(x);
    return;
  }
  float* to = sum.data<float>();
  const float* from = gradient.data<float>();
  for (int64_t i = 0; i < sum.numel(); ++i) to[i] += from[i];
}

void Tape::backward(const Tensor& output, const Tensor& seed) {
  add(output, seed);
  const AddGradient into = [this](const Tensor& input, const Tensor& gradient) {
    add(input, gradient);
  };
  while (!records_.empty()) {
    const Record record = std::move(records_.back());
    records_.pop_back();
    std::vector<Tensor> gradients;
    bool used = false;
    for (const Tensor& out : record.outputs) {
      gradients.push_back(gradient(out));
      used = used || gradients.back().defined();
    }
    if (!used) continue;
    try {
      record.backward(gradients, into);
    } catch (const Error& e) {
      fail("backward of {}: {}", record.op, e.what());
    }
  }
}

Tensor Tape::gradient(const Tensor& x) const {
  const auto it = gradients_.find(key(x));
  return it == gradients_.end() ? Tensor() : it->second;
}

}  // namespace reft
