#include "models/expert_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "base/thread_pool.h"

namespace reft {

namespace {

// One expert's matrix: rows [begin, end) of expert `expert` of a tensor.
struct Slice {
  std::string tensor;
  int64_t expert = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

bool is_fused(const TensorEntry& entry) {
  if (entry.shape.dims() != 3) return false;
  constexpr const char* kEndings[] = {".experts.gate_proj.weight", ".experts.up_proj.weight",
                                      ".experts.down_proj.weight", ".experts.gate_up_proj",
                                      ".experts.down_proj"};
  return std::ranges::any_of(kEndings,
                             [&](const char* ending) { return entry.name.ends_with(ending); });
}

class ExpertReader final : public CheckpointReader {
 public:
  explicit ExpertReader(std::unique_ptr<CheckpointReader> reader) : reader_(std::move(reader)) {
    for (const TensorEntry& entry : reader_->entries()) {
      if (is_fused(entry)) {
        split(entry);
      } else {
        entries_.push_back(entry);
      }
    }
  }

  const std::vector<TensorEntry>& entries() const override { return entries_; }
  bool contains(const std::string& name) const override {
    return slices_.count(name) > 0 || reader_->contains(name);
  }
  void release_pages() const override { reader_->release_pages(); }
  Tensor read(const std::string& name) const override {
    const auto it = slices_.find(name);
    if (it == slices_.end()) return reader_->read(name);
    const Slice& slice = it->second;
    const Tensor all = reader_->read(slice.tensor);
    return all.rows(slice.expert, slice.expert + 1)
        .reshape({all.size(1), all.size(2)})
        .rows(slice.begin, slice.end);
  }

 private:
  void split(const TensorEntry& entry) {
    constexpr std::string_view kExperts = ".experts.";
    const size_t at = entry.name.rfind(kExperts) + kExperts.size();
    const std::string prefix = entry.name.substr(0, at);
    std::string part = entry.name.substr(at);
    if (part.ends_with(".weight")) part.resize(part.size() - 7);
    const int64_t rows = entry.shape[1];
    for (int64_t e = 0; e < entry.shape[0]; ++e) {
      const std::string expert = prefix + std::to_string(e) + ".";
      if (part != "gate_up_proj") {
        add(entry, expert + part, {entry.name, e, 0, rows});
        continue;
      }
      check(rows % 2 == 0, "{}: tensor '{}' has the shape {}: its rows are not gate and up",
            entry.file, entry.name, entry.shape.str());
      add(entry, expert + "gate_proj", {entry.name, e, 0, rows / 2});
      add(entry, expert + "up_proj", {entry.name, e, rows / 2, rows});
    }
  }

  void add(const TensorEntry& fused, std::string name, Slice slice) {
    TensorEntry entry = fused;
    entry.name = std::move(name) + ".weight";
    entry.shape = {slice.end - slice.begin, fused.shape[2]};
    slices_.emplace(entry.name, std::move(slice));
    entries_.push_back(std::move(entry));
  }

