// A tree of modules that own parameters. A parameter is named once, where it is declared, by its
// Hugging Face key; load, save, shard, LoRA, optimizer and print all walk the same list.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ops/weight.h"
#include "tensor/tape.h"

namespace reft {

// One tensor of the checkpoint and where it goes.
struct Parameter {
  std::string name;  // relative to its module: "weight", "q_proj.weight"
  Shape shape;
  bool optional = false;  // absent in some checkpoints (a bias, a tied head)
  std::function<void(const Tensor&)>
      set;  // receives the file's tensor (CPU view, file's dtype, exact shape)
  // Of a matrix that may be fp8: receives its scales (see Weight) beside `set`. Null: floats and
  // block formats only.
  std::function<void(const Tensor&)> set_scales;
  // A tensor for `--load_format dummy`: random normal with this standard deviation around this
  // mean, in the dtype that is computed in or in this one.
  float dummy_mean = 0.0f;
  float dummy_std = 0.02f;
  std::optional<DType> dummy_dtype = {};

  // Set before loading, where there is set_scales: floats become fp8 (see quantize_weight).
  bool quantize = false;
  // Set before loading: the weights stay plain data that an optimizer updates in place.
  bool trainable = false;
  // After loading, of a trainable parameter: its live data, in the dtype that was asked for (norms
  // and biases: float32), and d loss / d value, float32, which begins as zeros. Of others: the data
  // where a module keeps it plain, else undefined. Parameters that share a matrix product (q, k, v)
  // are neighbouring rows of one tensor.
  Tensor value;
  Tensor gradient;
};

class Module {
 public:
  Module() = default;
  // Registers this module as `parent`'s child under `name` (may contain dots; empty: the parent's
  // own prefix).
  Module(Module* parent, std::string name);
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // Calls f(full name, parameter) for all parameters, depth first in order of declaration.
  void visit(const std::function<void(const std::string& name, Parameter& parameter)>& f,
             const std::string& prefix = "");
  // Calls f(module, prefix of its parameters' names) for this module and all below it, parents
  // first.
  void visit_modules(const std::function<void(Module& module, const std::string& prefix)>& f,
                     const std::string& prefix = "");
  // After all parameters are set: fuse, pack, move to the device. Called depth first by the loader,
  // in parallel over modules; the base does nothing. Where a parameter is trainable, keeps plain
  // data in memory of its own and fills in value and gradient.
  virtual void finish_loading(Device device, DType compute);
  void for_each_module(const std::function<void(Module&)>& f);

  // Whether a parameter of this module alone is trainable.
  bool is_trainable() const;
  // The parameters of this module alone.
  std::vector<Parameter>& own_parameters() { return parameters_; }
  // Bytes that this module's own weights take in memory, packed forms included.
  virtual int64_t weight_bytes() const { return 0; }

 protected:
  void add_parameter(Parameter parameter);
  // Moves `data`, one parameter's, to the device: a copy of its own where the parameter is
  // trainable, which then has its value and gradient.
  static void place(Parameter& parameter, Tensor& data, Device device);

 private:
  std::string name_;
  std::vector<Module*> children_;
  std::vector<Parameter> parameters_;
};

// A copy in memory that nothing else uses, such as a mapped file.
Tensor copy_to(const Tensor& t, Device device);

// Makes every trainable parameter a leaf of the tape. `ready` (may be empty) is called during
// backward(), once for each, when its gradient is complete.
void watch_parameters(
    Tape& tape, Module& module,
    const std::function<void(const std::string& name, Parameter& parameter)>& ready = {});

}  // namespace reft
