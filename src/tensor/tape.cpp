#include "tensor/tape.h"

#include <algorithm>
#include <utility>

namespace reft {
namespace {

thread_local Tape* tape_of_thread = nullptr;

// Sets a variable while it lives.
template <class T>
class Setting {
 public:
  Setting(T& variable, T value)
      : variable_(variable), old_(std::exchange(variable, std::move(value))) {}
  ~Setting() { variable_ = std::move(old_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  T& variable_;
  T old_;
};

int64_t elements_of(const Storage& storage, DType dtype) {
  return static_cast<int64_t>(storage.bytes()) / row_bytes(dtype, 1);
}

}  // namespace

Tape::Tape() : outer_(std::exchange(tape_of_thread, this)) {}
Tape::~Tape() { tape_of_thread = outer_; }
Tape* Tape::current() { return tape_of_thread; }

Tape* Tape::recording(std::initializer_list<const Tensor*> inputs) {
  Tape* tape = tape_of_thread;
  if (tape == nullptr) return nullptr;
  const bool any =
      std::ranges::any_of(inputs, [&](const Tensor* x) { return tape->needs_gradient(*x); });
  return any ? tape : nullptr;
}

Tape::Pause::Pause() : paused_(std::exchange(tape_of_thread, nullptr)) {}
Tape::Pause::~Pause() { tape_of_thread = paused_; }

bool Tape::Gradients::wants(size_t input) const { return inputs_[input].id != 0; }

GradientSlot Tape::Gradients::input(size_t i) const {
  return wants(i) ? tape_.slot(inputs_[i]) : GradientSlot{};
}

void Tape::watch(const Tensor& value, const Tensor& gradient, std::function<void()> ready) {
  bool alike = value.shape() == gradient.shape() && value.device() == gradient.device() &&
               is_float(value.dtype()) && is_float(gradient.dtype());
  for (int i = 0; alike && i < value.dims(); ++i) alike = value.stride(i) == gradient.stride(i);
  check(alike, "Tape::watch: a gradient of {} for {}", gradient, value);
  const int64_t at = gradient.raw() - gradient.storage()->data();
  const int64_t own = value.raw() - value.storage()->data();
  const int64_t shift = at / row_bytes(gradient.dtype(), 1) - own / row_bytes(value.dtype(), 1);
  Entry& entry = entries_[value.storage()->id()];
  if (entry.leaf) {
    check(entry.gradient.storage() == gradient.storage() && entry.shift == shift,
          "Tape::watch: two views of one tensor have gradients that lie apart");
  } else {
    entry.dtype = gradient.dtype();
    entry.device = gradient.device();
    entry.elements = elements_of(*value.storage(), value.dtype());
    entry.gradient = gradient;
    entry.leaf = true;
    entry.shift = shift;
  }
  if (ready) entry.ready.push_back(std::move(ready));
}

bool Tape::needs_gradient(const Tensor& x) const {
  return x.defined() && entries_.count(x.storage()->id()) > 0;
}

void Tape::record(const char* op, const std::vector<Tensor>& inputs,
                  const std::vector<Tensor>& outputs, Backward backward) {
  Record record{.op = op, .backward = std::move(backward)};
  for (const Tensor& x : inputs) {
    Value value;
    if (needs_gradient(x)) {
      value = {x.storage()->id(), x.without_storage()};
      if (entries_.at(value.id).leaf) record.uses.push_back(value.id);
    }
    record.inputs.push_back(std::move(value));
  }
  append(std::move(record), outputs);
}

void Tape::append(Record record, const std::vector<Tensor>& outputs) {
  for (const Tensor& y : outputs) {
    const uint64_t id = y.storage()->id();
    const auto [it, made] = entries_.try_emplace(id);
    if (made) {
      it->second.dtype = y.dtype();
      it->second.device = y.device();
      it->second.elements = elements_of(*y.storage(), y.dtype());
      if (counting_ != nullptr) counting_->made.push_back(id);
    }
    if (counting_ == nullptr) ++it->second.writers;
    record.outputs.push_back({id, y.without_storage()});
  }
  if (counting_ != nullptr) {
    counting_->uses.insert(counting_->uses.end(), record.uses.begin(), record.uses.end());
    return;
  }
  if (!replaying_) {
    for (const uint64_t leaf : record.uses) ++entries_.at(leaf).uses;
  }
  records_.push_back(std::move(record));
}

std::vector<Tensor> Tape::checkpoint(const std::vector<Tensor>& inputs, Block block) {
  Counting counting;
  std::vector<Tensor> outputs;
  {
    const Setting<Counting*> first_run(counting_, &counting);
    outputs = block(inputs);
  }
  if (counting.made.empty()) return outputs;
  if (counting_ != nullptr) {
    counting_->uses.insert(counting_->uses.end(), counting.uses.begin(), counting.uses.end());
    counting_->made.insert(counting_->made.end(), counting.made.begin(), counting.made.end());
    return outputs;
  }
  std::vector<Tensor> differentiable;
  for (const Tensor& y : outputs) {
    if (needs_gradient(y)) differentiable.push_back(y);
  }
  for (const uint64_t id : counting.made) {
    const auto is_output = [&](const Tensor& y) { return y.storage()->id() == id; };
    if (std::ranges::none_of(differentiable, is_output)) entries_.erase(id);
  }
  if (differentiable.empty()) return outputs;
  Record record{.op = "checkpoint",
                .block = std::move(block),
                .kept = inputs,
                .uses = std::move(counting.uses)};
  append(std::move(record), differentiable);
  return outputs;
}

GradientSlot Tape::slot(const Value& value) {
  Entry& entry = entries_.at(value.id);
  bool accumulate = true;
  if (!entry.gradient.defined()) {
    accumulate = value.view.numel() < entry.elements;
    entry.gradient = accumulate ? Tensor::zeros({entry.elements}, entry.dtype, entry.device)
                                : Tensor::empty({entry.elements}, entry.dtype, entry.device);
  }
  return {value.view.view_in(entry.gradient.storage(), entry.dtype, entry.shift), accumulate};
}

Tensor Tape::gradient_of(const Value& value) const {
  const Entry& entry = entries_.at(value.id);
  if (!entry.gradient.defined()) return {};
  return value.view.view_in(entry.gradient.storage(), entry.dtype, entry.shift);
}

void Tape::finish_use(uint64_t leaf) {
  Entry& entry = entries_.at(leaf);
  if (--entry.uses > 0) return;
  for (const auto& ready : entry.ready) ready();
}

void Tape::run(Record& record) {
  std::vector<Tensor> gradients;
  for (const Value& out : record.outputs) gradients.push_back(gradient_of(out));
  const bool reached = std::ranges::any_of(gradients, [](const Tensor& g) { return g.defined(); });
  if (reached && record.block) {
    gradients.clear();
    run_block(record);
  } else {
    if (reached) {
      Gradients given(*this, record.inputs, std::move(gradients));
      record.backward(given);
      record.backward = nullptr;
    }
    for (const uint64_t leaf : record.uses) finish_use(leaf);
  }
  for (const Value& out : record.outputs) {
    Entry& entry = entries_.at(out.id);
    if (--entry.writers == 0 && !entry.leaf) entries_.erase(out.id);
  }
}

void Tape::run_block(Record& record) {
  const size_t before = records_.size();
  std::vector<Tensor> outputs;
  {
    const Setting<Tape*> on(tape_of_thread, this);
    const Setting<bool> again(replaying_, true);
    outputs = record.block(record.kept);
  }
  record.kept.clear();
  std::erase_if(outputs, [&](const Tensor& y) { return !needs_gradient(y); });
  check(outputs.size() == record.outputs.size(),
        "checkpoint: the block has {} results with gradients, and had {} before", outputs.size(),
        record.outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const uint64_t id = outputs[i].storage()->id();
    if (id == record.outputs[i].id) continue;  // an input that is handed through
    Entry& from = entries_.at(record.outputs[i].id);
    if (from.gradient.defined()) entries_.at(id).gradient = std::exchange(from.gradient, {});
  }
  outputs.clear();
  run_down_to(before);
}

void Tape::run_down_to(size_t num_records) {
  while (records_.size() > num_records) {
    Record record = std::move(records_.back());
    records_.pop_back();
    try {
      run(record);
    } catch (const Error& e) {
      if (record.block) throw;  // an op inside is named already
      fail("backward of {}: {}", record.op, e.what());
    }
  }
}

void Tape::backward(const Tensor& output, const Tensor& seed) {
  check(needs_gradient(output), "Tape::backward: {} depends on no tensor that is watched", output);
  check(seed.shape() == output.shape() && seed.dtype() == output.dtype() &&
            seed.device() == output.device(),
        "Tape::backward: a seed of {} for {}", seed, output);
  const Pause pause;
  for (const auto& [id, entry] : entries_) {
    if (!entry.leaf || entry.uses > 0) continue;
    for (const auto& ready : entry.ready) ready();
  }
  slot({output.storage()->id(), output.without_storage()}).tensor.copy_from(seed);
  run_down_to(0);
}

}  // namespace reft
