// Reverse-mode differentiation. While a tape is the thread's, an op whose inputs need a gradient
// records how to turn gradients of its outputs into gradients of its inputs; backward() walks the
// records in reverse.
//
// What a gradient belongs to: the memory of a storage, element by element. A view (rows, columns,
// reshape) therefore needs no record: its gradient is the same view of the storage's gradient, and
// two uses of one element add up however they were reached. Storages are told apart by id, never by
// address. Ops must not overwrite memory while a tape is the thread's (see Tape::current): those
// that work in place elsewhere write a new tensor then.
//
// Gradients of activations have the activation's dtype, those of watched tensors the dtype of the
// buffer that the caller gave. They are accumulated in place, in the reverse order of the records:
// two passes over the same ops give the same bits. A record, and what it kept alive, is released
// right after its use; the gradient of an activation right after the op that made it was undone.
//
// One thread per tape.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <unordered_map>
#include <vector>

#include "tensor/gradient.h"
#include "tensor/tensor.h"

namespace reft {

class Tape {
 public:
  // What an op's backward works with: inputs and outputs by their index in record().
  class Gradients {
   public:
    // d loss / d output, undefined where nothing used it. Not to be written.
    const Tensor& output(size_t i = 0) const { return outputs_[i]; }
    bool wants(size_t input) const;
    // Fill a slot before asking for the next one.
    GradientSlot input(size_t i) const;

   private:
    friend class Tape;
    // A view whose storage is known by id only.
    struct Value {
      uint64_t id = 0;  // 0: no gradient is wanted
      Tensor view;      // without storage
    };
    Gradients(Tape& tape, const std::vector<Value>& inputs, std::vector<Tensor> outputs)
        : tape_(tape), inputs_(inputs), outputs_(std::move(outputs)) {}
    Tape& tape_;
    const std::vector<Value>& inputs_;
    std::vector<Tensor> outputs_;
  };
  using Backward = std::function<void(Gradients& gradients)>;
  using Block = std::function<std::vector<Tensor>(const std::vector<Tensor>& inputs)>;

  // Becomes the thread's tape until it is destroyed; tapes nest.
  Tape();
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // The tape that ops of this thread record on; null when nothing is differentiated.
  static Tape* current();
  // current(), where one of `inputs` needs a gradient; else null. Undefined tensors need none.
  static Tape* recording(std::initializer_list<const Tensor*> inputs);

  // Turns recording on this thread off while it lives.
  class Pause {
   public:
    Pause();
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    Tape* paused_;
  };

  // Makes `value` (a parameter, or a view of one) a leaf whose gradient is added to `gradient`:
  // same shape and strides, any float dtype. Views of one storage must lie alike in the storage of
  // their gradients. `ready` (may be empty) is called once in backward(), when all of this pass has
  // been added.
  void watch(const Tensor& value, const Tensor& gradient, std::function<void()> ready = {});

  bool needs_gradient(const Tensor& x) const;

  // Called by ops. Inputs that need no gradient may be undefined. `backward` keeps alive what it
  // captures; inputs and outputs themselves are not kept.
  void record(const char* op, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
              Backward backward);

  // block(inputs), of which only the inputs are kept: backward() runs the block again to record it.
  // What else the block uses must still be there, unchanged, then. Nests. Results and gradients are
  // those of block(inputs), bit for bit.
  std::vector<Tensor> checkpoint(const std::vector<Tensor>& inputs, Block block);

  // Starts from d loss / d output = `seed` (same shape and dtype), adds to the gradients of all
  // leaves and spends the records. Throws Error when `output` depends on no leaf, and, naming the
  // op, when a backward fails.
  void backward(const Tensor& output, const Tensor& seed);

 private:
  using Value = Gradients::Value;
  struct Record {
    const char* op;
    std::vector<Value> inputs;
    std::vector<Value> outputs;
    Backward backward;
    Block block;                 // of a checkpoint
    std::vector<Tensor> kept;    // its inputs
    std::vector<uint64_t> uses;  // leaves that this record, or the block, uses
  };
  // Everything about a storage that needs a gradient.
  struct Entry {
    DType dtype;
    Device device;
    int64_t elements = 0;  // of the storage
    Tensor gradient;       // [elements], or a leaf's own; undefined while nothing was added
    int writers = 0;       // records to come whose outputs lie here
    bool leaf = false;
    int64_t shift = 0;  // a leaf's elements lie this much further in its gradient
    int uses = 0;       // of a leaf by records to come
    std::vector<std::function<void()>> ready;
  };

  void append(Record record, const std::vector<Tensor>& outputs);
  GradientSlot slot(const Value& value);
  Tensor gradient_of(const Value& value) const;
  void run(Record& record);
  void run_block(Record& record);
  void run_down_to(size_t num_records);
  void finish_use(uint64_t leaf);

  Tape* outer_;
  std::vector<Record> records_;
  std::unordered_map<uint64_t, Entry> entries_;
  // In a checkpoint's first run nothing is recorded: what it would use and make is noted here.
  struct Counting {
    std::vector<uint64_t> uses;
    std::vector<uint64_t> made;
  };
  Counting* counting_ = nullptr;
  bool replaying_ = false;  // uses were counted when the block ran first
};

}  // namespace reft
