#include <carquet/carquet.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/json_text.h"
#include "train/data/row_readers.h"

namespace reft {
namespace {

constexpr int64_t kEntriesPerRead = 256;
constexpr int32_t kMaxDepth = 32;

struct Closer {
  void operator()(carquet_reader_t* reader) const { carquet_reader_close(reader); }
  void operator()(carquet_column_reader_t* reader) const { carquet_column_reader_free(reader); }
};

// A step of the path from the root to a column.
struct PathNode {
  std::string name;
  bool optional = false;
  bool repeated = false;
  bool is_list = false;          // a group that only wraps a list
  int16_t definition = 0;        // the node is there in entries of at least this level
  int16_t repetition_level = 0;  // lists from the root down to this node
};

// One column of one row group. Its entries are those of the Dremel paper (Melnik et al., 2010): a
// value, how much of its path is there (definition), and which of the lists goes on (repetition).
class Column {
 public:
  Column(const std::string& file, const carquet_schema_t* schema, int32_t index,
         std::vector<PathNode> path)
      : file_(file), index_(index), path_(std::move(path)) {
    // As a number: a damaged file may hold one that is no type.
    type_ = static_cast<int>(carquet_schema_column_type(schema, index));
    max_definition_ = carquet_schema_max_def_level(schema, index);
    constexpr std::array kReadable = {CARQUET_PHYSICAL_BOOLEAN, CARQUET_PHYSICAL_INT32,
                                      CARQUET_PHYSICAL_INT64,   CARQUET_PHYSICAL_FLOAT,
                                      CARQUET_PHYSICAL_DOUBLE,  CARQUET_PHYSICAL_BYTE_ARRAY};
    check(std::find(kReadable.begin(), kReadable.end(), type_) != kReadable.end(),
          "'{}': column '{}' has the type {}, which cannot be read (fixed-length bytes, INT96)",
          file_, name(), type_);
  }

  const std::vector<PathNode>& path() const { return path_; }

  void open(carquet_reader_t* reader, int32_t row_group) {
    carquet_error_t error = CARQUET_ERROR_INIT;
    reader_.reset(carquet_reader_get_column(reader, row_group, index_, &error));
    if (reader_ == nullptr) fail_with(error);
    values_.clear();
    next_ = 0;
  }

  // Puts the column's part of the next row where its path leads.
  void read_row(Json* row) {
    check(fill(), "'{}': column '{}' ends before the last row: the file is damaged", file_, name());
    std::array<size_t, kMaxDepth> element{};
    do {
      place_entry(row, &element);
      ++next_;
    } while (fill() && repetitions_[next_] > 0);
  }

 private:
  const std::string& name() const { return path_[0].name; }
  [[noreturn]] void fail_with(const carquet_error_t& error) const {
    fail("'{}': column '{}' cannot be read: {}", file_, name(), error.message);
  }

  // False behind the last entry.
  bool fill() {
    if (next_ < values_.size()) return true;
    next_ = 0;
    values_.clear();
    definitions_.assign(kEntriesPerRead, max_definition_);
    repetitions_.assign(kEntriesPerRead, 0);
    std::array<carquet_byte_array_t, kEntriesPerRead> raw;  // room for any of the types
    carquet_error_t error = CARQUET_ERROR_INIT;
    const int64_t n =
        carquet_column_read_batch_ex(reader_.get(), raw.data(), kEntriesPerRead,
                                     definitions_.data(), repetitions_.data(), &error);
    if (n < 0 || carquet_error_is_set(&error)) fail_with(error);
    size_t dense = 0;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const bool present = definitions_[i] == max_definition_;
      values_.push_back(present ? value_at(raw.data(), dense++) : Json());
    }
    return n > 0;
  }

  Json value_at(const void* raw, size_t i) const {
    switch (type_) {
      case CARQUET_PHYSICAL_BOOLEAN:
        return static_cast<const uint8_t*>(raw)[i] != 0;
      case CARQUET_PHYSICAL_INT32:
        return static_cast<const int32_t*>(raw)[i];
      case CARQUET_PHYSICAL_INT64:
        return static_cast<const int64_t*>(raw)[i];
      case CARQUET_PHYSICAL_FLOAT:
        return static_cast<const float*>(raw)[i];
      case CARQUET_PHYSICAL_DOUBLE:
        return static_cast<const double*>(raw)[i];
      default: {
        const auto& bytes = static_cast<const carquet_byte_array_t*>(raw)[i];
        return to_valid_utf8({reinterpret_cast<const char*>(bytes.data),
                              static_cast<size_t>(std::max(bytes.length, 0))});
      }
    }
  }

