#include "nn/module.h"

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

}  // namespace reft
