#include "engine/decode_graphs.h"

#include <algorithm>

#include "base/log.h"

namespace reft {
namespace {

constexpr int64_t kAlign = 4;  // int32s in 16 bytes

int64_t padded(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

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

std::unique_ptr<DecodeGraphs::Recorded> DecodeGraphs::record(int64_t sequences) {
  auto r = std::make_unique<Recorded>();
  r->sequences = sequences;
  const int64_t n = sequences;
  r->arrays =
      Tensor::zeros({5 * padded(n) + padded(n + 1) + n * table_width_}, DType::kI32, device_);
  int64_t at = 0;
  const auto take = [&](Shape shape) {
    const Tensor view = r->arrays.rows(at, at + shape.numel()).reshape(shape);
    at += padded(shape.numel());
    return view;
  };
  r->batch.token_ids = take({n});
  r->batch.positions = take({n});
  r->batch.slots = take({n});
  r->batch.attention.context_len = take({n});
  r->batch.logit_rows = take({n});
  r->batch.attention.query_start = take({n + 1});
  r->batch.attention.block_table =
      r->arrays.rows(at, at + n * table_width_).reshape({n, table_width_});
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
  std::vector<int32_t> values(static_cast<size_t>(r.arrays.numel()), 0);
  int64_t at = 0;
  const auto put = [&](const Tensor& t, int64_t count, int32_t rest) {
    int32_t* to = values.data() + at;
    std::copy_n(t.data<int32_t>(), t.numel(), to);
    std::fill(to + t.numel(), to + count, rest);
    at += padded(count);
  };
  // Padding: no keys, no slot, some row's logits.
  put(host.token_ids, n, 0);
  put(host.positions, n, 0);
  put(host.slots, n, -1);
  put(host.attention.context_len, n, 0);
  put(host.logit_rows, n, 0);
  for (int64_t i = 0; i <= n; ++i) values[static_cast<size_t>(at + i)] = static_cast<int32_t>(i);
  at += padded(n + 1);
  const int64_t width = host.attention.block_table.size(1);
  for (int64_t i = 0; i < given; ++i) {
    std::copy_n(host.attention.block_table.data<int32_t>() + i * width, width,
                values.data() + at + i * table_width_);
  }
  r.arrays.copy_from(Tensor::borrow(values.data(), {r.arrays.numel()}, DType::kI32));
  r.graph->replay();
  return r.logits.rows(0, given);
}

}  // namespace reft
