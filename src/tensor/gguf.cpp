#include "tensor/gguf.h"

#include <bit>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "tensor/gguf_split.h"
#include "tensor/tensor_table.h"

namespace reft {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kMaxDimsInFile = 4;

enum ValueType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

// ggml_type -> ours; kCount where there is none.
DType dtype_of_ggml(uint32_t type) {
  switch (type) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 3:
      return DType::kQ4_1;
    case 6:
      return DType::kQ5_0;
    case 7:
      return DType::kQ5_1;
    case 8:
      return DType::kQ8_0;
    case 10:
      return DType::kQ2_K;
    case 11:
      return DType::kQ3_K;
    case 12:
      return DType::kQ4_K;
    case 13:
      return DType::kQ5_K;
    case 14:
      return DType::kQ6_K;
    case 20:
      return DType::kIQ4_NL;
    case 24:
      return DType::kI8;
    case 25:
      return DType::kI16;
    case 26:
      return DType::kI32;
    case 27:
      return DType::kI64;
    case 28:
      return DType::kF64;
    case 30:
      return DType::kBF16;
    case 39:
      return DType::kMXFP4;
    default:
      return DType::kCount;
  }
}

// Names of the types that exist but are not read, for the error.
const char* ggml_type_name(uint32_t type) {
  switch (type) {
    case 9:
      return "Q8_1";
    case 15:
      return "Q8_K";
    case 16:
      return "IQ2_XXS";
    case 17:
      return "IQ2_XS";
    case 18:
      return "IQ3_XXS";
    case 19:
      return "IQ1_S";
    case 21:
      return "IQ3_S";
    case 22:
      return "IQ2_S";
    case 23:
      return "IQ4_XS";
    case 29:
      return "IQ1_M";
    case 34:
      return "TQ1_0";
    case 35:
      return "TQ2_0";
    case 40:
      return "NVFP4";
    default:
      return "unknown";
  }
}

