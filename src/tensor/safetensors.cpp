#include "tensor/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>
#include <unordered_set>

#include "base/file.h"
#include "base/json.h"
#include "tensor/tensor_table.h"

namespace reft {
namespace {

// What the reference implementation accepts at most.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct NamedDType {
  const char* name;
  DType dtype;
};
constexpr NamedDType kDTypes[] = {
    {"F32", DType::kF32},        {"F16", DType::kF16}, {"BF16", DType::kBF16},
    {"I32", DType::kI32},        {"I64", DType::kI64}, {"I8", DType::kI8},
    {"U8", DType::kU8},          {"F64", DType::kF64}, {"F8_E4M3", DType::kF8E4M3},
    {"F8_E5M2", DType::kF8E5M2}, {"I16", DType::kI16}, {"BOOL", DType::kBool}};

// SAX, because a DOM hides duplicate names and looks names up linearly. Base of the two handlers
// below: what they do not expect is an Error.
class StrictSax : public nlohmann::json_sax<Json> {
 public:
  explicit StrictSax(const std::string& what) : what_(what) {}
  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(int64_t) override { return unexpected("a negative number"); }
  bool number_unsigned(uint64_t) override { return unexpected("a number"); }
  bool number_float(double, const std::string&) override { return unexpected("a fraction"); }
  bool string(std::string&) override { return unexpected("a string"); }
  bool binary(Json::binary_t&) override { return unexpected("binary data"); }
  bool start_array(size_t) override { return unexpected("an array"); }
  bool end_array() override { return true; }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    fail("{}: invalid JSON at byte {}: {}", what_, position, e.what());
  }

 protected:
  virtual std::string place() const = 0;
  bool unexpected(const char* got) const { fail("{}: unexpected {} in {}", what_, got, place()); }
  void check_new(std::unordered_set<std::string>& seen, const std::string& name) const {
    check(seen.insert(name).second, "{}: '{}' occurs twice in {}", what_, name, place());
  }

  const std::string& what_;
};

// {"__metadata__": {key: string}, name: {"dtype": string, "shape": [n], "data_offsets": [begin,
// end]}}
class HeaderSax : public StrictSax {
 public:
  using StrictSax::StrictSax;
  std::vector<TensorLocation> take() { return std::move(tensors_); }

  bool start_object(size_t) override {
    if (depth_ == 2 || in_array_) return unexpected("an object");
    ++depth_;
    if (depth_ == 2) {
      fields_.clear();
      dtype_.reset();
      shape_.reset();
      offsets_.reset();
    }
    return true;
  }
  bool end_object() override {
    if (--depth_ == 1 && name_ != "__metadata__") finish_tensor();
    return true;
  }
  bool key(std::string& key) override {
    check_new(depth_ == 1 ? names_ : fields_, key);
    (depth_ == 1 ? name_ : field_) = key;
    if (depth_ == 1) field_.clear();
    return true;
  }
  bool string(std::string& value) override {
    if (depth_ != 2 || in_array_) return unexpected("a string");
    if (name_ == "__metadata__") return true;
    if (field_ != "dtype") return unexpected("a string");
    for (const NamedDType& known : kDTypes) {
      if (value == known.name) dtype_ = known.dtype;
    }
    check(dtype_.has_value(), "{}: tensor '{}' has the unknown dtype '{}'", what_, name_, value);
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || in_array_ || (field_ != "shape" && field_ != "data_offsets")) {
      return unexpected("an array");
    }
    in_array_ = true;
    (field_ == "shape" ? shape_ : offsets_).emplace();
    return true;
  }
  bool end_array() override {
    in_array_ = false;
    return true;
  }
  bool number_unsigned(uint64_t value) override {
    if (!in_array_) return unexpected("a number");
    std::vector<uint64_t>& values = field_ == "shape" ? *shape_ : *offsets_;
    check(values.size() < 64, "{}: {} is too long", what_, place());
    values.push_back(value);
    return true;
  }

 private:
  std::string place() const override {
    if (depth_ == 0) return "the header";
    if (depth_ == 1) return name_.empty() ? "the header" : fmt::format("the header at '{}'", name_);
    return fmt::format("tensor '{}', '{}'", name_, field_);
  }

  void finish_tensor() {
    check(dtype_ && shape_ && offsets_, "{}: tensor '{}' lacks dtype, shape or data_offsets", what_,
          name_);
    check(offsets_->size() == 2 && (*offsets_)[0] <= (*offsets_)[1],
          "{}: tensor '{}' has bad data_offsets", what_, name_);
    TensorLocation tensor;
    tensor.begin = (*offsets_)[0];
    tensor.end = (*offsets_)[1];
    uint64_t bytes = 0;
    try {
      std::vector<int64_t> sizes;
      for (const uint64_t size : *shape_) {
        check(size <= uint64_t{INT64_MAX}, "dimension {} overflows", size);
        sizes.push_back(static_cast<int64_t>(size));
      }
      tensor.entry = {name_, *dtype_, Shape(std::span<const int64_t>(sizes)), what_};
      bytes = packed_bytes(*dtype_, tensor.entry.shape);
    } catch (const Error& e) {
      fail("{}: tensor '{}': {}", what_, name_, e.what());
    }
    check(bytes == tensor.end - tensor.begin,
          "{}: tensor '{}' of {} {} needs {} bytes, but data_offsets give {}", what_, name_,
          dtype_name(*dtype_), tensor.entry.shape.str(), bytes, tensor.end - tensor.begin);
    tensors_.push_back(std::move(tensor));
  }

  int depth_ = 0;
  bool in_array_ = false;
  std::string name_;
  std::string field_;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> fields_;
  std::optional<DType> dtype_;
  std::optional<std::vector<uint64_t>> shape_;
  std::optional<std::vector<uint64_t>> offsets_;
  std::vector<TensorLocation> tensors_;
};

