#include "train/data/dataset.h"

#include <sys/stat.h>

#include <charconv>
#include <filesystem>
#include <numeric>

#include "base/log.h"
#include "train/data/random.h"

namespace reft {
namespace {

constexpr int64_t kLoggedBadRows = 5;

// Takes `#weight` off the end; a `#` that no number follows belongs to the path.
std::optional<double> take_weight(std::string* text) {
  const size_t at = text->rfind('#');
  if (at == std::string::npos) return std::nullopt;
  double weight = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data() + at + 1, end, weight);
  if (error != std::errc() || stop != end) return std::nullopt;
  check(weight > 0 && weight < 1e9, "the weight of the data set '{}' must be positive", *text);
  text->resize(at);
  return weight;
}

ColumnNames read_names(const Json& entry, const char* key) {
  ColumnNames names;
  const auto it = entry.find(key);
  if (it == entry.end() || it->is_null()) return names;
  for (const auto& [name, column] : it->items()) {
    check(column.is_string(), "'{}.{}' must be a string", key, name);
    names[name] = column.get<std::string>();
  }
  return names;
}

DatasetSpec read_entry(const std::string& name, const Json& entry, const std::string& info_path) {
  const auto file = entry.find("file_name");
  check(file != entry.end() && file->is_string(),
        "the data set '{}' of '{}' has no 'file_name': only local files can be read, download it "
        "and pass {}@path",
        name, info_path, name);
  DatasetSpec spec;
  spec.name = name;
  spec.path = (std::filesystem::path(info_path).parent_path() / file->get<std::string>()).string();
  spec.columns = read_names(entry, "columns");
  spec.columns.merge(read_names(entry, "tags"));
  const std::string formatting = json_get<std::string>(entry, "formatting", "alpaca");
  check(formatting == "alpaca" || formatting == "sharegpt" || formatting == "openai",
        "the data set '{}' of '{}' has the unknown formatting '{}'", name, info_path, formatting);
  if (formatting == "sharegpt") spec.columns.emplace("messages", "conversations");
  spec.max_rows = json_get<int64_t>(entry, "num_samples", -1);
  return spec;
}

// What RowFormat looks at: which columns there are, and which of them are null.
Json columns_of(const Json& row) {
  Json columns = Json::object();
  for (const auto& [name, value] : row.items())
    columns[name] = value.is_null() ? Json() : Json(true);
  return columns;
}

}  // namespace

DatasetSpec parse_dataset(const std::string& text, const std::string& dataset_info) {
  std::string rest = text;
  const std::optional<double> weight = take_weight(&rest);
  DatasetSpec spec;
  const size_t at = rest.find('@');
  if (at != std::string::npos) {
    spec.name = rest.substr(0, at);
    spec.path = rest.substr(at + 1);
  } else if (!dataset_info.empty()) {
    const Json info = read_json_file(dataset_info);
    check(info.is_object(), "'{}' must hold a JSON object", dataset_info);
    if (const auto it = info.find(rest); it != info.end()) {
      spec = read_entry(rest, *it, dataset_info);
    }
  }
  if (spec.path.empty() && at == std::string::npos) {
    std::filesystem::path path = rest;
    if (!path.has_filename()) path = path.parent_path();
    spec.name = path.stem();
    spec.path = rest;
  }
  check(!spec.name.empty() && !spec.path.empty(),
        "'{}' names no data set: it must be name@path or name@path#weight", text);
  spec.weight = weight;
  return spec;
}

DatasetRows::DatasetRows(DatasetSpec spec, TextUnit unit, bool skip_bad_rows,
                         std::optional<uint64_t> seed)
    : spec_(std::move(spec)),
      unit_(unit),
      skip_bad_rows_(skip_bad_rows),
      seed_(seed),
      files_(list_data_files(spec_.path)) {
  for (const std::string& file : files_) {
    bytes_ += static_cast<int64_t>(std::filesystem::file_size(file));
  }
  order_files();
}

void DatasetRows::order_files() {
  order_.resize(files_.size());
  std::iota(order_.begin(), order_.end(), size_t{0});
  if (!seed_) return;
  SplitMix random = split_mix(*seed_, static_cast<uint64_t>(epoch_));
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);
}

void DatasetRows::begin_epoch(int64_t epoch) {
  epoch_ = epoch;
  file_ = 0;
  row_in_epoch_ = 0;
  row_in_file_ = 0;
  reader_.reset();
  order_files();
}

bool DatasetRows::next_row(Row* row) {
  if (spec_.max_rows >= 0 && row_in_epoch_ >= spec_.max_rows) return false;
  for (; file_ < order_.size(); ++file_, row_in_file_ = 0, reader_.reset()) {
    if (reader_ == nullptr) reader_ = open_rows(files_[order_[file_]], unit_);
    const bool found = [&] {
      try {
        return reader_->next(row);
      } catch (const RowError&) {
        count_row();
        throw;
      }
    }();
    if (found) {
      count_row();
      return true;
    }
  }
  return false;
}

bool DatasetRows::next(Example* example) {
  Row row;
  for (;;) {
    try {
      if (!next_row(&row)) return false;
      if (!format_) {
        format_.emplace(row, spec_.columns);
        format_row_ = columns_of(row.value);
        log_info("data", "{}: {} file{}, {}", spec_.name, files_.size(),
                 files_.size() == 1 ? "" : "s", format_->description());
      }
      *example = format_->read(row);
      example->row_id = split_mix(order_[file_], static_cast<uint64_t>(row_in_file_)).next();
      return true;
    } catch (const RowError& e) {
      if (!skip_bad_rows_)
        throw Error(std::string(e.what()) + " (--skip_bad_rows passes over such rows)");
      if (++counts_.bad <= kLoggedBadRows) log_warning("data", "skipped: {}", e.what());
    }
  }
}

Json DatasetRows::state() const {
  return {{"files", files_},
          {"epoch", epoch_},
          {"file", file_},
          {"row", row_in_epoch_},
          {"row_in_file", row_in_file_},
          {"reader", reader_ ? reader_->cursor() : Json()},
          {"columns", format_row_},
          {"counts", counts_.to_json()}};
}

void DatasetRows::restore(const Json& state) {
  check(state.at("files").get<std::vector<std::string>>() == files_,
        "the data set '{}' has other files than when the training state was saved", spec_.name);
  begin_epoch(state.at("epoch").get<int64_t>());
  file_ = state.at("file").get<size_t>();
  row_in_epoch_ = state.at("row").get<int64_t>();
  row_in_file_ = state.at("row_in_file").get<int64_t>();
  if (!state.at("reader").is_null()) {
    check(file_ < order_.size(), "the state of the data set '{}' is damaged", spec_.name);
    reader_ = open_rows(files_[order_[file_]], unit_);
    reader_->seek(state.at("reader"));
  }
  format_row_ = state.at("columns");
  if (!format_row_.is_null()) format_.emplace(Row{format_row_, spec_.name}, spec_.columns);
  counts_ = RowCounts::from_json(state.at("counts"));
}

}  // namespace reft
