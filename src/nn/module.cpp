#include "nn/module.h"

#include <algorithm>

namespace reft {

namespace {

std::string join(const std::string& prefix, const std::string& name) {
  if (prefix.empty()) return name;
  if (name.empty()) return prefix;
  return prefix + "." + name;
}

}  // namespace

Module::Module(Module* parent, std::string name) : name_(std::move(name)) {
  if (parent != nullptr) parent->children_.push_back(this);
}

void Module::visit_modules(const std::function<void(Module&, const std::string&)>& f,
                           const std::string& prefix) {
  const std::string own = join(prefix, name_);
  f(*this, own);
  for (Module* child : children_) child->visit_modules(f, own);
}

void Module::visit(const std::function<void(const std::string&, Parameter&)>& f,
                   const std::string& prefix) {
  visit_modules(
      [&](Module& module, const std::string& own) {
        for (Parameter& parameter : module.parameters_) f(join(own, parameter.name), parameter);
      },
      prefix);
}

void Module::for_each_module(const std::function<void(Module&)>& f) {
  for (Module* child : children_) child->for_each_module(f);
  f(*this);
}

void Module::finish_loading(Device, DType) {}

void Module::add_parameter(Parameter parameter) { parameters_.push_back(std::move(parameter)); }

bool Module::is_trainable() const {
  return std::ranges::any_of(parameters_, [](const Parameter& p) { return p.trainable; });
}

void Module::place(Parameter& parameter, Tensor& data, Device device) {
  if (!parameter.trainable) {
    data = data.to(device);
    return;
  }
  data = copy_to(data, device);
  parameter.value = data;
  parameter.gradient = Tensor::zeros(data.shape(), DType::kF32, device);
}

Tensor copy_to(const Tensor& t, Device device) {
  Tensor copy = Tensor::empty(t.shape(), t.dtype(), device);
  copy.copy_from(t.contiguous());
  return copy;
}

void watch_parameters(Tape& tape, Module& module,
                      const std::function<void(const std::string&, Parameter&)>& ready) {
  module.visit([&](const std::string& name, Parameter& parameter) {
    if (!parameter.trainable) return;
    check(parameter.value.defined(), "parameter '{}' is trainable, but was not loaded as such",
          name);
    std::function<void()> call;
    if (ready) call = [ready, name, &parameter] { ready(name, parameter); };
    tape.watch(parameter.value, parameter.gradient, std::move(call));
  });
}

}  // namespace reft
