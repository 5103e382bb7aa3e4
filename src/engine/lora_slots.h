// The adapters that a model serves beside itself: a fixed number of slots in tables at every linear
// layer, so that they come and go while steps run and recorded steps keep their addresses.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/peft_adapter.h"
#include "models/model.h"
#include "nn/linear.h"

namespace reft {

// An adapter in use: requests hold it, and its slot is free once none does and it was removed.
struct ServedAdapter {
  std::string name;
  std::string path;
  int64_t rank = 0;
  int32_t slot = -1;
  uint64_t number = 0;  // never used again: tells the keys and values of adapters apart
};
using ServedAdapterPtr = std::shared_ptr<const ServedAdapter>;

// Thread-safe.
class LoraSlots {
 public:
  // Puts tables for `num_slots` adapters of ranks up to `max_rank` at the linear layers of the
  // blocks.
  LoraSlots(CausalLmModel& model, Device device, int64_t num_slots, int64_t max_rank);

  // Reads an adapter folder into a free slot. Throws Error naming what does not fit: the name is
  // taken, there is no slot, the rank is above the maximum, a module that the model does not have,
  // modules that are trained whole.
  ServedAdapterPtr load(const std::string& name, const std::string& folder);
  // Requests that run keep it. False when there is none of that name.
  bool unload(const std::string& name);
  // Null when there is none of that name.
  ServedAdapterPtr find(const std::string& name) const;
  // In the order of loading.
  std::vector<ServedAdapterPtr> list() const;
  int64_t num_slots() const { return static_cast<int64_t>(used_->size()); }
  int64_t max_rank() const { return max_rank_; }
  // Bytes of all tables.
  int64_t nbytes() const;

 private:
  struct Target {
    Linear* linear;
    LoraTable* table;
  };
  void fill(int32_t slot, const LoraAdapter& adapter, const std::string& folder);

  int64_t max_rank_;
  Device device_;
  std::map<std::string, Target> targets_;  // by module path
  mutable std::mutex mutex_;
  std::mutex loading_;
  std::vector<ServedAdapterPtr> adapters_;
  // Shared with the adapters, which free their slot whenever they end.
  struct Used {
    std::mutex mutex;
    std::vector<bool> slots;
    size_t size() const { return slots.size(); }
  };
  std::shared_ptr<Used> used_;
  uint64_t next_number_ = 1;
};

}  // namespace reft
