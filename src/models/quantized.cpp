#include "models/quantized.h"

#include "models/config.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/thread_pool.h"
#include "ops/weight.h"
#include "tensor/dequantize.h"
#include "tensor/float_types.h"

namespace reft {

namespace {

constexpr const char* kMethods = "fp8, fbgemm_fp8, compressed-tensors, modelopt, awq, gptq";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const Json* child(const Json& json, const char* key) {
  if (!json.is_object()) return nullptr;
  const auto it = json.find(key);
  return it == json.end() || it->is_null() ? nullptr : &*it;
}

std::string text_of(const Json& json, const char* key) {
  const Json* value = child(json, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : "";
}

int64_t integer_of(const Json& json, const char* key, int64_t otherwise) {
  const Json* value = child(json, key);
  return value != nullptr && value->is_number_integer() ? value->get<int64_t>() : otherwise;
}

// Rows of w at a time: their codes stay in a core's cache.
constexpr int64_t kRowsAtOnce = 64;
// The output column of nibble i in a word of AWQ.
constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// w = s (q - z): unsigned codes of a packed matrix, for rows [begin, end) of w.
struct UnpackedRows {
  std::vector<uint8_t> q;  // [rows, K]
  std::vector<int32_t> z;  // [rows, G]
  std::vector<float> s;    // [rows, G]
};

class Unpacker {
 public:
  using Form = QuantizedMatrix::Form;

  Unpacker(const QuantizedMatrix& matrix, const CheckpointReader& reader, int zero_offset)
      : form_(matrix.form),
        bits_(matrix.bits),
        per_word_(32 / matrix.bits),
        zero_offset_(zero_offset),
        n_(matrix.shape[0]),
        k_(matrix.shape[1]),
        codes_(reader.read(matrix.codes->name).contiguous()),
        scales_(reader.read(matrix.scales->name).to(DType::kF32).contiguous()),
        groups_(scales_.size(form_ == Form::kCompressedTensors ? 1 : 0)) {
    if (matrix.zeros != nullptr) zeros_ = reader.read(matrix.zeros->name).contiguous();
  }

  int64_t num_groups() const { return groups_; }

  int32_t zero(int64_t n, int64_t g) const {
    if (!zeros_.defined()) return 1 << (bits_ - 1);
    const uint32_t* words = words_of(zeros_);
    const int64_t width = ceil_div(n_, per_word_);
    if (form_ == Form::kCompressedTensors)
      return part(words[n / per_word_ * groups_ + g], static_cast<int>(n % per_word_));
    int place = static_cast<int>(n % per_word_);
    if (form_ == Form::kAwq) {
      place = static_cast<int>(std::find(kAwqOrder, kAwqOrder + 8, place) - kAwqOrder);
    }
    return part(words[g * width + n / per_word_], place) + zero_offset_;
  }

  float scale(int64_t n, int64_t g) const {
    const float* s = scales_.data<float>();
    return form_ == Form::kCompressedTensors ? s[n * groups_ + g] : s[g * n_ + n];
  }

  bool all_zeros_are(int32_t value) const {
    for (int64_t n = 0; n < n_; ++n) {
      for (int64_t g = 0; g < groups_; ++g) {
        if (zero(n, g) != value) return false;
      }
    }
    return true;
  }

  void rows(int64_t begin, int64_t end, UnpackedRows& out) const {
    const uint32_t* words = words_of(codes_);
    const auto store = [&](int64_t n, int64_t k, int32_t code) {
      if (n < end && k < k_)
        out.q[static_cast<size_t>((n - begin) * k_ + k)] = static_cast<uint8_t>(code);
    };
    out.q.resize(static_cast<size_t>((end - begin) * k_));
    if (form_ == Form::kAwq) {
      const int64_t width = ceil_div(n_, 8);
      for (int64_t k = 0; k < k_; ++k) {
        for (int64_t w = begin / 8; w < ceil_div(end, 8); ++w) {
          for (int i = 0; i < 8; ++i) store(w * 8 + kAwqOrder[i], k, part(words[k * width + w], i));
        }
      }
    } else if (form_ == Form::kGptq) {
      for (int64_t w = 0; w < ceil_div(k_, per_word_); ++w) {
        for (int64_t n = begin; n < end; ++n) {
          for (int i = 0; i < per_word_; ++i)
            store(n, w * per_word_ + i, part(words[w * n_ + n], i));
        }
      }
    } else {
      const int64_t width = ceil_div(k_, per_word_);
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t w = 0; w < width; ++w) {
          for (int i = 0; i < per_word_; ++i)
            store(n, w * per_word_ + i, part(words[n * width + w], i));
        }
      }
    }
    out.z.resize(static_cast<size_t>((end - begin) * groups_));
    out.s.resize(out.z.size());
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t g = 0; g < groups_; ++g) {
        out.z[static_cast<size_t>((n - begin) * groups_ + g)] = zero(n, g);
        out.s[static_cast<size_t>((n - begin) * groups_ + g)] = scale(n, g);
      }
    }
  }

 private:
  static const uint32_t* words_of(const Tensor& t) {
    return reinterpret_cast<const uint32_t*>(t.data<int32_t>());
  }
  int32_t part(uint32_t word, int i) const {
    return static_cast<int32_t>(word >> (bits_ * i) & ((1u << bits_) - 1));
  }

  Form form_;
  int bits_;
  int per_word_;
  int zero_offset_;
  int64_t n_, k_;
  Tensor codes_, scales_, zeros_;
  int64_t groups_;
};

