#include "engine/lora_slots.h"

#include <algorithm>
#include <cmath>

#include "ops/linear.h"
#include "ops/lora.h"

namespace reft {
namespace {

constexpr std::string_view kBlocks = "model.layers.";

Tensor host_floats(const Tensor& t) { return t.to(kCpuDevice).to(DType::kF32).contiguous(); }

// `to`, a view of a slot, gets `from` [rows, columns] transposed and times `scale`, in rows of
// `width`.
std::vector<float> transposed(const Tensor& from, int64_t width, int64_t height, float scale) {
  std::vector<float> out(static_cast<size_t>(width * height), 0.0f);
  for (int64_t r = 0; r < from.size(0); ++r) {
    for (int64_t c = 0; c < from.size(1); ++c) {
      out[static_cast<size_t>(c * width + r)] = scale * from.data<float>()[r * from.size(1) + c];
    }
  }
  return out;
}

void put(const Tensor& table, int32_t slot, const std::vector<float>& values) {
  const Tensor view = table.rows(slot, slot + 1);
  view.copy_from(Tensor::from_vector(values, view.shape()).to(view.device()));
}

}  // namespace

LoraSlots::LoraSlots(CausalLmModel& model, Device device, int64_t num_slots, int64_t max_rank)
    : max_rank_(max_rank), device_(device), used_(std::make_shared<Used>()) {
  check(num_slots >= 1, "--max_loras must be at least 1, got {}", num_slots);
  check(max_rank >= 1 && max_rank <= 1024, "--max_lora_rank must be from 1 to 1024, got {}",
        max_rank);
  used_->slots.resize(static_cast<size_t>(num_slots));
  model.visit_modules([&](Module& module, const std::string& prefix) {
    auto* linear = dynamic_cast<Linear*>(&module);
    if (linear == nullptr || !prefix.starts_with(kBlocks)) return;
    std::vector<LoraTable> tables;
    int64_t begin = 0;
    for (const Linear::Part& part : linear->parts()) {
      tables.push_back({.begin = begin,
                        .end = begin + part.out_features,
                        .stack = LoraStack::zeros(num_slots, max_rank, part.out_features,
                                                  linear->in_features(), device)});
      begin += part.out_features;
    }
    linear->set_tables(std::move(tables));
    for (size_t i = 0; i < linear->parts().size(); ++i) {
      const std::string& name = linear->parts()[i].name;
      targets_[name.empty() ? prefix : fmt::format("{}.{}", prefix, name)] = {linear,
                                                                              &linear->tables()[i]};
    }
  });
}

int64_t LoraSlots::nbytes() const {
  int64_t bytes = 0;
  for (const auto& [path, target] : targets_)
    bytes += target.table->stack.a.nbytes() + target.table->stack.b.nbytes();
  return bytes;
}

ServedAdapterPtr LoraSlots::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  for (const ServedAdapterPtr& adapter : adapters_) {
    if (adapter->name == name) return adapter;
  }
  return nullptr;
}

std::vector<ServedAdapterPtr> LoraSlots::list() const {
  const std::lock_guard lock(mutex_);
  return adapters_;
}

bool LoraSlots::unload(const std::string& name) {
  ServedAdapterPtr gone;  // ends after the lock
  const std::lock_guard lock(mutex_);
  const auto it = std::ranges::find(adapters_, name, [](const auto& a) { return a->name; });
  if (it == adapters_.end()) return false;
  gone = *it;
  adapters_.erase(it);
  return true;
}

