#include "train/trainable.h"

#include <algorithm>
#include <charconv>
#include <set>

namespace reft {
namespace {

constexpr std::string_view kLayers = "model.layers.";

// The number of the block that a parameter belongs to; −1 outside of the blocks.
int64_t layer_of(std::string_view name) {
  int64_t layer = -1;
  if (!name.starts_with(kLayers)) return layer;
  name.remove_prefix(kLayers.size());
  std::from_chars(name.data(), name.data() + name.size(), layer);
  return layer;
}

bool has_part(const std::string& name, const std::string& part) {
  return ("." + name + ".").find("." + part + ".") != std::string::npos;
}
bool has_any_part(const std::string& name, const std::vector<std::string>& parts) {
  return std::ranges::any_of(parts, [&](const std::string& part) { return has_part(name, part); });
}

// Every one of `parts` occurs in a parameter inside (or outside) of the blocks.
void check_parts(CausalLmModel& model, const char* flag, const std::vector<std::string>& parts,
                 bool inside) {
  std::set<std::string> known;  // the modules on the top level there
  std::vector<std::string> names;
  model.visit([&](const std::string& name, Parameter&) {
    if ((layer_of(name) >= 0) != inside) return;
    names.push_back(name);
    std::string rest = name.starts_with("model.") ? name.substr(6) : name;
    if (inside) rest = rest.substr(rest.find('.', 7) + 1);  // behind "layers.<i>."
    known.insert(rest.substr(0, rest.find('.')));
  });
  for (const std::string& part : parts) {
    const bool found =
        std::ranges::any_of(names, [&](const std::string& name) { return has_part(name, part); });
    check(found, "--{}: there is no '{}'; there are {}", flag, part, fmt::join(known, ", "));
  }
}

}  // namespace

FineTuning parse_fine_tuning(std::string_view name) {
  for (const FineTuning type :
       {FineTuning::kFull, FineTuning::kFreeze, FineTuning::kLora, FineTuning::kQlora}) {
    if (name == fine_tuning_name(type)) return type;
  }
  fail("--fine_tuning_type must be full, freeze, lora or qlora, not '{}'", name);
}

const char* fine_tuning_name(FineTuning type) {
  switch (type) {
    case FineTuning::kFull:
      return "full";
    case FineTuning::kFreeze:
      return "freeze";
    case FineTuning::kLora:
      return "lora";
    case FineTuning::kQlora:
      return "qlora";
  }
  return "?";
}

std::function<bool(const std::string& name)> choose_trainable(CausalLmModel& model, FineTuning type,
                                                              const FreezeOptions& freeze) {
  if (type == FineTuning::kFull) return [](const std::string&) { return true; };
  const int64_t layers = model.info().num_layers;
  check(freeze.layers != 0 || !freeze.extra_modules.empty(),
        "--freeze_trainable_layers 0 without --freeze_extra_modules trains nothing");
  check(std::abs(freeze.layers) <= layers, "--freeze_trainable_layers {}: the model has {} layers",
        freeze.layers, layers);
  check_parts(model, "freeze_trainable_modules", freeze.modules, true);
  check_parts(model, "freeze_extra_modules", freeze.extra_modules, false);
  const int64_t begin = freeze.layers > 0 ? layers - freeze.layers : 0;
  const int64_t end = freeze.layers > 0 ? layers : -freeze.layers;
  return [=](const std::string& name) {
    const int64_t layer = layer_of(name);
    if (layer < 0) return has_any_part(name, freeze.extra_modules);
    if (layer < begin || layer >= end) return false;
    return freeze.modules.empty() || has_any_part(name, freeze.modules);
  };
}

}  // namespace reft