  // `element`: by level, which element of its list the last entry went to.
  void place_entry(Json* row, std::array<size_t, kMaxDepth>* element) {
    const int16_t definition = definitions_[next_];
    const int16_t repetition = repetitions_[next_];
    Json* at = row;
    for (const PathNode& node : path_) {
      at = &(*at)[node.name];  // makes an object of null
      if (node.repeated) {
        if (!at->is_array()) *at = Json::array();
        if (definition < node.definition) return;
        size_t& index = (*element)[static_cast<size_t>(node.repetition_level)];
        if (repetition < node.repetition_level) index = 0;
        if (repetition == node.repetition_level) ++index;
        while (at->size() <= index) at->push_back(nullptr);
        at = &(*at)[index];
      } else if (definition < node.definition) {
        return;  // null, as it was made
      }
    }
    *at = std::move(values_[next_]);
  }

  const std::string& file_;
  int32_t index_;
  std::vector<PathNode> path_;
  int type_ = 0;
  int16_t max_definition_ = 0;
  std::unique_ptr<carquet_column_reader_t, Closer> reader_;
  std::vector<Json> values_;  // of the entries that were read; null where there is none
  std::vector<int16_t> definitions_;
  std::vector<int16_t> repetitions_;
  size_t next_ = 0;
};

// Definition counts what is optional or repeated, repetition what is repeated, from the root on.
void set_levels(std::vector<PathNode>* path) {
  int16_t definition = 0;
  int16_t repetition = 0;
  for (PathNode& node : *path) {
    definition = static_cast<int16_t>(definition + (node.optional || node.repeated ? 1 : 0));
    repetition = static_cast<int16_t>(repetition + (node.repeated ? 1 : 0));
    node.definition = definition;
    node.repetition_level = repetition;
  }
}

// The groups between two columns of the schema's list of nodes are the new part of a path.
std::vector<std::vector<PathNode>> read_paths(const carquet_schema_t* schema,
                                              const std::string& file) {
  std::vector<std::vector<PathNode>> paths;
  std::vector<PathNode> groups;      // of the last column
  std::vector<PathNode> new_groups;  // since the last column
  for (int32_t i = 1; i < carquet_schema_num_elements(schema); ++i) {
    const carquet_schema_node_t* node = carquet_schema_get_element(schema, i);
    PathNode step;
    step.name = to_valid_utf8(carquet_schema_node_name(node));
    step.optional = carquet_schema_node_repetition(node) == CARQUET_REPETITION_OPTIONAL;
    step.repeated = carquet_schema_node_repetition(node) == CARQUET_REPETITION_REPEATED;
    const carquet_logical_type_t* logical = carquet_schema_node_logical_type(node);
    step.is_list = logical != nullptr && logical->id == CARQUET_LOGICAL_LIST;
    new_groups.push_back(step);
    if (!carquet_schema_node_is_leaf(node)) continue;
    std::array<const char*, kMaxDepth> names{};
    const auto index = static_cast<int32_t>(paths.size());
    const int32_t depth = carquet_schema_column_path(schema, index, names.data(), kMaxDepth);
    check(depth >= static_cast<int32_t>(new_groups.size()) && depth < kMaxDepth &&
              static_cast<size_t>(depth) - new_groups.size() <= groups.size(),
          "'{}': the schema cannot be understood", file);
    groups.resize(static_cast<size_t>(depth) - new_groups.size());
    groups.insert(groups.end(), new_groups.begin(), new_groups.end());
    new_groups.clear();
    paths.push_back(groups);
    set_levels(&paths.back());
    groups.pop_back();
  }
  return paths;
}

// What the rows look like, to take the wrapping off lists.
struct Tree {
  PathNode node;
  std::vector<Tree> children;

