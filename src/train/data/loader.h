// The batches of a training run: rows are read, mixed and shuffled (mixer.h), encoded on threads of
// their own, packed (packer.h) and grouped, ahead of the training step.
//
// Deterministic: the batches are a function of the options and the files, not of the number of
// threads or the time. What is held is bounded by shuffle_rows, open_bins and prefetch, whatever
// the size of the data. Owned by one thread, which calls everything but the constructor's encoder.
#pragma once

#include "train/data/mixer.h"
#include "train/data/packer.h"

namespace reft {

struct LoaderOptions {
  MixOptions mix;
  int64_t batch_size = 1;  // units of a batch (packer.h)
  bool packing = false;    // stages pt (always) and sft
  int num_threads = 0;     // that encode; 0: half of the processors
  int64_t prefetch = 2;    // batches made ahead
};

// What one epoch comes to.
struct EpochSize {
  int64_t batches = 0;
  int64_t sequences = 0;
  int64_t tokens = 0;
  int64_t trained_tokens = 0;
};

class DataLoader {
 public:
  // The encoder must outlive the loader. Throws Error naming an option, a data set or a file.
  DataLoader(LoaderOptions options, const ExampleEncoder& encoder);
  ~DataLoader();
  DataLoader(const DataLoader&) = delete;
  DataLoader& operator=(const DataLoader&) = delete;

  // The next batch; false once at the end of every epoch, after which the next epoch follows.
  // Throws Error naming file and line of a bad row, and for an epoch without any batch.
  bool next(TrainBatch* batch);
  // Of the batch that next() gave last, from 0.
  int64_t epoch() const;
  // By data set, in the order of the options, as of the last next(): all epochs so far, and the few
  // rows that were encoded for the batches behind the last one.
  std::vector<std::pair<std::string, RowCounts>> counts() const;

  // Everything that the batches after the last one depend on, as JSON: the places in all files, the
  // random state, the rows and tokens that wait. Another loader with the same options and files
  // gives the same batches after restore() as this one would have. Before the first next() only.
  Json state() const;
  void restore(const Json& state);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Reads one epoch from beginning to end, to know the number of steps. Counts are those of that
// epoch; with packing another epoch may have a batch more or less.
EpochSize measure_epoch(const LoaderOptions& options, const ExampleEncoder& encoder);

// "alpaca: 999 rows read, 998 kept (12 truncated), 1 dropped, 0 bad" per data set.
std::string describe_counts(const std::vector<std::pair<std::string, RowCounts>>& counts);

}  // namespace reft