// Reads little-endian values; every read checks what is left.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& what) : bytes_(bytes), what_(what) {}

  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }

  template <class T>
  T number(std::string_view field) {
    need(sizeof(T), field);
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  std::string text(std::string_view field) {
    const auto length = number<uint64_t>(field);
    need(length, field);
    std::string value(reinterpret_cast<const char*>(bytes_.data()) + position_, length);
    position_ += length;
    return value;
  }

  bool boolean(std::string_view field) {
    const auto value = number<uint8_t>(field);
    check(value <= 1, "{}: {} is the boolean {}", what_, field, value);
    return value == 1;
  }

  void need(uint64_t bytes, std::string_view field) const {
    check(bytes <= left(), "{}: {} at byte {} needs {} bytes, but the file has {} more", what_,
          field, position_, bytes, left());
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& what_;
  size_t position_ = 0;
};

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& what)
      : bytes_(bytes), what_(what), in_(bytes, what) {}

  std::map<std::string, GgufValue> metadata;
  std::vector<TensorLocation> tensors;

  void run() {
    read_header();
    for (uint64_t i = 0; i < num_values_; ++i) read_pair();
    read_alignment();
    for (uint64_t i = 0; i < num_tensors_; ++i) read_tensor();
    place_tensors();
  }

 private:
  void read_header() {
    check(bytes_.size() >= 24, "{}: {} bytes are too short for a GGUF file", what_, bytes_.size());
    check(in_.number<uint32_t>("magic") == kMagic, "{}: not a GGUF file", what_);
    const auto version = in_.number<uint32_t>("version");
    check((version & 0xffff) != 0 || version == 0, "{}: big-endian GGUF files are not supported",
          what_);
    check(version == 2 || version == 3, "{}: GGUF version {} is not supported (2 and 3 are)", what_,
          version);
    num_tensors_ = in_.number<uint64_t>("tensor count");
    num_values_ = in_.number<uint64_t>("metadata count");
    // A pair takes at least 13 bytes, a tensor at least 24.
    check(num_values_ <= in_.left() / 13, "{}: {} metadata values cannot be in a file of {} bytes",
          what_, num_values_, bytes_.size());
    check(num_tensors_ <= in_.left() / 24, "{}: {} tensors cannot be in a file of {} bytes", what_,
          num_tensors_, bytes_.size());
  }

  void read_pair() {
    std::string key = in_.text("a metadata key");
    const auto type = in_.number<uint32_t>(key);
    GgufValue value = type == kArray ? read_array(key) : read_scalar(key, type);
    const auto [it, added] = metadata.try_emplace(std::move(key), std::move(value));
    check(added, "{}: metadata key '{}' occurs twice", what_, it->first);
  }

  int64_t read_uint64(const std::string& key) {
    const auto value = in_.number<uint64_t>(key);
    check(value <= uint64_t{INT64_MAX}, "{}: metadata '{}' is too large: {}", what_, key, value);
    return static_cast<int64_t>(value);
  }

  int64_t read_integer(const std::string& key, uint32_t type) {
    switch (type) {
      case kUint8:
        return in_.number<uint8_t>(key);
      case kInt8:
        return in_.number<int8_t>(key);
      case kUint16:
        return in_.number<uint16_t>(key);
      case kInt16:
        return in_.number<int16_t>(key);
      case kUint32:
        return in_.number<uint32_t>(key);
      case kInt32:
        return in_.number<int32_t>(key);
      case kInt64:
        return in_.number<int64_t>(key);
      case kUint64:
        return read_uint64(key);
      default:
        fail("{}: metadata '{}' has the unknown value type {}", what_, key, type);
    }
  }

  GgufValue read_scalar(const std::string& key, uint32_t type) {
    switch (type) {
      case kFloat32:
        return static_cast<double>(in_.number<float>(key));
      case kFloat64:
        return in_.number<double>(key);
      case kBool:
        return in_.boolean(key);
      case kString:
        return in_.text(key);
      default:
        return read_integer(key, type);
    }
  }

  template <class T, class Read>
  std::vector<T> read_elements(uint64_t count, Read read) {
    std::vector<T> values;
    values.reserve(static_cast<size_t>(count));
    for (uint64_t i = 0; i < count; ++i) values.push_back(read());
    return values;
  }

  GgufValue read_array(const std::string& key) {
    const auto type = in_.number<uint32_t>(key);
    const auto count = in_.number<uint64_t>(key);
    check(type != kArray, "{}: metadata '{}' is an array of arrays, which is not supported", what_,
          key);
    check(type <= kFloat64, "{}: metadata '{}' has the unknown value type {}", what_, key, type);
    static constexpr uint64_t kSizes[] = {1, 1, 2, 2, 4, 4, 4,
                                          1, 8, 0, 8, 8, 8};  // a string: its length
    check(count <= in_.left() / kSizes[type],
          "{}: metadata '{}' has {} elements, more than the file holds", what_, key, count);
    switch (type) {
      case kFloat32:
        return read_elements<double>(count,
                                     [&] { return static_cast<double>(in_.number<float>(key)); });
      case kFloat64:
        return read_elements<double>(count, [&] { return in_.number<double>(key); });
      case kBool:
        return read_elements<bool>(count, [&] { return in_.boolean(key); });
      case kString:
        return read_elements<std::string>(count, [&] { return in_.text(key); });
      default:
        return read_elements<int64_t>(count, [&] { return read_integer(key, type); });
    }
  }

  void read_alignment() {
    const auto it = metadata.find("general.alignment");
    if (it == metadata.end()) return;
    const int64_t* value = std::get_if<int64_t>(&it->second);
    check(value != nullptr && *value > 0 && *value <= (int64_t{1} << 30) &&
              std::has_single_bit(static_cast<uint64_t>(*value)),
          "{}: general.alignment is not a power of two", what_);
    alignment_ = static_cast<uint64_t>(*value);
  }

  void read_tensor() {
    TensorLocation tensor;
    tensor.entry.name = in_.text("a tensor name");
    tensor.entry.file = what_;
    const std::string& name = tensor.entry.name;
    const auto num_dims = in_.number<uint32_t>(name);
    check(num_dims <= kMaxDimsInFile, "{}: tensor '{}' has {} dimensions, over the limit of {}",
          what_, name, num_dims, kMaxDimsInFile);
    std::vector<int64_t> sizes(num_dims);
    for (auto size = sizes.rbegin(); size != sizes.rend(); ++size) {
      const auto value = in_.number<uint64_t>(name);
      check(value <= uint64_t{INT64_MAX}, "{}: tensor '{}' has a dimension of {}", what_, name,
            value);
      *size = static_cast<int64_t>(value);
    }
    const auto type = in_.number<uint32_t>(name);
    tensor.entry.dtype = dtype_of_ggml(type);
    check(tensor.entry.dtype != DType::kCount,
          "{}: tensor '{}' has the ggml type {} ({}), which is not supported", what_, name, type,
          ggml_type_name(type));
    tensor.begin = in_.number<uint64_t>(name);
    check(tensor.begin % alignment_ == 0,
          "{}: tensor '{}' lies at offset {}, which is not a multiple of {}", what_, name,
          tensor.begin, alignment_);
    uint64_t bytes = 0;
    try {
      tensor.entry.shape = Shape(std::span<const int64_t>(sizes));
      bytes = packed_bytes(tensor.entry.dtype, tensor.entry.shape);
    } catch (const Error& e) {
      fail("{}: tensor '{}': {}", what_, name, e.what());
    }
    check(!__builtin_add_overflow(tensor.begin, bytes, &tensor.end),
          "{}: tensor '{}': its offset {} overflows", what_, name, tensor.begin);
    tensors.push_back(std::move(tensor));
  }

  void place_tensors() {
    const uint64_t data = (in_.position() + alignment_ - 1) / alignment_ * alignment_;
    const uint64_t data_bytes = bytes_.size() > data ? bytes_.size() - data : 0;
    for (const TensorLocation& tensor : tensors) {
      check(tensor.end <= data_bytes,
            "{}: tensor '{}' ends at byte {} of the data, which has only {} bytes: the file is cut "
            "short",
            what_, tensor.entry.name, tensor.end, data_bytes);
    }
    check_disjoint(tensors, what_);
    for (TensorLocation& tensor : tensors) {
      // Empty tensors at the end of a file without data must still point into it.
      tensor.begin = tensor.begin == tensor.end ? 0 : tensor.begin + data;
      tensor.end += data;
    }
  }

  std::span<const std::byte> bytes_;
  const std::string& what_;
  Cursor in_;
  uint64_t num_tensors_ = 0;
  uint64_t num_values_ = 0;
  uint64_t alignment_ = 32;
};

