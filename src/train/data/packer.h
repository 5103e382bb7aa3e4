// Groups encoded rows into what a batch counts: single rows, bins of rows, or blocks of text.
#pragma once

#include <deque>

#include "train/data/train_batch.h"

namespace reft {

// One unit of a batch: the sequences of a row, of a bin, or a block. Sequences never attend to each
// other.
struct PackedUnit {
  std::vector<TrainSequence> tokens;
  std::vector<TrainBatch::Sequence> sequences;

  int64_t num_tokens() const;
  Json to_json() const;
  static PackedUnit from_json(const Json& json);
};

struct PackerOptions {
  Stage stage = Stage::kSft;
  bool packing = false;
  int64_t cutoff_len = 2048;
  std::optional<int32_t> bos;  // begins every block of stage pt
  int64_t open_bins = 64;      // bins that are filled at the same time
};

// Stage pt: the tokens of all rows one after the other in blocks of cutoff_len; the last of an
// epoch is shorter. With packing: a row goes into the fullest bin that has room for it; the fullest
// bin is closed when a row fits none of open_bins. Otherwise: a row is a unit. The order of units
// is a function of the order of rows. One thread at a time.
class Packer {
 public:
  explicit Packer(PackerOptions options) : options_(options) {}

  void add(EncodedExample example);
  // Closes what is open: nothing is carried into the next epoch.
  void finish_epoch();
  // The next unit that is complete; false when there is none yet.
  bool next(PackedUnit* unit);

  Json state() const;
  void restore(const Json& state);

 private:
  void add_to_block(EncodedExample example);
  void add_to_bin(TrainSequence tokens, TrainBatch::Sequence sequence);
  void close_block();

  PackerOptions options_;
  PackedUnit block_;              // of stage pt, at most one sequence
  std::vector<PackedUnit> bins_;  // open ones
  std::deque<PackedUnit> ready_;
};

}  // namespace reft