  std::unique_ptr<CheckpointReader> reader_;
  std::vector<TensorEntry> entries_;
  std::unordered_map<std::string, Slice> slices_;
};

constexpr std::string_view kBlocks = "_blocks", kScales = "_scales";
constexpr int64_t kBlockValues = 32, kBlockBytes = 16;

// The file's 16 bytes hold value 2i in the low and value 2i + 1 in the high half of byte i; ours
// values i and i + 16, after the scale.
void repack_block(const uint8_t* from, uint8_t scale, uint8_t* to) {
  to[0] = scale;
  for (int i = 0; i < kBlockBytes; ++i) {
    const int low = from[i / 2] >> (i % 2 * 4) & 15;
    const int high = from[(i + kBlockBytes) / 2] >> (i % 2 * 4) & 15;
    to[1 + i] = static_cast<uint8_t>(low | high << 4);
  }
}

class Mxfp4Reader final : public CheckpointReader {
 public:
  explicit Mxfp4Reader(std::unique_ptr<CheckpointReader> reader) : reader_(std::move(reader)) {
    std::unordered_map<std::string, const TensorEntry*> scales;
    for (const TensorEntry& entry : reader_->entries()) {
      if (entry.name.ends_with(kScales)) scales.emplace(entry.name, &entry);
    }
    for (const TensorEntry& entry : reader_->entries()) {
      if (!entry.name.ends_with(kBlocks)) {
        if (!entry.name.ends_with(kScales)) entries_.push_back(entry);
        continue;
      }
      const std::string name = entry.name.substr(0, entry.name.size() - kBlocks.size());
      const auto scale = scales.find(name + std::string(kScales));
      check(scale != scales.end(), "{}: tensor '{}{}' is missing", entry.file, name, kScales);
      const Shape &b = entry.shape, &s = scale->second->shape;
      check(entry.dtype == DType::kU8 && scale->second->dtype == DType::kU8 && b.dims() == 4 &&
                b[3] == kBlockBytes && s == Shape{b[0], b[1], b[2]},
            "{}: tensor '{}' is {} {}, its scales are {} {}: not blocks of 4 bits", entry.file,
            entry.name, dtype_name(entry.dtype), b.str(), dtype_name(scale->second->dtype),
            s.str());
      TensorEntry joined = entry;
      joined.name = name;
      joined.dtype = DType::kMXFP4;
      joined.shape = {b[0], b[1], b[2] * kBlockValues};
      joined_.emplace(name, joined.shape);
      entries_.push_back(std::move(joined));
    }
  }

  const std::vector<TensorEntry>& entries() const override { return entries_; }
  bool contains(const std::string& name) const override {
    return joined_.count(name) > 0 || reader_->contains(name);
  }
  void release_pages() const override { reader_->release_pages(); }
  Tensor read(const std::string& name) const override {
    const auto it = joined_.find(name);
    if (it == joined_.end()) return reader_->read(name);
    const Tensor blocks = reader_->read(name + std::string(kBlocks));
    const Tensor scales = reader_->read(name + std::string(kScales));
    Tensor result = Tensor::empty(it->second, DType::kMXFP4);
    auto* to = reinterpret_cast<uint8_t*>(result.raw());
    compute_pool().parallel_for(scales.numel(), 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        repack_block(blocks.data<uint8_t>() + i * kBlockBytes, scales.data<uint8_t>()[i],
                     to + i * (kBlockBytes + 1));
      }
    });
    return result;
  }

 private:
  std::unique_ptr<CheckpointReader> reader_;
  std::vector<TensorEntry> entries_;
  std::unordered_map<std::string, Shape> joined_;
};

// Names of GGUF's tensors, and what they become; of gate and up one name.
struct FusedName {
  const char* ending;
  const char* fused;
  const char* second;  // the tensor whose rows come in turns with these, or null
};
constexpr FusedName kFusedNames[] = {
    {".experts.gate_proj.weight", ".experts.gate_up_proj", ".experts.up_proj.weight"},
    {".experts.gate_proj.bias", ".experts.gate_up_proj_bias", ".experts.up_proj.bias"},
    {".experts.up_proj.weight", nullptr, nullptr},
    {".experts.up_proj.bias", nullptr, nullptr},
    {".experts.down_proj.weight", ".experts.down_proj", nullptr},
    {".experts.down_proj.bias", ".experts.down_proj_bias", nullptr},
    {".sinks.weight", ".sinks", nullptr},
};

const FusedName* fused_name(const std::string& name) {
  for (const FusedName& f : kFusedNames) {
    if (name.ends_with(f.ending)) return &f;
  }
  return nullptr;
}

class GateUpReader final : public CheckpointReader {
 public:
  explicit GateUpReader(std::unique_ptr<CheckpointReader> reader) : reader_(std::move(reader)) {
    std::unordered_map<std::string, const TensorEntry*> by_name;
    for (const TensorEntry& entry : reader_->entries()) by_name.emplace(entry.name, &entry);
    for (const TensorEntry& entry : reader_->entries()) {
      const FusedName* f = fused_name(entry.name);
      if (f == nullptr) entries_.push_back(entry);
      if (f == nullptr || f->fused == nullptr) continue;
      const std::string prefix =
          entry.name.substr(0, entry.name.size() - std::string_view(f->ending).size());
      TensorEntry fused = entry;
      fused.name = prefix + f->fused;
      Source source{entry.name, ""};
      if (f->second != nullptr) {
        const auto up = by_name.find(prefix + f->second);
        check(up != by_name.end(), "{}: tensor '{}{}' is missing", entry.file, prefix, f->second);
        check(up->second->shape == entry.shape && up->second->dtype == entry.dtype &&
                  entry.shape.dims() >= 2,
              "{}: tensors '{}' and '{}' differ in shape or type", entry.file, entry.name,
              up->first);
        source.second = up->first;
        fused.shape = entry.shape.dims() == 2
                          ? Shape{entry.shape[0], 2 * entry.shape[1]}
                          : Shape{entry.shape[0], 2 * entry.shape[1], entry.shape[2]};
      }
      sources_.emplace(fused.name, source);
      entries_.push_back(std::move(fused));
    }
  }

