#include "models/ctranslate2_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <unordered_map>

#include "tensor/tensor_table.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSpecification = "WhisperSpec";
constexpr uint32_t kVersion = 6;
constexpr uint32_t kMaxRank = 4;

// Reads numbers and names front to back; every step is checked.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : bytes_(file.bytes()), path_(file.path()) {}

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)), sizeof(T));
    return value;
  }
  std::string name() {
    const auto length = number<uint16_t>();
    check(length > 0, "{}: an empty name at byte {}", path_, at_);
    std::string text(reinterpret_cast<const char*>(take(length)), length);
    while (!text.empty() && text.back() == '\0') text.pop_back();
    return text;
  }
  const std::byte* take(uint64_t n) {
    check(n <= bytes_.size() - at_, "{}: the file ends at byte {}, within what byte {} begins",
          path_, bytes_.size(), at_);
    const std::byte* here = bytes_.data() + at_;
    at_ += n;
    return here;
  }
  uint64_t at() const { return at_; }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
  uint64_t at_ = 0;
};

struct Variable {
  std::vector<int64_t> sizes;
  DType dtype = DType::kF32;
  bool is_int16 = false;
  uint64_t begin = 0;
  uint64_t bytes = 0;

  int64_t rows() const { return sizes.empty() ? 1 : sizes[0]; }
};

uint64_t element_bytes(const Variable& v) {
  if (v.is_int16) return 2;
  switch (v.dtype) {
    case DType::kI8:
      return 1;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    default:
      return 4;
  }
}

using Variables = std::map<std::string, Variable>;