class GgufFiles : public GgufReader {
 public:
  explicit GgufFiles(const std::string& path) : path_(path) {
    load(path);
    const int64_t count = get<int64_t>("split.count", 0);
    if (count > 1) load_splits(count);
  }
  GgufFiles(std::span<const std::byte> bytes, const std::string& what) : path_(what) {
    Parser parser(bytes, what);
    parser.run();
    keep(parser, table_.add_bytes(bytes));
  }

  const std::vector<TensorEntry>& entries() const override { return table_.entries(); }
  bool contains(const std::string& name) const override { return table_.find(name) != nullptr; }
  Tensor read(const std::string& name) const override { return table_.read(name); }
  void release_pages() const override { table_.release_pages(); }
  const std::map<std::string, GgufValue>& metadata() const override { return metadata_; }
  const std::string& path() const override { return path_; }

 private:
  void load(const std::string& path) {
    auto file = std::make_shared<const MappedFile>(path);
    Parser parser(file->bytes(), path);
    parser.run();
    keep(parser, table_.add_file(std::move(file)));
  }
  void keep(Parser& parser, size_t file) {
    for (TensorLocation& tensor : parser.tensors) table_.add(file, std::move(tensor));
    metadata_ = std::move(parser.metadata);
  }

  void load_splits(int64_t count) {
    const auto name = parse_gguf_split_name(path_);
    check(name && name->count == count,
          "{}: one of {} files, which must be named like 'name-00001-of-{:05}.gguf'", path_, count,
          count);
    const int64_t total = get<int64_t>("split.tensors.count", -1);
    table_ = {};
    std::map<std::string, GgufValue> first;
    for (int64_t n = 1; n <= count; ++n) {
      path_ = name->path(n);
      std::error_code ignored;
      check(std::filesystem::exists(path_, ignored), "'{}' is missing, the file {} of {}", path_, n,
            count);
      load(path_);
      check(get<int64_t>("split.count", 0) == count && get<int64_t>("split.no", -1) == n - 1,
            "{}: its metadata does not say that it is the file {} of {}", path_, n, count);
      if (n == 1) first = std::move(metadata_);
    }
    metadata_ = std::move(first);
    path_ = name->path(1);
    check(total < 0 || total == static_cast<int64_t>(entries().size()),
          "{}: split.tensors.count is {}, but the {} files hold {} tensors", path_, total, count,
          entries().size());
  }