ServedAdapterPtr LoraSlots::load(const std::string& name, const std::string& folder) {
  const std::lock_guard one(loading_);
  check(!name.empty(), "an adapter needs a name");
  check(find(name) == nullptr, "an adapter named '{}' is loaded already", name);
  const LoraAdapter adapter = read_adapter(folder);
  int64_t rank = 0;
  for (const auto& [path, w] : adapter.layers) rank = std::max(rank, w.a.size(0));
  check(rank <= max_rank_, "adapter '{}' has rank {}: --max_lora_rank is {}", name, rank,
        max_rank_);
  check(adapter.saved.empty(),
        "adapter '{}' holds whole modules ('{}'), which are not served: merge it with the base "
        "model first",
        name, adapter.saved.empty() ? "" : adapter.saved.begin()->first);
  int32_t slot = -1;
  {
    const std::lock_guard lock(used_->mutex);
    const auto free = std::ranges::find(used_->slots, false);
    check(free != used_->slots.end(),
          "no room for adapter '{}': --max_loras is {}, and removed ones count while requests use "
          "them",
          name, used_->slots.size());
    *free = true;
    slot = static_cast<int32_t>(free - used_->slots.begin());
  }
  const auto release = [used = used_](const ServedAdapter* a) {
    {
      const std::lock_guard lock(used->mutex);
      used->slots[static_cast<size_t>(a->slot)] = false;
    }
    delete a;
  };
  // From here on the slot is freed whatever happens.
  ServedAdapterPtr served(
      new ServedAdapter{
          .name = name, .path = folder, .rank = rank, .slot = slot, .number = next_number_++},
      release);
  fill(slot, adapter, folder);
  const std::lock_guard lock(mutex_);
  adapters_.push_back(served);
  return served;
}

void LoraSlots::fill(int32_t slot, const LoraAdapter& adapter, const std::string& folder) {
  for (const auto& [path, w] : adapter.layers) {
    const auto it = targets_.find(path);
    check(it != targets_.end(), "'{}': '{}' is no linear layer of the model's blocks", folder,
          path);
    const LoraStack& stack = it->second.table->stack;
    check(w.a.size(1) == stack.a.size(1) && w.b.size(0) == stack.b.size(2),
          "'{}': '{}' is for [{}, {}], the model has [{}, {}]", folder, path, w.b.size(0),
          w.a.size(1), stack.b.size(2), stack.a.size(1));
  }
  for (const auto& [path, target] : targets_) {
    LoraStack& stack = target.table->stack;
    const auto it = adapter.layers.find(path);
    const int64_t n = stack.b.size(2), k = stack.a.size(1);
    const Tensor rank = stack.ranks.rows(slot, slot + 1);
    if (it == adapter.layers.end()) {
      rank.copy_from(Tensor::from_vector(std::vector<int32_t>{0}).to(device_));
      continue;
    }
    const LoraWeights& w = it->second;
    const Tensor a = host_floats(w.a), b = host_floats(w.b);
    std::vector<float> scales(static_cast<size_t>(n), static_cast<float>(w.scale));
    std::vector<float> change(static_cast<size_t>(n), 0.0f);
    if (w.magnitude.defined()) {
      const Tensor squared = target.linear->squared_row_norms()
                                 .to(kCpuDevice)
                                 .rows(target.table->begin, target.table->end);
      const Tensor projected = target.linear->plain_product(a.to(device_))
                                   .to(kCpuDevice)
                                   .columns(target.table->begin, target.table->end)
                                   .contiguous();
      const Tensor norms = adapted_row_norms(squared, projected, linear(a, Weight::from(a)), b,
                                             static_cast<float>(w.scale));
      const Tensor magnitude = host_floats(w.magnitude);
      for (size_t i = 0; i < change.size(); ++i) {
        const float factor = magnitude.data<float>()[i] / norms.data<float>()[i];
        change[i] = factor - 1;
        scales[i] *= factor;
      }
    }
    put(stack.column_change, slot, change);
    put(stack.a, slot, transposed(a, max_rank_, k, 1));
    std::vector<float> scaled = transposed(b, n, max_rank_, 1);
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= scales[i % static_cast<size_t>(n)];
    put(stack.b, slot, scaled);
    const auto own = static_cast<int32_t>(w.a.size(0));
    rank.copy_from(Tensor::from_vector(std::vector<int32_t>{own}).to(device_));
  }
}

}  // namespace reft