// {"metadata": {...}, "weight_map": {name: file}}
class IndexSax : public StrictSax {
 public:
  using StrictSax::StrictSax;
  std::vector<std::pair<std::string, std::string>> weight_map;

  bool start_object(size_t) override {
    ++depth_;
    check(depth_ <= 64, "{}: nested too deeply", what_);
    if (depth_ == 2 && section_ == "weight_map") found_ = true;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool key(std::string& key) override {
    if (depth_ == 1) section_ = key;
    if (in_map()) {
      check_new(names_, key);
      name_ = key;
    }
    return true;
  }
  bool string(std::string& value) override {
    if (in_map()) {
      const bool plain = !value.empty() && value.find('/') == std::string::npos && value != ".." &&
                         value.find('\0') == std::string::npos;
      check(plain, "{}: tensor '{}' lies in '{}', which is not a file name", what_, name_, value);
      weight_map.emplace_back(name_, value);
    }
    return true;
  }
  bool start_array(size_t) override { return other("an array"); }
  bool null() override { return other("null"); }
  bool boolean(bool) override { return other("a boolean"); }
  bool number_integer(int64_t) override { return other("a number"); }
  bool number_unsigned(uint64_t) override { return other("a number"); }
  bool number_float(double, const std::string&) override { return other("a number"); }
  bool found() const { return found_; }

 private:
  std::string place() const override {
    return section_.empty() ? "the index" : "'" + section_ + "'";
  }
  bool in_map() const { return depth_ == 2 && section_ == "weight_map"; }
  bool other(const char* got) const {
    if (depth_ == 0 || section_ == "weight_map") return unexpected(got);
    return true;
  }

  int depth_ = 0;
  bool found_ = false;
  std::string section_;
  std::string name_;
  std::unordered_set<std::string> names_;
};

void run_sax(std::string_view text, StrictSax& sax) {
  nlohmann::json::input_format_t format = nlohmann::json::input_format_t::json;
  Json::sax_parse(text.begin(), text.end(), &sax, format);
}

// Tensors with their positions in the file, sorted by position.
std::vector<TensorLocation> parse_header(std::span<const std::byte> file, const std::string& what) {
  check(file.size() >= 8, "{}: {} bytes are too short for a safetensors file", what, file.size());
  uint64_t header_bytes;
  std::memcpy(&header_bytes, file.data(), 8);
  check(header_bytes <= kMaxHeaderBytes,
        "{}: the header length {} is over the limit of {}: not a safetensors file?", what,
        header_bytes, kMaxHeaderBytes);
  check(header_bytes <= file.size() - 8,
        "{}: the header length {} is beyond the end of the file ({} bytes)", what, header_bytes,
        file.size());
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, header_bytes);
  check(!text.empty() && text.front() == '{', "{}: the header is not a JSON object", what);
  HeaderSax sax(what);
  run_sax(text, sax);
  std::vector<TensorLocation> tensors = sax.take();