Variables read_variables(const MappedFile& file) {
  Cursor in(file);
  const auto version = in.number<uint32_t>();
  check(version >= 2 && version <= kVersion, "{}: version {} of CTranslate2's format is not known",
        file.path(), version);
  const std::string specification = in.name();
  check(specification == kSpecification, "{}: a CTranslate2 model of the kind '{}', not {}",
        file.path(), specification.substr(0, 64), kSpecification);
  in.number<uint32_t>();  // revision
  const auto count = in.number<uint32_t>();
  check(count <= 100'000, "{}: {} variables", file.path(), count);
  Variables variables;
  for (uint32_t i = 0; i < count; ++i) {
    const std::string name = in.name();
    Variable v;
    const auto rank = in.number<uint8_t>();
    check(rank <= kMaxRank, "{}: variable '{}' has {} dimensions", file.path(), name, rank);
    uint64_t elements = 1;
    for (int d = 0; d < rank; ++d) {
      const auto size = in.number<uint32_t>();
      check(size < (1u << 28), "{}: variable '{}' has a size of {}", file.path(), name, size);
      elements *= size;
      check(elements < (uint64_t{1} << 40), "{}: variable '{}' is too large", file.path(), name);
      v.sizes.push_back(size);
    }
    static constexpr DType kTypes[] = {DType::kF32, DType::kI8,  DType::kF16,
                                       DType::kI32, DType::kF16, DType::kBF16};
    const auto type = in.number<uint8_t>();
    check(type < std::size(kTypes), "{}: variable '{}' has the unknown type {}", file.path(), name,
          type);
    v.dtype = kTypes[type];
    v.is_int16 = type == 2;
    v.bytes = in.number<uint32_t>();
    check(v.bytes == elements * element_bytes(v), "{}: variable '{}' has {} bytes instead of {}",
          file.path(), name, v.bytes, elements * element_bytes(v));
    v.begin = in.at();
    in.take(v.bytes);
    variables[name] = std::move(v);
  }
  if (version < 3) return variables;
  const auto aliases = in.number<uint32_t>();
  for (uint32_t i = 0; i < aliases && i < 100'000; ++i) {
    const std::string alias = in.name(), target = in.name();
    const auto it = variables.find(target);
    check(it != variables.end(), "{}: alias '{}' stands for '{}', which is missing", file.path(),
          alias, target);
    variables.emplace(alias, Variable(it->second));
  }
  return variables;
}

// A Hugging Face tensor as rows of a variable.
struct Piece {
  std::string variable;
  int64_t part = 0, parts = 1;  // of the variable's rows
};

std::map<std::string, Piece> hugging_face_names(int64_t encoder_layers, int64_t decoder_layers) {
  std::map<std::string, Piece> names;
  const auto add_norm = [&](const std::string& to, const std::string& from) {
    names[to + ".weight"] = {from + "/gamma"};
    names[to + ".bias"] = {from + "/beta"};
  };
  const auto add_linear = [&](const std::string& to, const std::string& from, int64_t part = 0,
                              int64_t parts = 1) {
    for (const char* what : {"weight", "bias"})
      names[to + "." + what] = {from + "/" + what, part, parts};
  };
  for (const char* conv : {"conv1", "conv2"})
    add_linear(std::string("model.encoder.") + conv, std::string("encoder/") + conv);
  names["model.decoder.embed_tokens.weight"] = {"decoder/embeddings/weight"};
  for (const auto& [side, layers] :
       {std::pair<std::string, int64_t>("encoder", encoder_layers), {"decoder", decoder_layers}}) {
    const std::string model = "model." + side;
    names[model + ".embed_positions.weight"] = {side + "/position_encodings/encodings"};
    add_norm(model + ".layer_norm", side + "/layer_norm");
    for (int64_t i = 0; i < layers; ++i) {
      const std::string to = model + ".layers." + std::to_string(i);
      const std::string from = side + "/layer_" + std::to_string(i);
      add_norm(to + ".self_attn_layer_norm", from + "/self_attention/layer_norm");
      add_linear(to + ".self_attn.q_proj", from + "/self_attention/linear_0", 0, 3);
      add_linear(to + ".self_attn.k_proj", from + "/self_attention/linear_0", 1, 3);
      add_linear(to + ".self_attn.v_proj", from + "/self_attention/linear_0", 2, 3);
      add_linear(to + ".self_attn.out_proj", from + "/self_attention/linear_1");
      add_norm(to + ".final_layer_norm", from + "/ffn/layer_norm");
      add_linear(to + ".fc1", from + "/ffn/linear_0");
      add_linear(to + ".fc2", from + "/ffn/linear_1");
      if (side == "encoder") continue;
      add_norm(to + ".encoder_attn_layer_norm", from + "/attention/layer_norm");
      add_linear(to + ".encoder_attn.q_proj", from + "/attention/linear_0");
      add_linear(to + ".encoder_attn.k_proj", from + "/attention/linear_1", 0, 2);
      add_linear(to + ".encoder_attn.v_proj", from + "/attention/linear_1", 1, 2);
      add_linear(to + ".encoder_attn.out_proj", from + "/attention/linear_2");
    }
  }
  return names;
}

// Floats are views of the file; integers are divided by their scales: one a row (int8) or one in
// all (int16).
class Ctranslate2Reader : public CheckpointReader {
 public:
  Ctranslate2Reader(const std::shared_ptr<const MappedFile>& file, const Variables& variables,
                    const std::map<std::string, Piece>& names)
      : path_(file->path()) {
    const size_t index = table_.add_file(file);
    for (const auto& [name, piece] : names) {
      const auto it = variables.find(piece.variable);
      if (it == variables.end()) continue;  // the loader says which parameter is missing
      add(index, *file, variables, name, piece, it->second);
    }
  }

  const std::vector<TensorEntry>& entries() const override { return entries_; }
  bool contains(const std::string& name) const override { return table_.find(name) != nullptr; }
  Tensor read(const std::string& name) const override {
    const auto it = quantized_.find(name);
    if (it == quantized_.end()) return table_.read(name);
    return dequantize(it->second);
  }
  void release_pages() const override { table_.release_pages(); }

 private:
  struct Quantized {
    Shape shape;
    bool is_int16 = false;
    const std::byte* values = nullptr;
    std::vector<float> scales;  // one, or one a row
  };

  void add(size_t index, const MappedFile& file, const Variables& variables,
           const std::string& name, const Piece& piece, const Variable& v) {
    check(v.rows() % piece.parts == 0, "{}: variable '{}' has {} rows, not {} equal parts", path_,
          piece.variable, v.rows(), piece.parts);
    const int64_t rows = v.rows() / piece.parts;
    std::vector<int64_t> sizes = v.sizes;
    check(!sizes.empty(), "{}: variable '{}' is a number", path_, piece.variable);
    sizes[0] = rows;
    const uint64_t bytes = v.bytes / static_cast<uint64_t>(piece.parts);
    const uint64_t begin = v.begin + bytes * static_cast<uint64_t>(piece.part);
    const bool quantized = v.dtype == DType::kI8 || v.is_int16;
    const TensorEntry entry{name, quantized ? DType::kF32 : v.dtype,
                            Shape(std::span(std::as_const(sizes))), path_};
    entries_.push_back(entry);
    if (!quantized) {
      table_.add(index, {.entry = entry, .begin = begin, .end = begin + bytes});
      return;
    }
    const auto scale = variables.find(piece.variable + "_scale");
    check(scale != variables.end(), "{}: variable '{}' lacks its scale", path_, piece.variable);
    Quantized q{entry.shape, v.is_int16, file.bytes().data() + begin, {}};
    const Variable& s = scale->second;
    const auto count = static_cast<int64_t>(s.bytes / element_bytes(s));
    check((s.dtype == DType::kF32 || s.dtype == DType::kF16) && !s.is_int16 &&
              (count == 1 || count == v.rows()),
          "{}: variable '{}_scale' has {} values for {} rows", path_, piece.variable, count,
          v.rows());
    for (int64_t i = 0; i < (count == 1 ? 1 : rows); ++i) {
      const uint64_t at =
          static_cast<uint64_t>(count == 1 ? 0 : piece.part * rows + i) * element_bytes(s);
      const std::byte* from = file.bytes().data() + s.begin + at;
      float value = 0;
      if (s.dtype == DType::kF16) {
        f16 half;
        std::memcpy(&half, from, sizeof(half));
        value = to_float(half);
      } else {
        std::memcpy(&value, from, sizeof(value));
      }
      q.scales.push_back(value);
    }
    quantized_.emplace(name, std::move(q));
    // So that `contains` and the table's checks know it too.
    table_.add(index, {.entry = {name, DType::kU8, {static_cast<int64_t>(bytes)}, path_},
                       .begin = begin,
                       .end = begin + bytes});
  }

  static Tensor dequantize(const Quantized& q) {
    Tensor out = Tensor::empty(q.shape, DType::kF32);
    const int64_t rows = q.shape[0], width = q.shape.numel() / std::max<int64_t>(rows, 1);
    for (int64_t r = 0; r < rows; ++r) {
      const float inverse = 1.0f / q.scales[q.scales.size() == 1 ? 0 : static_cast<size_t>(r)];
      float* to = out.data<float>() + r * width;
      for (int64_t i = 0; i < width; ++i) {
        if (q.is_int16) {
          int16_t value;
          std::memcpy(&value, q.values + 2 * (r * width + i), 2);
          to[i] = static_cast<float>(value) * inverse;
        } else {
          to[i] = static_cast<float>(static_cast<int8_t>(q.values[r * width + i])) * inverse;
        }
      }
    }
    return out;
  }

  std::string path_;
  TensorTable table_;
  std::vector<TensorEntry> entries_;
  std::unordered_map<std::string, Quantized> quantized_;
};

int64_t count_layers(const Variables& variables, const std::string& side) {
  int64_t layers = 0;
  const auto has = [&](int64_t i) {
    return variables.contains(side + "/layer_" + std::to_string(i) + "/ffn/layer_norm/gamma");
  };
  while (has(layers)) ++layers;
  return layers;
}

int64_t size_of(const Variables& variables, const std::string& path, const std::string& name,
                size_t dimension) {
  const auto it = variables.find(name);
  check(it != variables.end(), "{}: variable '{}' is missing", path, name);
  check(dimension < it->second.sizes.size(), "{}: variable '{}' has {} dimensions", path, name,
        it->second.sizes.size());
  return it->second.sizes[dimension];
}

// A number of attention heads as the file has it; heads of 64 where it has none.
int64_t heads_of(const Variables& variables, const MappedFile& file, const std::string& side,
                 int64_t size) {
  const auto it = variables.find(side + "/num_heads");
  if (it == variables.end() || !it->second.sizes.empty()) return std::max<int64_t>(1, size / 64);
  const std::byte* value = file.bytes().data() + it->second.begin;
  if (it->second.is_int16) {
    int16_t heads;
    std::memcpy(&heads, value, sizeof(heads));
    return heads;
  }
  if (it->second.dtype == DType::kI8) return static_cast<int8_t>(*value);
  check(it->second.dtype == DType::kI32, "{}: {}/num_heads is no whole number", file.path(), side);
  int32_t heads;
  std::memcpy(&heads, value, sizeof(heads));
  return heads;
}

}  // namespace

