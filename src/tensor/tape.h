// Reverse-mode differentiation: the hooks. An op that can be differentiated asks for the thread's
// tape and, when there is one, records how to turn gradients of its outputs into gradients of its
// inputs; backward() walks the records in reverse. Gradients are float tensors of the shape of what
// they belong to, accumulated in place. One thread per tape.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "tensor/tensor.h"

namespace reft {

class Tape {
 public:
  // Becomes the thread's tape until it is destroyed; tapes nest.
  Tape();
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // The tape that ops of this thread record on; null when nothing is differentiated.
  static Tape* current();

  // What an op's backward gets: the gradient of each output (undefined where nobody used it), and a
  // way to add to the gradient of an input.
  using AddGradient = std::function<void(const Tensor& input, const Tensor& gradient)>;
  using Backward =
      std::function<void(const std::vector<Tensor>& output_gradients, const AddGradient& add)>;
  void record(const char* op, std::vector<Tensor> outputs, Backward backward);

  // Starts from d loss / d output = `seed` (same shape) and fills the gradients. The records are
  // spent afterwards, each one released right after its use. Throws Error naming the op whose
  // backward fails.
  void backward(const Tensor& output, const Tensor& seed);

  // The gradient of a tensor that took part; undefined when it got none.
  Tensor gradient(const Tensor& x) const;

 private:
  struct Record {
    const char* op;
    std::vector<Tensor> outputs;
    Backward backward;
  };

  // Tensors are told apart by where their data lies.
  static const std::byte* key(const Tensor& x) { return x.raw(); }
  void add(const Tensor& x, const Tensor& gradient);

  Tape* outer_;
  std::vector<Record> records_;
  std::map<const std::byte*, Tensor> gradients_;
  std::vector<Tensor>
      kept_;  // inputs with gradients, so that no other tensor takes their place in memory
};

}  // namespace reft
