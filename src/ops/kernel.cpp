#include "ops/kernel.h"

#include <algorithm>
#include <cstring>

namespace reft {
namespace {

std::vector<const KernelSlot*>& slots() {
  static auto* list = new std::vector<const KernelSlot*>();
  return *list;
}

}  // namespace

void KernelSlot::list() const {
  if (std::ranges::find(slots(), this) == slots().end()) slots().push_back(this);
}

std::vector<const KernelSlot*> all_kernel_slots() {
  std::vector<const KernelSlot*> sorted = slots();
  std::ranges::sort(
      sorted, [](const auto* a, const auto* b) { return std::strcmp(a->name(), b->name()) < 0; });
  return sorted;
}

}  // namespace reft