void store_half(uint8_t* at, float value) {
  const f16 half = to_f16(value);
  std::memcpy(at, &half, sizeof(half));
}

// 32 codes of one group as a block.
void write_block(DType dtype, const uint8_t* q, int32_t z, float s, uint8_t* to) {
  store_half(to, s);
  if (dtype == DType::kQ8_0) {
    for (int i = 0; i < 32; ++i) to[2 + i] = static_cast<uint8_t>(q[i] - 128);
    return;
  }
  if (dtype == DType::kQ4_1) store_half(to + 2, -static_cast<float>(z) * s);
  uint8_t* nibbles = to + (dtype == DType::kQ4_1 ? 4 : 2);
  for (int i = 0; i < 16; ++i) nibbles[i] = static_cast<uint8_t>(q[i] | q[i + 16] << 4);
}

}  // namespace

QuantizedTensors::QuantizedTensors(const Json& config, const CheckpointReader* reader, Find find)
    : reader_(reader), find_(std::move(find)) {
  const Json* quantization = child(config, "quantization_config");
  if (quantization == nullptr) return;
  method_ = text_of(*quantization, "quant_method");
  // Early exports of the compressed-tensors library name no method.
  if (method_.empty() && child(*quantization, "config_groups") != nullptr)
    method_ = "compressed-tensors";
  const auto refuse = [&](const std::string& what) {
    fail("config.json: quantization_config: {} is not supported; known are {}", what, kMethods);
  };
  if (method_ == "fp8" || method_ == "fbgemm_fp8") {
    const std::string format = text_of(*quantization, "fmt");
    if (!format.empty() && format != "e4m3") refuse("fmt '" + format + "'");
    const Json* block = child(*quantization, "weight_block_size");
    if (block != nullptr) {
      check(block->is_array() && block->size() == 2 && (*block)[0].is_number_integer() &&
                (*block)[1].is_number_integer() && (*block)[0].get<int64_t>() > 0 &&
                (*block)[1].get<int64_t>() > 0,
            "config.json: quantization_config: weight_block_size must be two positive integers, "
            "got {}",
            block->dump());
      block_rows_ = (*block)[0].get<int64_t>();
      block_columns_ = (*block)[1].get<int64_t>();
    }
  } else if (method_ == "awq" || method_ == "gptq") {
    groups_.push_back(integer_of(*quantization, "group_size", -1));
    const std::string version = text_of(*quantization, "version");
    if (method_ == "awq" && !version.empty() && version != "gemm" && version != "GEMM")
      refuse("awq version '" + version + "'");
    const std::string format = text_of(*quantization, "checkpoint_format");
    if (method_ == "gptq" && !format.empty() && format != "gptq" && format != "gptq_v2")
      refuse("gptq checkpoint_format '" + format + "'");
    if (method_ == "gptq" && format != "gptq_v2") zero_offset_ = 1;
    const int64_t bits = integer_of(*quantization, "bits", integer_of(*quantization, "w_bit", 4));
    if (bits != 4 && !(bits == 8 && method_ == "gptq"))
      refuse(method_ + " with " + std::to_string(bits) + " bits");
  } else if (method_ == "compressed-tensors") {
    const Json* groups = child(*quantization, "config_groups");
    if (groups != nullptr && groups->is_object()) {
      for (const auto& group : *groups) {
        const Json* weights = child(group, "weights");
        if (weights == nullptr) continue;
        groups_.push_back(integer_of(*weights, "group_size", -1));
        const Json* block = child(*weights, "block_structure");
        if (block != nullptr && block->is_array() && block->size() == 2 &&
            (*block)[0].is_number_integer() && (*block)[1].is_number_integer()) {
          block_rows_ = std::max<int64_t>(1, (*block)[0].get<int64_t>());
          block_columns_ = std::max<int64_t>(1, (*block)[1].get<int64_t>());
        }
      }
    }
  } else if (method_ == "modelopt") {
    const std::string algorithm = text_of(*quantization, "quant_algo");
    if (!algorithm.empty() && algorithm != "FP8" && algorithm != "FP8_PER_CHANNEL_PER_TOKEN")
      refuse("modelopt quant_algo '" + algorithm + "'");
  } else if (method_ == "mxfp4" && read_architecture(config) == "GptOssForCausalLM") {
    // Its experts come whole from expert_checkpoint.h; the rest is plain.
  } else {
    refuse("quant_method '" + method_ + "'");
  }
}

