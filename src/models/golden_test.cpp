// Every folder of tests/golden through load_model and the paged cache, against what transformers
// computed. tools/make_golden.py makes them and says what they hold.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "base/file.h"
#include "models/model.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(REFT_SOURCE_DIR) / "tests" / "golden";

// The folders with goldens of a model that hold a file whose name ends with `ending`.
std::vector<std::string> golden_names(const std::string& ending) {
  std::vector<std::string> names;
  for (const auto& folder : fs::directory_iterator(kGolden)) {
    if (!fs::exists(folder.path() / "golden.safetensors")) continue;
    for (const auto& file : fs::directory_iterator(folder)) {
      if (!file.path().filename().string().ends_with(ending)) continue;
      names.push_back(folder.path().filename());
      break;
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

using Ids = std::vector<int32_t>;

// Where the models run: the CPU, or with REFT_TEST_DEVICE=cuda the first GPU.
Device golden_device() {
  const char* name = std::getenv("REFT_TEST_DEVICE");
  return name != nullptr && std::string_view(name) == "cuda" ? Device{DeviceType::kCuda, 0}
                                                             : kCpuDevice;
}

// One sequence's share of a step: tokens [begin, end) of its ids.
struct Chunk {
  const Ids* ids;
  int64_t begin;
  int64_t end;
};

// A KV cache for a few sequences whose blocks lie in a shuffled order.
class Session {
 public:
  Session(CausalLmModel& model, DType cache_dtype, int64_t block_size, int64_t max_len = 64,
          int64_t sequences = 2)
      : model_(model),
        block_size_(block_size),
        blocks_per_sequence_((max_len + block_size - 1) / block_size),
        cache_(model.cache_specs(), blocks_per_sequence_ * sequences + 1, block_size, cache_dtype,
               golden_device()),
        order_(static_cast<size_t>(cache_.num_blocks())) {
    std::iota(order_.begin(), order_.end(), 0);
    uint32_t state = 12345;
    for (size_t i = order_.size() - 1; i > 0; --i) {
      state = state * 1664525u + 1013904223u;
      std::swap(order_[i], order_[(state >> 8) % (i + 1)]);
    }
  }

  // Runs one step over the chunks (chunk i belongs to sequence i); logits of all tokens, or of each
  // chunk's last one.
  Tensor step(const std::vector<Chunk>& chunks, bool all_rows, const CausalLmModel::Tap& tap = {}) {
    Ids ids, positions, slots, query_start = {0}, context_len, table, rows;
    Batch batch;
    for (size_t s = 0; s < chunks.size(); ++s) {
      const Chunk& chunk = chunks[s];
      for (int64_t p = chunk.begin; p < chunk.end; ++p) {
        if (all_rows || p + 1 == chunk.end) rows.push_back(static_cast<int32_t>(ids.size()));
        ids.push_back((*chunk.ids)[static_cast<size_t>(p)]);
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(
            static_cast<int32_t>(block(s, p / block_size_) * block_size_ + p % block_size_));
      }
      query_start.push_back(static_cast<int32_t>(ids.size()));
      context_len.push_back(static_cast<int32_t>(chunk.end));
      for (int64_t b = 0; b < blocks_per_sequence_; ++b) table.push_back(block(s, b));
      batch.attention.max_query_len =
          std::max(batch.attention.max_query_len, chunk.end - chunk.begin);
      batch.attention.max_context_len = std::max(batch.attention.max_context_len, chunk.end);
    }
    const Device device = golden_device();
    batch.token_ids = Tensor::from_vector(ids).to(device);
    batch.positions = Tensor::from_vector(positions).to(device);
    batch.slots = Tensor::from_vector(slots).to(device);
    batch.attention.query_start = Tensor::from_vector(query_start).to(device);
    batch.attention.context_len = Tensor::from_vector(context_len).to(device);
    batch.attention.block_table =
        Tensor::from_vector(table, {static_cast<int64_t>(chunks.size()), blocks_per_sequence_})
            .to(device);
    batch.logit_rows = Tensor::from_vector(rows).to(device);
    const Tensor logits =
        tap ? model_.forward_with_tap(batch, cache_, tap) : model_.forward(batch, cache_);
    return logits.to(kCpuDevice);
  }

 private:
  int32_t block(size_t sequence, int64_t i) const {
    return order_[sequence * static_cast<size_t>(blocks_per_sequence_) + static_cast<size_t>(i)];
  }

  CausalLmModel& model_;
  int64_t block_size_;
  int64_t blocks_per_sequence_;
  KvCache cache_;
  Ids order_;
};

float max_error(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape().str(), b.shape().str());
  if (!(a.shape() == b.shape())) return INFINITY;
  float worst = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const float error = std::abs(a.data<float>()[i] - b.data<float>()[i]);
    if (!std::isfinite(error)) return INFINITY;
    worst = std::max(worst, error);
  }
  return worst;
}

int32_t argmax(const Tensor& logits, int64_t row) {
  const float* x = logits.rows(row, row + 1).data<float>();
  return static_cast<int32_t>(std::max_element(x, x + logits.size(1)) - x);
}

LoadedModel load(const fs::path& path, const std::string& dtype) {
  return load_model(path.string(), {.device = golden_device(), .dtype = dtype, .quiet = true});
}

constexpr float kLogitBar = 1e-4f;

class Golden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    folder_ = kGolden / GetParam();
    golden_ = open_safetensors((folder_ / "golden.safetensors").string());
    ids_ = golden_->read("input_ids").to_vector<int32_t>();
    greedy_ = golden_->read("greedy_ids").to_vector<int32_t>();
  }

  int64_t prompt_len() const { return static_cast<int64_t>(ids_.size()); }
  Ids all_ids() const {
    Ids all = ids_;
    all.insert(all.end(), greedy_.begin(), greedy_.end());
    return all;
  }

  fs::path folder_;
  std::unique_ptr<CheckpointReader> golden_;
  Ids ids_, greedy_;
};