  const uint64_t data_bytes = file.size() - 8 - header_bytes;
  for (const TensorLocation& t : tensors) {
    check(t.end <= data_bytes,
          "{}: tensor '{}' ends at byte {} of the data, which has only {} bytes: the file is cut "
          "short",
          what, t.entry.name, t.end, data_bytes);
  }
  check_disjoint(tensors, what);
  uint64_t position = 0;
  for (TensorLocation& t : tensors) {
    check(t.begin == position, "{}: {} unused bytes before tensor '{}'", what, t.begin - position,
          t.entry.name);
    position = t.end;
    t.begin += 8 + header_bytes;
    t.end += 8 + header_bytes;
  }
  check(position == data_bytes, "{}: {} unused bytes after the last tensor", what,
        data_bytes - position);
  return tensors;
}

class SafetensorsReader : public CheckpointReader {
 public:
  explicit SafetensorsReader(const std::string& path) {
    if (path.ends_with(".json")) {
      add_shards(path);
    } else {
      add_file(path, {});
    }
  }
  const std::vector<TensorEntry>& entries() const override { return table_.entries(); }
  bool contains(const std::string& name) const override { return table_.find(name) != nullptr; }
  Tensor read(const std::string& name) const override { return table_.read(name); }
  void release_pages() const override { table_.release_pages(); }

 private:
  using WeightMap = std::unordered_map<std::string, std::string>;

  void add_shards(const std::string& index_path) {
    const MappedFile index(index_path);
    IndexSax sax(index_path);
    run_sax(index.text(), sax);
    check(sax.found(), "{}: no 'weight_map'", index_path);
    const WeightMap listed(sax.weight_map.begin(), sax.weight_map.end());
    std::vector<std::string> shards;
    for (const auto& [name, shard] : sax.weight_map) shards.push_back(shard);
    std::sort(shards.begin(), shards.end());
    shards.erase(std::unique(shards.begin(), shards.end()), shards.end());

    const auto folder = std::filesystem::path(index_path).parent_path();
    for (const std::string& shard : shards) {
      const std::string path = (folder / shard).string();
      std::error_code ignored;
      check(std::filesystem::exists(path, ignored), "{}: shard '{}' is missing", index_path, path);
      add_file(path, listed);
    }
    for (const auto& [name, shard] : sax.weight_map) {
      check(table_.find(name) != nullptr, "{}: tensor '{}' is not in '{}', where the index has it",
            index_path, name, shard);
    }
  }

  // Where the index has a tensor in another shard, that shard's copy counts.
  void add_file(const std::string& path, const WeightMap& listed) {
    auto file = std::make_shared<const MappedFile>(path);
    std::vector<TensorLocation> tensors = parse_header(file->bytes(), path);
    const size_t number = table_.add_file(std::move(file));
    const std::string shard = std::filesystem::path(path).filename().string();
    for (TensorLocation& tensor : tensors) {
      const auto it = listed.find(tensor.entry.name);
      if (it == listed.end() || it->second == shard) table_.add(number, std::move(tensor));
    }
  }

  TensorTable table_;
};

}  // namespace

std::unique_ptr<CheckpointReader> open_safetensors(const std::string& path) {
  return std::make_unique<SafetensorsReader>(path);
}

std::vector<TensorEntry> parse_safetensors_header(std::span<const std::byte> file,
                                                  const std::string& what) {
  std::vector<TensorEntry> entries;
  for (TensorLocation& tensor : parse_header(file, what))
    entries.push_back(std::move(tensor.entry));
  return entries;
}

const char* safetensors_dtype(DType dtype) {
  for (const NamedDType& known : kDTypes) {
    if (known.dtype == dtype) return known.name;
  }
  return nullptr;
}

}  // namespace reft