bool QuantizedTensors::is_auxiliary(const std::string& name) {
  for (const char* ending :
       {".input_scale", ".k_scale", ".v_scale", ".output_scale", ".weight_shape",
        ".input_zero_point", ".weight_zero_point", ".g_idx"}) {
    if (name.ends_with(ending)) return true;
  }
  return false;
}

const TensorEntry* QuantizedTensors::require(const std::string& prefix,
                                             std::initializer_list<const char*> names) const {
  std::string all;
  for (const char* name : names) {
    if (const TensorEntry* entry = find_(prefix + name)) return entry;
    all += (all.empty() ? "" : " or ") + prefix + name;
  }
  fail("tensor '{}' is missing ({} checkpoint)", all, method_);
}

void QuantizedTensors::find_group(QuantizedMatrix& matrix, int64_t num_groups) const {
  const int64_t k = matrix.shape[1];
  for (int64_t group : groups_) {
    if (group <= 0) group = k;
    if (ceil_div(k, group) == num_groups) {
      matrix.group = group;
      return;
    }
  }
  check(num_groups == 1,
        "{}: tensor '{}' has {} groups of scales for {} columns, which no group_size "
        "of config.json makes",
        matrix.scales->file, matrix.scales->name, num_groups, k);
  matrix.group = k;
}

