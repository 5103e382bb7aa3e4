// tests/golden/whisper (tools/make_speech_golden.py) against what transformers computed.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "base/error_of_test.h"
#include "base/file.h"
#include "models/speech_model.h"
#include "ops/encoder.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

const fs::path kFolder = fs::path(REFT_SOURCE_DIR) / "tests" / "golden" / "whisper";
constexpr float kLogitBar = 5e-4f;
constexpr int64_t kBlock = 16;

Device golden_device() {
  const char* name = std::getenv("REFT_TEST_DEVICE");
  return name != nullptr && std::string_view(name) == "cuda" ? Device{DeviceType::kCuda, 0}
                                                             : kCpuDevice;
}

float max_error(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(kCpuDevice).contiguous().to(DType::kF32);
  EXPECT_EQ(x.numel(), b.numel());
  if (x.numel() != b.numel()) return INFINITY;
  float worst = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const float error = std::abs(x.data<float>()[i] - b.data<float>()[i]);
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  }
  return worst;
}

// Both windows of the golden, each with one sequence.
class Session {
 public:
  Session(const std::string& folder, const std::string& dtype)
      : golden(open_safetensors((kFolder / "golden.speech.safetensors").string())),
        loaded(load_speech_model((kFolder / folder).string(),
                                 {.device = golden_device(), .dtype = dtype, .quiet = true})),
        model(*loaded.model),
        self_(model.self_cache_specs(), 6, kBlock, loaded.compute_dtype, golden_device()),
        cross_(model.cross_cache_specs(), 4, kBlock, loaded.compute_dtype, golden_device()) {
    const Tensor features = golden->read("input_features");
    encoded = model.encode(features.reshape({2 * 64, 24}).contiguous().to(golden_device()), 2);
    Ids slots(64);
    std::iota(slots.begin(), slots.end(), 0);
    model.write_cross(encoded, Tensor::from_vector(slots).to(golden_device()), cross_);
  }

  // ids: of both sequences, equally many, from `begin` on.
  Tensor run(const std::vector<Ids>& ids, int32_t begin, const SpeechModel::QueryTap& tap = {}) {
    const auto n = static_cast<int32_t>(ids[0].size());
    Ids tokens, positions, slots, rows;
    for (int32_t s = 0; s < 2; ++s) {
      for (int32_t i = 0; i < n; ++i) {
        tokens.push_back(ids[static_cast<size_t>(s)][static_cast<size_t>(i)]);
        positions.push_back(begin + i);
        // Sequence s has the blocks s, s + 2, s + 4.
        slots.push_back((s + 2 * ((begin + i) / 16)) * 16 + (begin + i) % 16);
        rows.push_back(s * n + i);
      }
    }
    const auto send = [](const Ids& x) { return Tensor::from_vector(x).to(golden_device()); };
    const AttentionBatch own{
        .query_start = send({0, n, 2 * n}),
        .context_len = send({begin + n, begin + n}),
        .block_table = Tensor::from_vector(Ids{0, 2, 4, 1, 3, 5}, {2, 3}).to(golden_device()),
        .max_query_len = n,
        .max_context_len = begin + n};
    AttentionBatch encoder = own;
    encoder.context_len = send({32, 32});
    encoder.block_table = Tensor::from_vector(Ids{0, 1, 2, 3}, {2, 2}).to(golden_device());
    encoder.max_context_len = 32;
    return model.decode({.tokens = {send(tokens), send(positions), send(slots), own, send(rows)},
                         .encoder = encoder},
                        self_, cross_, tap);
  }
  std::vector<Ids> ids_of(const char* name) const {
    const Tensor t = golden->read(name);
    std::vector<Ids> out;
    for (int64_t s = 0; s < 2; ++s) out.push_back(t.rows(s, s + 1).to_vector<int32_t>());
    return out;
  }
  KvCache& cross() { return cross_; }

  std::unique_ptr<CheckpointReader> golden;
  LoadedSpeechModel loaded;
  SpeechModel& model;
  Tensor encoded;

 private:
  KvCache self_, cross_;
};

class SpeechGolden : public testing::TestWithParam<const char*> {};

