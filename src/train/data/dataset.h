// Data sets as the command line and dataset_info.json name them, and the rows of one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/data/row_format.h"

namespace reft {

struct DatasetSpec {
  std::string name;
  std::string path;              // file, pattern or folder: list_data_files()
  std::optional<double> weight;  // of `name@path#weight`
  ColumnNames columns;
  int64_t max_rows = -1;  // only the first ones; -1: all
};

// `name@path`, `path` (named after its last part), each with `#weight` behind it if wanted; with
// `dataset_info`, the path of a LLaMA-Factory dataset_info.json, also the name of one of its
// entries, whose file lies beside it. Throws Error naming what is wrong.
DatasetSpec parse_dataset(const std::string& text, const std::string& dataset_info = "");

struct RowCounts {
  int64_t read = 0;       // rows, good and bad
  int64_t bad = 0;        // skipped by skip_bad_rows
  int64_t kept = 0;       // gave tokens to train on
  int64_t truncated = 0;  // of those kept
  int64_t dropped = 0;    // gave none

  Json to_json() const { return {read, bad, kept, truncated, dropped}; }
  static RowCounts from_json(const Json& json) {
    return {json.at(0), json.at(1), json.at(2), json.at(3), json.at(4)};
  }
};

// All rows of a data set, once per epoch: file by file, the files in another order each epoch when
// shuffled. One thread at a time.
class DatasetRows {
 public:
  // `skip_bad_rows`: a bad row is counted, and the first few are logged, instead of being an Error.
  DatasetRows(DatasetSpec spec, TextUnit unit, bool skip_bad_rows, std::optional<uint64_t> seed);

  // The next example; false at the end of the epoch, after which begin_epoch() starts over.
  bool next(Example* example);
  void begin_epoch(int64_t epoch);
  const DatasetSpec& spec() const { return spec_; }
  // How the rows are read, after the first one; empty before.
  std::string format() const { return format_ ? format_->description() : ""; }
  int64_t bytes() const { return bytes_; }  // of all files, as they lie on the disk
  RowCounts& counts() { return counts_; }

  // Everything that next() depends on but the files themselves.
  Json state() const;
  // Throws Error when the files are not those of the saved state.
  void restore(const Json& state);

 private:
  void order_files();
  bool next_row(Row* row);
  void count_row() {
    ++row_in_epoch_;
    ++row_in_file_;
    ++counts_.read;
  }

  DatasetSpec spec_;
  TextUnit unit_;
  bool skip_bad_rows_;
  std::optional<uint64_t> seed_;
  std::vector<std::string> files_;  // sorted
  std::vector<size_t> order_;       // of this epoch
  int64_t bytes_ = 0;
  int64_t epoch_ = 0;
  size_t file_ = 0;  // position in order_
  int64_t row_in_epoch_ = 0;
  int64_t row_in_file_ = 0;
  std::unique_ptr<RowReader> reader_;
  std::optional<RowFormat> format_;
  Json format_row_;  // the first row: detecting on it again gives the same format
  RowCounts counts_;
};

}  // namespace reft