  const std::vector<TensorEntry>& entries() const override { return entries_; }
  bool contains(const std::string& name) const override {
    return sources_.count(name) > 0 || reader_->contains(name);
  }
  void release_pages() const override { reader_->release_pages(); }
  Tensor read(const std::string& name) const override {
    const auto it = sources_.find(name);
    if (it == sources_.end()) return reader_->read(name);
    Tensor first = reader_->read(it->second.first);
    if (it->second.second.empty()) return first;
    const Tensor second = reader_->read(it->second.second);
    // Rows, or the elements of biases, in turns.
    const bool matrices = first.dims() == 3;
    const Shape shape = matrices ? Shape{first.size(0), 2 * first.size(1), first.size(2)}
                                 : Shape{first.size(0), 2 * first.size(1)};
    Tensor result = Tensor::empty(shape, first.dtype());
    const int64_t rows = first.size(0) * first.size(1);
    const int64_t bytes = first.nbytes() / std::max<int64_t>(rows, 1);
    compute_pool().parallel_for(rows, 256, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const auto size = static_cast<size_t>(bytes);
        std::memcpy(result.raw() + 2 * r * bytes, first.raw() + r * bytes, size);
        std::memcpy(result.raw() + (2 * r + 1) * bytes, second.raw() + r * bytes, size);
      }
    });
    return result;
  }

 private:
  struct Source {
    std::string first, second;
  };

  std::unique_ptr<CheckpointReader> reader_;
  std::vector<TensorEntry> entries_;
  std::unordered_map<std::string, Source> sources_;
};

}  // namespace

std::unique_ptr<CheckpointReader> join_gate_up(std::unique_ptr<CheckpointReader> reader) {
  const bool any = std::ranges::any_of(reader->entries(), [](const TensorEntry& e) {
    return e.name.ends_with(kFusedNames[0].ending);
  });
  if (!any) return reader;
  return std::make_unique<GateUpReader>(std::move(reader));
}

std::unique_ptr<CheckpointReader> join_mxfp4(std::unique_ptr<CheckpointReader> reader) {
  const bool any = std::ranges::any_of(
      reader->entries(), [](const TensorEntry& e) { return e.name.ends_with(kBlocks); });
  if (!any) return reader;
  return std::make_unique<Mxfp4Reader>(std::move(reader));
}

std::unique_ptr<CheckpointReader> split_experts(std::unique_ptr<CheckpointReader> reader) {
  const bool fused = std::ranges::any_of(reader->entries(), is_fused);
  if (!fused) return reader;
  return std::make_unique<ExpertReader>(std::move(reader));
}

}  // namespace reft