  void add(const std::vector<PathNode>& path, size_t depth = 0) {
    if (depth == path.size()) return;
    auto child = std::find_if(children.begin(), children.end(),
                              [&](const Tree& t) { return t.node.name == path[depth].name; });
    if (child == children.end()) child = children.insert(children.end(), Tree{path[depth], {}});
    child->add(path, depth + 1);
  }

  // {"list": [{"element": x}, …]} of a list group becomes [x, …].
  void unwrap(Json* value) const {
    if (value->is_array()) {
      for (Json& element : *value) unwrap_one(&element);
    } else {
      unwrap_one(value);
    }
  }

 private:
  void unwrap_one(Json* value) const {
    if (!value->is_object()) return;
    for (const Tree& child : children) child.unwrap(&(*value)[child.node.name]);
    if (!node.is_list || children.size() != 1 || !children[0].node.repeated) return;
    const Tree& repeated = children[0];
    Json list = std::move((*value)[repeated.node.name]);
    if (repeated.children.size() == 1 && repeated.node.name != "array") {
      for (Json& element : list) element = Json(std::move(element[repeated.children[0].node.name]));
    }
    *value = std::move(list);
  }
};

class ParquetRows : public RowReader {
 public:
  explicit ParquetRows(const std::string& path) : path_(path) {
    carquet_reader_options_t options;
    carquet_reader_options_init(&options);
    options.use_mmap = true;
    options.num_threads = 1;
    carquet_error_t error = CARQUET_ERROR_INIT;
    reader_.reset(carquet_reader_open(path.c_str(), &options, &error));
    check(reader_ != nullptr, "cannot read '{}' as Parquet: {}", path, error.message);
    const carquet_schema_t* schema = carquet_reader_schema(reader_.get());
    for (std::vector<PathNode>& column : read_paths(schema, path)) {
      tree_.add(column);
      columns_.emplace_back(path_, schema, static_cast<int32_t>(columns_.size()),
                            std::move(column));
    }
    check(!columns_.empty(), "'{}' has no columns", path);
  }

  bool next(Row* row) override {
    while (row_ == rows_in_group_) {
      if (row_group_ == carquet_reader_num_row_groups(reader_.get())) return false;
      open_group(row_group_++);
    }
    row->value = Json::object();
    for (Column& column : columns_) column.read_row(&row->value);
    tree_.unwrap(&row->value);
    ++row_;
    row->place = fmt::format("{}: row {}", path_, ++number_);
    return true;
  }
  Json cursor() const override {
    return {{"row_group", row_group_}, {"row", row_}, {"number", number_}};
  }
  void seek(const Json& cursor) override {
    row_group_ = cursor.at("row_group").get<int32_t>();
    const int64_t row = cursor.at("row").get<int64_t>();
    check(row_group_ >= 0 && row_group_ <= carquet_reader_num_row_groups(reader_.get()),
          "'{}' has fewer row groups than when its place was saved", path_);
    row_ = rows_in_group_ = 0;
    if (row_group_ > 0) {
      open_group(row_group_ - 1);
      check(row >= 0 && row <= rows_in_group_, "'{}' has fewer rows than when its place was saved",
            path_);
      Json passed_over;
      for (; row_ < row; ++row_) {
        passed_over = Json::object();
        for (Column& column : columns_) column.read_row(&passed_over);
      }
    }
    number_ = cursor.at("number").get<int64_t>();
  }

 private:
  void open_group(int32_t group) {
    carquet_row_group_metadata_t metadata{};
    check(carquet_reader_row_group_metadata(reader_.get(), group, &metadata) == CARQUET_OK,
          "'{}': row group {} cannot be read", path_, group);
    for (Column& column : columns_) column.open(reader_.get(), group);
    rows_in_group_ = metadata.num_rows;
    row_ = 0;
  }

  std::string path_;
  std::unique_ptr<carquet_reader_t, Closer> reader_;
  std::vector<Column> columns_;
  Tree tree_;
  int32_t row_group_ = 0;  // the next to open
  int64_t rows_in_group_ = 0;
  int64_t row_ = 0;  // in the open group
  int64_t number_ = 0;
};

}  // namespace

std::unique_ptr<RowReader> open_parquet_rows(const std::string& path) {
  return std::make_unique<ParquetRows>(path);
}

}  // namespace reft
