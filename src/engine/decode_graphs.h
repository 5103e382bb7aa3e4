// Decode steps as recorded graphs. A step in which every sequence computes one token differs from
// the next only in the contents of the batch's arrays; it is recorded once per (rounded up) number
// of sequences and then replayed.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "engine/packed_batch.h"
#include "models/model.h"
#include "ops/graph.h"

namespace reft {

// Compute thread only.
class DecodeGraphs {
 public:
  // `max_sequences` and `max_len` bound what is recorded; `adapters`: batches may have some.
  // Records the largest step, whose temporaries serve the others; they are recorded when they first
  // come.
  DecodeGraphs(CausalLmModel& model, KvCache& cache, Device device, int64_t max_sequences,
               int64_t max_len, bool adapters = false);

  // Logits [B, V] of a batch of one token per sequence whose rows are all wanted; the arrays of
  // `host` lie on the CPU. A token id −1 − r stands for previous[r], which is on the device.
  // Nothing is waited for.
  Tensor forward(Batch& host, const Tensor& previous);

 private:
  // The arrays of a recorded step, in one block of device memory.
  struct Recorded {
    int64_t sequences = 0;
    Tensor arrays;
    Batch batch;
    Tensor logits;  // memory that other graphs use too: good until the next replay
    std::unique_ptr<OpGraph> graph;
  };

  BatchSizes sizes_for(int64_t sequences) const;
  Recorded& recorded_for(int64_t sequences);
  std::unique_ptr<Recorded> record(int64_t sequences);

  CausalLmModel& model_;
  KvCache& cache_;
  Device device_;
  int64_t max_len_;
  int64_t table_width_;
  bool adapters_;
  std::vector<int64_t> sizes_;  // 1, 2, 4, 8, 16, 24 … 256, 288 … max_sequences
  std::map<int64_t, std::unique_ptr<Recorded>> recorded_;
};

}  // namespace reft
