#include "tensor/gguf_writer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <set>

#include "base/temporary_file.h"
#include "base/thread_pool.h"
#include "tensor/dequantize.h"
#include "tensor/tensor_table.h"

namespace reft {
namespace {

constexpr uint64_t kAlignment = 32;
constexpr float kLargestHalf = 65504.0f;

// Numbers of GGUF's value types.
enum ValueType : uint32_t {
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11
};

// The number of a dtype in GGUF; −1 where it has none that is written here.
int ggml_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ5_0:
      return 6;
    case DType::kQ5_1:
      return 7;
    case DType::kQ8_0:
      return 8;
    case DType::kQ4_K:
      return 12;
    case DType::kBF16:
      return 30;
    default:
      return -1;
  }
}

// Little-endian values one after the other, as on every machine that is built for.
class Buffer {
 public:
  template <class T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void text(const std::string& value) {
    number(uint64_t{value.size()});
    bytes_ += value;
  }
  void pad() { bytes_.resize((bytes_.size() + kAlignment - 1) / kAlignment * kAlignment); }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

template <class T>
bool fits(int64_t value) {
  return value >= int64_t{std::numeric_limits<T>::min()} &&
         value <= static_cast<int64_t>(std::numeric_limits<T>::max());
}

// Writes a value behind its key.
struct ValueWriter {
  Buffer& out;

  void operator()(bool value) const {
    out.number(uint32_t{kBool});
    out.number(uint8_t{value});
  }
  void operator()(int64_t value) const {
    if (fits<uint32_t>(value)) {
      out.number(uint32_t{kUint32});
      out.number(static_cast<uint32_t>(value));
    } else if (fits<int32_t>(value)) {
      out.number(uint32_t{kInt32});
      out.number(static_cast<int32_t>(value));
    } else {
      out.number(uint32_t{kInt64});
      out.number(value);
    }
  }
  void operator()(double value) const {
    out.number(uint32_t{kFloat32});
    out.number(static_cast<float>(value));
  }
  void operator()(const std::string& value) const {
    out.number(uint32_t{kString});
    out.text(value);
  }
  void operator()(const std::vector<int64_t>& values) const {
    const bool narrow = std::ranges::all_of(values, fits<int32_t>);
    begin_list(narrow ? kInt32 : kInt64, values.size());
    for (const int64_t value : values) {
      if (narrow) {
        out.number(static_cast<int32_t>(value));
      } else {
        out.number(value);
      }
    }
  }
  void operator()(const std::vector<double>& values) const {
    begin_list(kFloat32, values.size());
    for (const double value : values) out.number(static_cast<float>(value));
  }
  void operator()(const std::vector<std::string>& values) const {
    begin_list(kString, values.size());
    for (const std::string& value : values) out.text(value);
  }
  void operator()(const std::vector<bool>& values) const {
    begin_list(kBool, values.size());
    for (const bool value : values) out.number(uint8_t{value});
  }

 private:
  void begin_list(ValueType type, size_t size) const {
    out.number(uint32_t{kArray});
    out.number(uint32_t{type});
    out.number(uint64_t{size});
  }
};

uint64_t aligned(uint64_t position) {
  return (position + kAlignment - 1) / kAlignment * kAlignment;
}

std::string header_of(const std::string& path, const GgufMetadata& metadata,
                      const std::vector<GgufTensor>& tensors) {
  Buffer out;
  out.number(uint32_t{0x46554747});  // "GGUF"
  out.number(uint32_t{3});
  out.number(uint64_t{tensors.size()});
  out.number(uint64_t{metadata.size()});
  for (const auto& [key, value] : metadata) {
    out.text(key);
    std::visit(ValueWriter{out}, value);
  }
  uint64_t position = 0;
  std::set<std::string> names;
  for (const GgufTensor& t : tensors) {
    check(names.insert(t.name).second, "{}: the name '{}' is taken", path, t.name);
    check(gguf_can_hold(t.dtype), "{}: tensor '{}' is {}, which is not written to GGUF files", path,
          t.name, dtype_name(t.dtype));
    check(t.shape.dims() >= 1 && t.shape.dims() <= 4, "{}: tensor '{}' has {} dimensions", path,
          t.name, t.shape.dims());
    out.text(t.name);
    out.number(static_cast<uint32_t>(t.shape.dims()));
    for (int i = t.shape.dims() - 1; i >= 0; --i) out.number(static_cast<uint64_t>(t.shape[i]));
    out.number(static_cast<uint32_t>(ggml_type(t.dtype)));
    out.number(position);
    position = aligned(position + packed_bytes(t.dtype, t.shape));
  }
  out.pad();
  return out.bytes();
}

}  // namespace

bool gguf_can_hold(DType dtype) { return ggml_type(dtype) >= 0; }

void write_gguf(const std::string& path, const GgufMetadata& metadata,
                const std::vector<GgufTensor>& tensors) {
  TemporaryFile file(path);
  const std::string header = header_of(path, metadata, tensors);
  file.write(header.data(), header.size());
  for (const GgufTensor& t : tensors) {
    const Tensor value = t.make().contiguous();
    check(value.dtype() == t.dtype && value.shape() == t.shape,
          "{}: tensor '{}' is {}, it was to be {} {}", path, t.name, value, dtype_name(t.dtype),
          t.shape);
    const auto bytes = static_cast<uint64_t>(value.nbytes());
    file.write(value.raw(), bytes);
    const std::string padding(aligned(bytes) - bytes, '\0');
    file.write(padding.data(), padding.size());
  }
  file.commit();
}

Tensor quantized(const Tensor& value, DType dtype) {
  if (value.dtype() == dtype) return value.contiguous();
  const Tensor source = value.contiguous();
  Tensor result = Tensor::empty(source.shape(), dtype);
  const int64_t columns = source.size(-1);
  const int64_t rows = columns == 0 ? 0 : source.numel() / columns;
  const int64_t from = row_bytes(source.dtype(), columns), to = row_bytes(dtype, columns);
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(columns, 1));
  std::atomic<bool> overflow = false;
  compute_pool().parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(columns));
    for (int64_t row = begin; row < end; ++row) {
      dequantize_row(source.dtype(), source.raw() + row * from, values.data(), columns);
      quantize_row(dtype, values.data(), result.raw() + row * to, columns);
      const auto lost = [](float x) { return std::isfinite(x) && std::fabs(x) > kLargestHalf; };
      if (dtype == DType::kF16 && std::ranges::any_of(values, lost)) overflow = true;
    }
  });
  check(!overflow, "a value is beyond the range of float16: bfloat16 or float32 hold it");
  return result;
}

}  // namespace reft
