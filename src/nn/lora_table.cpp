#include "nn/lora_table.h"

#include <utility>

namespace reft {
namespace {

thread_local const Tensor* slots_of_thread = nullptr;

}  // namespace

AdapterScope::AdapterScope(const Tensor& slots)
    : outer_(std::exchange(slots_of_thread, slots.defined() ? &slots : nullptr)) {}
AdapterScope::~AdapterScope() { slots_of_thread = outer_; }
const Tensor* AdapterScope::current() { return slots_of_thread; }

}  // namespace reft
