// The work behind DataLoader, one batch after the other, without any look ahead of batches.
#pragma once

#include <deque>

#include "base/thread_pool.h"
#include "train/data/loader.h"

namespace reft {

// One thread at a time; encodes on its own pool.
class BatchStream {
 public:
  BatchStream(const LoaderOptions& options, const ExampleEncoder& encoder);

  // The next batch; false once at the end of every epoch.
  bool next(TrainBatch* batch);
  int64_t epoch() const { return mixer_.epoch(); }
  std::vector<RowCounts> counts();  // by data set

  Json state() const;
  void restore(const Json& state);

 private:
  // Reads, encodes and packs some rows; sets drained_ when the epoch has no more.
  void advance();
  void count(const EncodedExample& example);
  void make_batch(std::vector<PackedUnit> units, TrainBatch* batch) const;

  LoaderOptions options_;
  const ExampleEncoder& encoder_;
  Mixer mixer_;
  Packer packer_;
  std::unique_ptr<ThreadPool> pool_;
  bool drained_ = false;  // all rows of the epoch are in the packer
  bool any_ = false;      // the epoch had a batch
};

}  // namespace reft