std::optional<QuantizedMatrix> QuantizedTensors::find(const std::string& name,
                                                      const Shape& shape) const {
  constexpr std::string_view kEnding = "weight";
  if (method_.empty() || !name.ends_with(kEnding) || shape.dims() != 2) return std::nullopt;
  const std::string prefix = name.substr(0, name.size() - kEnding.size());
  QuantizedMatrix matrix{.shape = shape};
  const auto expect = [](const TensorEntry* entry, DType dtype, const Shape& wanted) {
    check(entry->dtype == dtype && entry->shape == wanted,
          "{}: tensor '{}' is {} {}, but config.json makes it {} {}", entry->file, entry->name,
          dtype_name(entry->dtype), entry->shape, dtype_name(dtype), wanted);
  };
  const auto expect_floats = [](const TensorEntry* entry, const Shape& wanted) {
    check(is_float(entry->dtype) && entry->shape == wanted,
          "{}: tensor '{}' is {} {}, but config.json makes it floats {}", entry->file, entry->name,
          dtype_name(entry->dtype), entry->shape, wanted);
  };
  const int64_t n = shape[0], k = shape[1];
  if (const TensorEntry* plain = find_(name)) {
    if (is_float(plain->dtype)) return std::nullopt;
    using enum QuantizedMatrix::Form;
    check(plain->dtype == DType::kF8E4M3 || plain->dtype == DType::kI8,
          "{}: tensor '{}' is {}, which is not supported here", plain->file, plain->name,
          dtype_name(plain->dtype));
    expect(plain, plain->dtype, shape);
    matrix.form = plain->dtype == DType::kI8 ? kInt8 : kFp8;
    matrix.codes = plain;
    matrix.scales = require(prefix, {"weight_scale_inv", "weight_scale"});
    const Shape& s = matrix.scales->shape;
    const bool rows = s == Shape{n} || s == Shape{n, 1};
    const bool blocks =
        matrix.form == kFp8 && s == Shape{ceil_div(n, block_rows_), ceil_div(k, block_columns_)};
    check(
        is_float(matrix.scales->dtype) && (s.numel() == 1 || rows || blocks),
        "{}: tensor '{}' is {} {}, which are no scales for the tensor, its rows or blocks of {} x "
        "{} of {}",
        matrix.scales->file, matrix.scales->name, dtype_name(matrix.scales->dtype), s, block_rows_,
        block_columns_, shape);
    return matrix;
  }
  if (const TensorEntry* codes = find_(prefix + "qweight")) {
    const bool awq = method_ == "awq";
    check(awq || method_ == "gptq", "{}: tensor '{}' in a checkpoint with the quant_method '{}'",
          codes->file, codes->name, method_);
    matrix.form = awq ? QuantizedMatrix::Form::kAwq : QuantizedMatrix::Form::kGptq;
    matrix.codes = codes;
    // Layers may have other widths than the config says.
    check(codes->shape.dims() == 2, "{}: tensor '{}' is {}", codes->file, codes->name,
          codes->shape);
    matrix.bits = awq || codes->shape[0] * 8 == k ? 4 : 8;
    const int64_t per_word = 32 / matrix.bits;
    check(awq ? n % 8 == 0 : k % per_word == 0 && n % per_word == 0,
          "{}: tensor '{}' has words of {} values, which {} are not whole", codes->file,
          codes->name, per_word, shape);
    expect(codes, DType::kI32, awq ? Shape{k, n / 8} : Shape{k / per_word, n});
    matrix.scales = require(prefix, {"scales"});
    const int64_t groups = matrix.scales->shape.dims() == 2 ? matrix.scales->shape[0] : 0;
    expect_floats(matrix.scales, {groups, n});
    matrix.zeros = require(prefix, {"qzeros"});
    expect(matrix.zeros, DType::kI32, {groups, n / per_word});
    matrix.order = find_(prefix + "g_idx");
    if (matrix.order != nullptr) expect(matrix.order, DType::kI32, {k});
    find_group(matrix, groups);
    return matrix;
  }
  const TensorEntry* codes = find_(prefix + "weight_packed");
  if (codes == nullptr) return std::nullopt;
  matrix.form = QuantizedMatrix::Form::kCompressedTensors;
  matrix.codes = codes;
  check(codes->shape.dims() == 2, "{}: tensor '{}' is {}", codes->file, codes->name, codes->shape);
  matrix.bits = codes->shape[1] == ceil_div(k, 8) ? 4 : 8;
  const int64_t per_word = 32 / matrix.bits;
  expect(codes, DType::kI32, {n, ceil_div(k, per_word)});
  matrix.scales = require(prefix, {"weight_scale"});
  const int64_t groups = matrix.scales->shape.dims() == 2 ? matrix.scales->shape[1] : 0;
  expect_floats(matrix.scales, {n, groups});
  matrix.zeros = find_(prefix + "weight_zero_point");
  if (matrix.zeros != nullptr) expect(matrix.zeros, DType::kI32, {ceil_div(n, per_word), groups});
  matrix.order = find_(prefix + "weight_g_idx");
  if (matrix.order != nullptr) expect(matrix.order, DType::kI32, {k});
  find_group(matrix, groups);
  return matrix;
}

QuantizedTensors::Data QuantizedTensors::read(const QuantizedMatrix& matrix, DType compute,
                                              bool expand) const {
  switch (matrix.form) {
    case QuantizedMatrix::Form::kFp8:
      return read_fp8(matrix, compute, expand);
    case QuantizedMatrix::Form::kInt8:
      return read_int8(matrix, compute, expand);
    default:
      return read_codes(matrix, compute, expand);
  }
}

QuantizedTensors::Data QuantizedTensors::read_fp8(const QuantizedMatrix& matrix, DType compute,
                                                  bool expand) const {
  const Tensor codes = reader_->read(matrix.codes->name).contiguous();
  const Tensor stored = reader_->read(matrix.scales->name).to(DType::kF32).contiguous();
  const int64_t n = matrix.shape[0], k = matrix.shape[1];
  Tensor scales = stored;
  if (stored.numel() == 1) {
    scales = Tensor::empty({n}, DType::kF32);
    std::fill_n(scales.data<float>(), n, stored.data<float>()[0]);
  } else if (stored.shape()[0] == n && stored.numel() == n) {
    scales = stored.reshape({n});
  } else if (block_rows_ != kFp8Block || block_columns_ != kFp8Block) {
    Tensor out = Tensor::empty({n, k}, compute);
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t r = 0; r < n; ++r) {
      dequantize_row(DType::kF8E4M3, codes.raw() + r * k, row.data(), k);
      const float* s = stored.data<float>() + r / block_rows_ * stored.size(1);
      for (int64_t i = 0; i < k; ++i) row[static_cast<size_t>(i)] *= s[i / block_columns_];
      quantize_row(compute, row.data(), out.raw() + r * row_bytes(compute, k), k);
    }
    return {out, {}};
  }
  if (expand) return {expand_scaled(codes, scales, compute), {}};
  return {codes, scales};
}

