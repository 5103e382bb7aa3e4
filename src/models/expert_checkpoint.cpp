#include "models/expert_checkpoint.h"

#include <algorithm>
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
    const Tensor result = Tensor::empty(it->second, DType::kMXFP4);
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

}  // namespace

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
