#include "engine/decode_graphs.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/log.h"
#include "ops/copy_rows.h"

namespace reft {
namespace {

// The same elements, without keeping their memory from being used again.
Tensor unowned(const Tensor& t) {
  auto storage = std::make_shared<Storage>(t.device(), t.raw(), static_cast<size_t>(t.nbytes()),
                                           std::function<void()>());
  return Tensor(std::move(storage), 0, t.dtype(), t.shape());
}

}  // namespace

DecodeGraphs::DecodeGraphs(CausalLmModel& model, KvCache& cache, Device device,
                           int64_t max_sequences, int64_t max_len, bool adapters)
    : model_(model),
      cache_(cache),
      device_(device),
      max_len_(max_len),
      table_width_((max_len + cache.block_size() - 1) / cache.block_size()),
      adapters_(adapters) {
  for (int64_t size : {1, 2, 4}) {
    if (size < max_sequences) sizes_.push_back(size);
  }
  for (int64_t size = 8; size < max_sequences; size += size < 256 ? 8 : 32) sizes_.push_back(size);
  sizes_.push_back(max_sequences);
  recorded_for(max_sequences);
}

BatchSizes DecodeGraphs::sizes_for(int64_t sequences) const {
  return {.tokens = sequences,
          .sequences = sequences,
          .table_width = table_width_,
          .logit_rows = sequences,
          .adapters = adapters_};
}

std::unique_ptr<DecodeGraphs::Recorded> DecodeGraphs::record(int64_t sequences) {
  auto r = std::make_unique<Recorded>();
  r->sequences = sequences;
  const int64_t n = sequences;
  const BatchSizes sizes = sizes_for(n);
  r->arrays = Tensor::zeros({packed_size(sizes)}, DType::kI32, device_);
  r->batch = view_packed(r->arrays, sizes);
  r->batch.attention.max_query_len = 1;
  r->batch.attention.max_context_len = max_len_;
  std::vector<int32_t> starts(static_cast<size_t>(n + 1));
  std::iota(starts.begin(), starts.end(), 0);
  r->batch.attention.query_start.copy_from(Tensor::from_vector(starts));
  const auto body = [&] { r->logits = model_.forward(r->batch, cache_); };
  // A step of padding only, so that what a library sets up on first use is not recorded: no
  // sequence has keys, and nothing is written to the cache.
  r->batch.slots.copy_from(Tensor::from_vector(std::vector<int32_t>(static_cast<size_t>(n), -1)));
  if (adapters_) r->batch.adapters.copy_from(r->batch.slots);
  body();
  r->graph = record_graph(device_, body);
  r->logits = unowned(r->logits);
  log_debug("Engine", "recorded a decode graph for {} sequences", n);
  return r;
}

DecodeGraphs::Recorded& DecodeGraphs::recorded_for(int64_t sequences) {
  const int64_t size = *std::ranges::lower_bound(sizes_, sequences);
  auto& slot = recorded_[size];
  if (slot == nullptr) slot = record(size);
  return *slot;
}

Tensor DecodeGraphs::forward(Batch& host, const Tensor& previous) {
  const int64_t given = host.num_sequences();
  Recorded& r = recorded_for(given);
  if (adapters_ && !host.adapters.defined()) {
    host.adapters = Tensor::from_vector(std::vector<int32_t>(static_cast<size_t>(given), -1));
  }
  Batch sent = move_packed(host, device_);
  // Padding has no keys (context_len 0), writes none (slot −1), has no adapter (−1), and its logits
  // are not looked at.
  std::vector<RowsCopy> copies;
  const auto from = arrays_of(sent);
  const auto to = arrays_of(r.batch);
  for (size_t i = 0; i < to.size(); ++i) {
    if (to[i] == &r.batch.attention.query_start) continue;  // 0, 1, 2 … for every step
    RowsCopy copy{.to = *to[i], .from = *from[i]};
    if (to[i] == &r.batch.slots || to[i] == &r.batch.adapters) copy.fill = -1;
    if (to[i] == &r.batch.token_ids) copy.values = previous;
    copies.push_back(std::move(copy));
  }
  copy_rows(copies);
  r.graph->replay();
  return r.logits.rows(0, given);
}

}  // namespace reft