TEST_P(Golden, HiddenStatesAndLogits) {
  const LoadedModel loaded = load(folder_, "float32");
  Session session(*loaded.model, DType::kF32, 16);
  int64_t layers = 0;
  const Tensor logits = session.step(
      {{&ids_, 0, prompt_len()}}, /*all_rows=*/true, [&](int64_t layer, const Tensor& h) {
        const Tensor want = golden_->read("hidden_states." + std::to_string(layer));
        EXPECT_LE(max_error(h.to(kCpuDevice), want), kLogitBar) << "layer " << layer;
        EXPECT_EQ(layer, layers++);
      });
  EXPECT_EQ(layers, loaded.model->info().num_layers + 1);
  EXPECT_LE(max_error(logits, golden_->read("logits")), kLogitBar);
}

TEST_P(Golden, GreedyTokenByToken) {
  const LoadedModel loaded = load(folder_, "float32");
  for (const int64_t block_size : {1, 16, 64}) {
    Session session(*loaded.model, DType::kF32, block_size);
    Ids ids = ids_;
    Tensor logits = session.step({{&ids, 0, prompt_len()}}, /*all_rows=*/false);
    const Tensor want = golden_->read("greedy_logits");
    for (size_t i = 0; i < greedy_.size(); ++i) {
      const auto row = static_cast<int64_t>(i);
      EXPECT_LE(max_error(logits, want.rows(row, row + 1)), kLogitBar) << "token " << i;
      ids.push_back(argmax(logits, 0));
      ASSERT_EQ(ids.back(), greedy_[i]) << "token " << i << ", block size " << block_size;
      const auto len = static_cast<int64_t>(ids.size());
      logits = session.step({{&ids, len - 1, len}}, /*all_rows=*/false);
    }
  }
}

TEST_P(Golden, ChunkedPrefillIsWholePrefill) {
  const LoadedModel loaded = load(folder_, "float32");
  for (const int64_t chunk : {1, 5, 16}) {
    Session session(*loaded.model, DType::kF32, 16);
    for (int64_t begin = 0; begin < prompt_len(); begin += chunk) {
      const int64_t end = std::min(begin + chunk, prompt_len());
      const Tensor logits = session.step({{&ids_, begin, end}}, /*all_rows=*/true);
      EXPECT_LE(max_error(logits, golden_->read("logits").rows(begin, end)), kLogitBar)
          << "tokens from " << begin << " in chunks of " << chunk;
    }
  }
}