QuantizedTensors::Data QuantizedTensors::read_int8(const QuantizedMatrix& matrix, DType compute,
                                                   bool expand) const {
  const Tensor codes = reader_->read(matrix.codes->name).contiguous();
  const Tensor scales = reader_->read(matrix.scales->name).to(DType::kF32).contiguous();
  const int64_t n = matrix.shape[0], k = matrix.shape[1];
  const DType dtype = expand || k % 32 != 0 ? compute : DType::kQ8_0;
  const Tensor out = Tensor::empty({n, k}, dtype);
  const int8_t* q = codes.data<int8_t>();
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t r = 0; r < n; ++r) {
    const float s = scales.data<float>()[scales.numel() == 1 ? 0 : r];
    auto* to = reinterpret_cast<uint8_t*>(out.raw() + r * row_bytes(dtype, k));
    if (dtype == DType::kQ8_0) {
      for (int64_t at = 0; at < k; at += 32, to += 34) {
        store_half(to, s);
        std::memcpy(to + 2, q + r * k + at, 32);
      }
    } else {
      for (int64_t i = 0; i < k; ++i)
        row[static_cast<size_t>(i)] = s * static_cast<float>(q[r * k + i]);
      quantize_row(dtype, row.data(), to, k);
    }
  }
  return {out, {}};
}

QuantizedTensors::Data QuantizedTensors::read_codes(const QuantizedMatrix& matrix, DType compute,
                                                    bool expand) const {
  const Unpacker unpacker(matrix, *reader_, zero_offset_);
  const int64_t n = matrix.shape[0], k = matrix.shape[1], groups = unpacker.num_groups();
  std::vector<int64_t> group_of(static_cast<size_t>(k));
  for (int64_t i = 0; i < k; ++i) group_of[static_cast<size_t>(i)] = i / matrix.group;
  bool reordered = false;
  if (matrix.order != nullptr) {
    const Tensor order = reader_->read(matrix.order->name).contiguous();
    for (int64_t i = 0; i < k; ++i) {
      const int64_t g = order.data<int32_t>()[i];
      check(g >= 0 && g < groups, "{}: tensor '{}' names group {} of {}", matrix.order->file,
            matrix.order->name, g, groups);
      int64_t& own = group_of[static_cast<size_t>(i)];
      reordered = reordered || own != g;
      own = g;
    }
  }
  const bool symmetric = unpacker.all_zeros_are(1 << (matrix.bits - 1));
  DType dtype = compute;
  if (!expand && !reordered && matrix.group % 32 == 0 && k % 32 == 0) {
    if (matrix.bits == 4) dtype = symmetric ? DType::kQ4_0 : DType::kQ4_1;
    if (matrix.bits == 8 && symmetric) dtype = DType::kQ8_0;
  }
  const Tensor out = Tensor::empty({n, k}, dtype);
  const int64_t bytes = row_bytes(dtype, k), block_bytes = dtype_info(dtype).block_bytes;
  compute_pool().parallel_for(ceil_div(n, kRowsAtOnce), 1, [&](int64_t first, int64_t last) {
    UnpackedRows rows;
    std::vector<float> values(static_cast<size_t>(k));
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kRowsAtOnce, end = std::min(n, begin + kRowsAtOnce);
      unpacker.rows(begin, end, rows);
      for (int64_t r = begin; r < end; ++r) {
        const uint8_t* q = rows.q.data() + (r - begin) * k;
        const int32_t* z = rows.z.data() + (r - begin) * groups;
        const float* s = rows.s.data() + (r - begin) * groups;
        auto* to = reinterpret_cast<uint8_t*>(out.raw() + r * bytes);
        if (is_block_format(dtype)) {
          for (int64_t at = 0; at < k; at += 32, to += block_bytes) {
            const int64_t g = group_of[static_cast<size_t>(at)];
            write_block(dtype, q + at, z[g], s[g], to);
          }
          continue;
        }
        for (int64_t i = 0; i < k; ++i) {
          const int64_t g = group_of[static_cast<size_t>(i)];
          values[static_cast<size_t>(i)] = s[g] * static_cast<float>(q[i] - z[g]);
        }
        quantize_row(dtype, values.data(), to, k);
      }
    }
  });
  return {out, {}};
}

}  // namespace reft
