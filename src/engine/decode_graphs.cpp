#include "engine/decode_graphs.h"

#include <algorithm>
#include <numeric>

#include "base/log.h"

namespace reft {

DecodeGraphs::DecodeGraphs(CausalLmModel& model, KvCache& cache, Device device,
                           int64_t max_sequences, int64_t max_len)
    : model_(model),
      cache_(cache),
      device_(device),
      max_len_(max_len),
      table_width_((max_len + cache.block_size() - 1) / cache.block_size()) {
  for (int64_t size : {1, 2, 4}) {
    if (size < max_sequences) sizes_.push_back(size);
  }
  for (int64_t size = 8; size < max_sequences; size += 8) sizes_.push_back(size);
  sizes_.push_back(max_sequences);
}

BatchSizes DecodeGraphs::sizes_for(int64_t sequences) const {
  return {.tokens = sequences,
          .sequences = sequences,
          .table_width = table_width_,
          .logit_rows = sequences};
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
  const auto body = [&] { r->logits = model_.forward(r->batch, cache_); };
  // A step of padding only, so that what a library sets up on first use is not recorded: no
  // sequence has keys, and nothing is written to the cache.
  r->batch.slots.copy_from(
      Tensor::from_vector(std::vector<int32_t>(static_cast<size_t>(n), -1)).to(device_));
  body();
  r->graph = record_graph(device_, body);
  log_debug("Engine", "recorded a decode graph for {} sequences", n);
  return r;
}

DecodeGraphs::Recorded& DecodeGraphs::recorded_for(int64_t sequences) {
  const int64_t size = *std::ranges::lower_bound(sizes_, sequences);
  auto& slot = recorded_[size];
  if (slot == nullptr) slot = record(size);
  return *slot;
}

Tensor DecodeGraphs::forward(const Batch& host) {
  const int64_t given = host.num_sequences();
  Recorded& r = recorded_for(given);
  const int64_t n = r.sequences;
  const Tensor values = Tensor::zeros({r.arrays.numel()}, DType::kI32);
  const Batch padded = view_packed(values, sizes_for(n));
  // The rest of an array stays 0 (no keys, some row's logits) but where padding says otherwise.
  const auto put = [](const Tensor& from, const Tensor& to) {
    std::copy_n(from.data<int32_t>(), from.numel(), to.data<int32_t>());
  };
  put(host.token_ids, padded.token_ids);
  put(host.positions, padded.positions);
  put(host.slots, padded.slots);
  std::fill_n(padded.slots.data<int32_t>() + given, n - given, -1);
  put(host.attention.context_len, padded.attention.context_len);
  put(host.logit_rows, padded.logit_rows);
  std::iota(padded.attention.query_start.data<int32_t>(),
            padded.attention.query_start.data<int32_t>() + n + 1, 0);
  const int64_t width = host.attention.block_table.size(1);
  for (int64_t i = 0; i < given; ++i) {
    std::copy_n(host.attention.block_table.data<int32_t>() + i * width, width,
                padded.attention.block_table.data<int32_t>() + i * table_width_);
  }
  r.arrays.copy_from(values);
  r.graph->replay();
  return r.logits.rows(0, given);
}

}  // namespace reft
