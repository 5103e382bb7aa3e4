// The rows of several data sets as one stream, shuffled.
#pragma once

#include "train/data/dataset.h"
#include "train/data/random.h"

namespace reft {

struct MixOptions {
  std::vector<DatasetSpec> datasets;
  TextUnit text_unit = TextUnit::kLine;
  bool skip_bad_rows = false;
  bool shuffle = true;
  uint64_t seed = 0;
  int64_t shuffle_rows = 16384;               // rows that the shuffling chooses among …
  int64_t shuffle_bytes = int64_t{64} << 20;  // … unless their texts are larger than this
  double validation_fraction = 0;             // rows held out, chosen by a hash of their place
  bool validation = false;                    // give those that are held out instead of the others
};

// Order, a function of the options and the files alone: data set i is next where (rows given + 1) /
// weight is smallest. Without weights the sizes of the files stand for them, every row comes once
// per epoch, and all sets end at about the same time. With weights a set that ends starts over, and
// the epoch ends once all have ended. Shuffled rows are drawn from a buffer; every epoch has
// another order. One thread at a time.
class Mixer {
 public:
  // Throws Error when there are no data sets, or two of one name.
  explicit Mixer(MixOptions options);

  // False at the end of the epoch; the next call begins another one.
  bool next(Example* example, int32_t* dataset);
  int64_t epoch() const { return epoch_; }
  std::vector<DatasetRows>& datasets() { return sets_; }

  Json state() const;
  void restore(const Json& state);

 private:
  struct Slot {
    Example example;
    int32_t dataset = 0;
  };

  void begin_epoch();
  void fill();
  bool read(Slot* slot);
  int32_t choose() const;
  bool read_row(int32_t set, Example* example);

  MixOptions options_;
  std::vector<DatasetRows> sets_;
  std::vector<double> weights_;
  bool repeats_ = false;  // weights were given
  int64_t epoch_ = -1;
  bool in_epoch_ = false;
  std::vector<int64_t> given_;   // rows of each set in this epoch
  std::vector<int64_t> passes_;  // times each set was begun
  std::vector<char> ended_;
  SplitMix random_{0};
  std::vector<Slot> buffer_;
  int64_t buffer_bytes_ = 0;
};

}  // namespace reft