TEST_P(Golden, BatchOfTwoIsAlone) {
  const LoadedModel loaded = load(folder_, "float32");
  const Ids other(ids_.rbegin(), ids_.rend());
  Session alone(*loaded.model, DType::kF32, 16);
  const Tensor other_logits = alone.step({{&other, 0, 20}}, /*all_rows=*/true);

  // A prefill beside another, then a decode step beside a chunk of prefill.
  Session session(*loaded.model, DType::kF32, 16);
  const Ids all = all_ids();
  const Tensor first = session.step({{&all, 0, prompt_len()}, {&other, 0, 12}}, /*all_rows=*/true);
  EXPECT_LE(max_error(first.rows(0, prompt_len()), golden_->read("logits")), kLogitBar);
  EXPECT_LE(max_error(first.rows(prompt_len(), prompt_len() + 12), other_logits.rows(0, 12)),
            kLogitBar);
  const Tensor second =
      session.step({{&all, prompt_len(), prompt_len() + 1}, {&other, 12, 20}}, /*all_rows=*/true);
  EXPECT_LE(max_error(second.rows(0, 1), golden_->read("greedy_logits").rows(1, 2)), kLogitBar);
  EXPECT_LE(max_error(second.rows(1, 9), other_logits.rows(12, 20)), kLogitBar);
}

TEST_P(Golden, HalfPrecisionWithinTwiceTheReferenceError) {
  if (golden_device() != kCpuDevice && GetParam().starts_with("quant_fp8"))
    GTEST_SKIP() << "many rows of activations become fp8 there, which the reference does not do";
  for (const auto& [dtype, key] :
       {std::pair("bfloat16", "bf16_error"), std::pair("float16", "fp16_error")}) {
    const LoadedModel loaded = load(folder_, dtype);
    Session session(*loaded.model, loaded.compute_dtype, 16);
    const Tensor logits = session.step({{&ids_, 0, prompt_len()}}, /*all_rows=*/true);
    const float reference = golden_->read(key).to_vector<float>()[0];
    EXPECT_LE(max_error(logits, golden_->read("logits")), 2 * reference) << dtype;
  }
}

TEST_P(Golden, AutoDtypeIsTheCheckpoints) {
  const LoadedModel loaded = load(folder_, "auto");
  const Json config = read_json_file((folder_ / "config.json").string());
  EXPECT_EQ(dtype_name(loaded.compute_dtype), config.at("dtype").get<std::string>());
  EXPECT_EQ(loaded.generation_config.at("eos_token_id").dump(), "[2,5]");
  EXPECT_GT(loaded.weight_bytes, 0);
}

class GoldenV4 : public Golden {};

TEST_P(GoldenV4, ConfigOfTransformers4) {
  const fs::path copy =
      fs::temp_directory_path() / ("reft_golden_v4_" + GetParam() + std::to_string(getpid()));
  fs::create_directories(copy);
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("model") && !name.ends_with(".gguf"))
      fs::create_symlink(entry.path(), copy / name);
  }
  fs::copy(folder_ / "config_v4.json", copy / "config.json");
  {
    const LoadedModel loaded = load(copy, "float32");
    Session session(*loaded.model, DType::kF32, 16);
    const Tensor logits = session.step({{&ids_, 0, prompt_len()}}, /*all_rows=*/true);
    EXPECT_LE(max_error(logits, golden_->read("logits")), kLogitBar);
  }
  fs::remove_all(copy);
}

class GoldenGguf : public Golden {};

TEST_P(GoldenGguf, Logits) {
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename();
    if (!name.ends_with(".gguf")) continue;
    const std::string kind = name.substr(6, name.size() - 11);  // model.<kind>.gguf
    const LoadedModel loaded = load(entry.path(), "float32");
    EXPECT_EQ(loaded.config.at("architectures"),
              read_json_file((folder_ / "config.json").string()).at("architectures"));
    Session session(*loaded.model, DType::kF32, 16);
    const Tensor logits = session.step({{&ids_, 0, prompt_len()}}, /*all_rows=*/true);
    EXPECT_LE(max_error(logits, golden_->read("logits." + kind)), kLogitBar) << name;
  }
}

const auto kName = [](const testing::TestParamInfo<std::string>& info) { return info.param; };
INSTANTIATE_TEST_SUITE_P(All, Golden, testing::ValuesIn(golden_names("golden.safetensors")), kName);
INSTANTIATE_TEST_SUITE_P(All, GoldenV4, testing::ValuesIn(golden_names("config_v4.json")), kName);
INSTANTIATE_TEST_SUITE_P(All, GoldenGguf, testing::ValuesIn(golden_names(".gguf")), kName);

}  // namespace
}  // namespace reft