TEST_P(SpeechGolden, EncoderAndLogits) {
  Session session(GetParam(), "float32");
  EXPECT_LE(max_error(session.encoded, session.golden->read("encoder")), kLogitBar);
  std::vector<Tensor> weights;
  const Tensor blocks = Tensor::from_vector(Ids{0, 1}).to(golden_device());
  const Tensor logits =
      session.run(session.ids_of("decoder_ids"), 0, [&](int64_t layer, const Tensor& q) {
        weights.push_back(attention_weights(q.rows(0, 9), session.cross().layer(layer), blocks, 2,
                                            32, session.model.cross_scale()));
      });
  EXPECT_LE(max_error(logits, session.golden->read("logits")), kLogitBar);
  ASSERT_EQ(weights.size(), 3u);
  for (size_t layer = 0; layer < weights.size(); ++layer) {
    const Tensor want = session.golden->read("cross." + std::to_string(layer));  // [2, H, 9, 32]
    EXPECT_LE(max_error(weights[layer], want.reshape({8, 9 * 32}).rows(2, 3).contiguous()), 1e-5f)
        << layer;
  }
}

TEST_P(SpeechGolden, GreedyTokenByToken) {
  Session session(GetParam(), "float32");
  const std::vector<Ids> want = session.ids_of("greedy_ids");
  std::vector<Ids> next = session.ids_of("decoder_ids");
  int32_t begin = 0;
  for (size_t i = 0; i < want[0].size(); ++i) {
    const Tensor logits = session.run(next, begin).to(kCpuDevice);
    const auto n = static_cast<int64_t>(next[0].size());
    begin += static_cast<int32_t>(n);
    for (size_t s = 0; s < 2; ++s) {
      const float* row =
          logits.rows((static_cast<int64_t>(s) + 1) * n - 1, (static_cast<int64_t>(s) + 1) * n)
              .data<float>();
      next[s] = {static_cast<int32_t>(std::max_element(row, row + logits.size(1)) - row)};
      ASSERT_EQ(next[s][0], want[s][i]) << "sequence " << s << ", token " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, SpeechGolden, testing::Values("model", "model_ct2"));

TEST(SpeechLoad, Int8OfCtranslate2) {
  Session session("model_int8", "float32");
  const Tensor logits = session.run(session.ids_of("decoder_ids"), 0);
  EXPECT_LE(max_error(logits, session.golden->read("int8_logits")), kLogitBar);
}

TEST(SpeechLoad, HalfPrecisionStaysClose) {
  for (const char* dtype : {"float16", "bfloat16"}) {
    Session session("model", dtype);
    const Tensor logits = session.run(session.ids_of("decoder_ids"), 0);
    // Eight or eleven bits through five layers of values around 1.
    EXPECT_LE(max_error(logits, session.golden->read("logits")),
              std::string_view(dtype) == "float16" ? 0.05f : 0.4f)
        << dtype;
  }
}

TEST(SpeechLoad, TellsSpeechModels) {
  EXPECT_TRUE(is_speech_model((kFolder / "model").string()));
  EXPECT_TRUE(is_speech_model((kFolder / "model_ct2").string()));
  EXPECT_FALSE(is_speech_model((kFolder.parent_path() / "llama").string()));
  EXPECT_FALSE(is_speech_model("/nowhere"));
  const LoadedSpeechModel ct2 =
      load_speech_model((kFolder / "model_ct2").string(), {.quiet = true});
  EXPECT_EQ(ct2.generation_config["suppress_tokens"].dump(), "[5,6]");
  EXPECT_EQ(ct2.generation_config["alignment_heads"].dump(), "[[1,2],[2,0]]");
}

TEST(SpeechLoad, DamagedFilesAreErrors) {
  const std::string bytes = read_file((kFolder / "model_ct2" / "model.bin").string());
  const fs::path folder = fs::path(testing::TempDir()) / "reft_ct2";
  fs::create_directories(folder);
  const auto load_with = [&](const std::string& data) {
    std::ofstream(folder / "model.bin", std::ios::binary) << data;
    return error_of([&] { load_speech_model(folder.string(), {.quiet = true}); });
  };
  EXPECT_EQ(load_with(bytes), "");
  for (const size_t length :
       {size_t{20}, size_t{40}, size_t{200}, bytes.size() / 2, bytes.size() - 5})
    EXPECT_NE(load_with(bytes.substr(0, length)), "") << length;
  std::string renamed = bytes;
  renamed.replace(renamed.find("encoder/conv2/bias"), 18, "encoder/conv2/bios");
  EXPECT_NE(load_with(renamed).find("conv2.bias"), std::string::npos);
  std::string type = bytes;
  const size_t at = type.find("encoder/conv1/bias") + 19;  // rank, one size, then the type
  type[at + 5] = 9;
  EXPECT_NE(load_with(type).find("unknown type 9"), std::string::npos);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace reft