  std::string path_;
  TensorTable table_;
  std::map<std::string, GgufValue> metadata_;
};

// `value` as T, with the widenings that GgufReader::get promises.
template <class T>
bool convert(const GgufValue& value, T& out) {
  if (const T* same = std::get_if<T>(&value)) {
    out = *same;
    return true;
  }
  if constexpr (std::is_same_v<T, int64_t>) {
    if (const bool* flag = std::get_if<bool>(&value)) return out = *flag ? 1 : 0, true;
  } else if constexpr (std::is_same_v<T, double>) {
    if (const int64_t* number = std::get_if<int64_t>(&value))
      return out = static_cast<double>(*number), true;
  } else if constexpr (requires { typename T::value_type; } && !std::is_same_v<T, std::string>) {
    using Element = typename T::value_type;
    return std::visit(
        [&](const auto& other) {
          using Other = std::remove_cvref_t<decltype(other)>;
          if constexpr (requires { typename Other::value_type; } &&
                        !std::is_same_v<Other, std::string>) {
            using From = typename Other::value_type;
            if (other.empty()) return out.clear(), true;
            if constexpr ((std::is_same_v<Element, int64_t> && std::is_same_v<From, bool>) ||
                          (std::is_same_v<Element, double> && std::is_same_v<From, int64_t>)) {
              return out.assign(other.begin(), other.end()), true;
            }
          }
          return false;
        },
        value);
  }
  return false;
}

}  // namespace

template <class T>
T GgufReader::require(const std::string& key) const {
  const auto it = metadata().find(key);
  check(it != metadata().end(), "{}: no metadata '{}'", path(), key);
  T value{};
  check(convert(it->second, value), "{}: metadata '{}' has the wrong type", path(), key);
  return value;
}

template <class T>
T GgufReader::get(const std::string& key, T fallback) const {
  return metadata().contains(key) ? require<T>(key) : fallback;
}

template bool GgufReader::get(const std::string&, bool) const;
template int64_t GgufReader::get(const std::string&, int64_t) const;
template double GgufReader::get(const std::string&, double) const;
template std::string GgufReader::get(const std::string&, std::string) const;
template std::vector<int64_t> GgufReader::get(const std::string&, std::vector<int64_t>) const;
template std::vector<double> GgufReader::get(const std::string&, std::vector<double>) const;
template std::vector<std::string> GgufReader::get(const std::string&,
                                                  std::vector<std::string>) const;
template std::vector<bool> GgufReader::get(const std::string&, std::vector<bool>) const;
template bool GgufReader::require(const std::string&) const;
template int64_t GgufReader::require(const std::string&) const;
template double GgufReader::require(const std::string&) const;
template std::string GgufReader::require(const std::string&) const;
template std::vector<int64_t> GgufReader::require(const std::string&) const;
template std::vector<double> GgufReader::require(const std::string&) const;
template std::vector<std::string> GgufReader::require(const std::string&) const;
template std::vector<bool> GgufReader::require(const std::string&) const;

std::unique_ptr<GgufReader> open_gguf(const std::string& path) {
  return std::make_unique<GgufFiles>(path);
}

std::unique_ptr<GgufReader> parse_gguf(std::span<const std::byte> file, const std::string& what) {
  return std::make_unique<GgufFiles>(file, what);
}

}  // namespace reft