bool is_ctranslate2_whisper(const std::string& path) {
  const fs::path file = fs::path(path) / "model.bin";
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return false;
  const MappedFile mapped(file.string());
  // 4 bytes version, 2 bytes length, then the name.
  return mapped.bytes().size() > 6 + kSpecification.size() &&
         mapped.text().substr(6, kSpecification.size()) == kSpecification;
}

Ctranslate2Checkpoint open_ctranslate2_checkpoint(const std::string& path) {
  auto file = std::make_shared<const MappedFile>((fs::path(path) / "model.bin").string());
  const Variables variables = read_variables(*file);
  const auto size = [&](const char* name, size_t dimension) {
    return size_of(variables, file->path(), name, dimension);
  };
  Ctranslate2Checkpoint out;
  const int64_t hidden = size("decoder/embeddings/weight", 1);
  const int64_t encoder_layers = count_layers(variables, "encoder");
  const int64_t decoder_layers = count_layers(variables, "decoder");
  const Variable& embedding = variables.at("decoder/embeddings/weight");
  const bool quantized = embedding.dtype == DType::kI8 || embedding.is_int16;
  out.config = {{"architectures", {"WhisperForConditionalGeneration"}},
                {"model_type", "whisper"},
                {"vocab_size", size("decoder/embeddings/weight", 0)},
                {"d_model", hidden},
                {"num_mel_bins", size("encoder/conv1/weight", 1)},
                {"max_source_positions", size("encoder/position_encodings/encodings", 0)},
                {"max_target_positions", size("decoder/position_encodings/encodings", 0)},
                {"encoder_layers", encoder_layers},
                {"decoder_layers", decoder_layers},
                {"encoder_attention_heads", heads_of(variables, *file, "encoder", hidden)},
                {"decoder_attention_heads", heads_of(variables, *file, "decoder", hidden)},
                {"encoder_ffn_dim", size("encoder/layer_0/ffn/linear_0/weight", 0)},
                {"decoder_ffn_dim", size("decoder/layer_0/ffn/linear_0/weight", 0)},
                {"dtype", quantized ? "float16" : dtype_name(embedding.dtype)}};
  out.reader = std::make_unique<Ctranslate2Reader>(
      file, variables, hugging_face_names(encoder_layers, decoder_layers));
  return out;
}

}  // namespace reft
