// Models written in other forms, read back by reft's own readers, and adapters folded in against
// PEFT's logits of the adapter beside the weights (tools/make_export_golden.py).
#include "train/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/error_of_test.h"
#include "base/json.h"
#include "base/log.h"
#include "models/model.h"
#include "tensor/gguf.h"
#include "tensor/safetensors.h"
#include "text/tokenizer.h"
#include "train/data/test_files_test.h"
#include "train/export_check.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const std::string kRoot = REFT_SOURCE_DIR;
const std::string kGolden = kRoot + "/tests/golden/";
const std::string kAdapters = kRoot + "/tests/train/adapters/";

class ExportTest : public testing::Test {
 protected:
  ExportTest() {
    set_log_level(LogLevel::kError);
    // As tests/golden/tokenizers/byte_level.json, split in a way that GGUF has a name for.
    Json tokenizer = read_json_file(kGolden + "tokenizers/byte_level.json");
    tokenizer["normalizer"] = nullptr;
    folder_.write("tokenizer/tokenizer.json", tokenizer.dump());
    folder_.write("tokenizer/tokenizer_config.json",
                  R"({"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}"})");
  }
  ~ExportTest() override { set_log_level(LogLevel::kInfo); }

  ExportOptions options(const std::string& model, const std::string& out) const {
    ExportOptions o;
    o.model_path = model;
    o.output = folder_.path(out);
    o.tokenizer_path = folder_.path("tokenizer");
    o.quiet = true;
    return o;
  }
  ExportOptions gguf_options(const std::string& model, const std::string& out, DType quant) const {
    ExportOptions o = options(model, out);
    o.gguf = true;
    o.quant = quant;
    return o;
  }

  TempFolder folder_;
};

std::vector<std::string> golden_models() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGolden)) {
    if (fs::exists(entry.path() / "gradients.safetensors"))
      names.push_back(entry.path().filename());
  }
  return names;
}

TEST_F(ExportTest, EveryFamilySurvivesGguf) {
  int written = 0;
  for (const std::string& name : golden_models()) {
    const std::string path = folder_.path(name + ".gguf");
    const std::string fault =
        error_of([&] { export_model(gguf_options(kGolden + name, name + ".gguf", DType::kF32)); });
    if (!fault.empty()) {  // what GGUF cannot say is refused, by name
      EXPECT_TRUE(fault.find("cannot be written as GGUF") != std::string::npos) << name << fault;
      EXPECT_FALSE(fs::exists(path)) << name;
      continue;
    }
    ++written;
    const auto described = describe_model(kGolden + name, {});
    const bool windows = std::ranges::any_of(
        described->cache_specs(), [](const LayerCacheSpec& spec) { return spec.window > 0; });
    // A warning says that the window is lost.
    if (windows && described->info().architecture.find("Gemma") == std::string::npos) continue;
    const ExportDifference d = compare_models(kGolden + name, path, true);
    EXPECT_LT(d.max_logit, 2e-4) << name;  // rotary factors are rounded once more
    EXPECT_EQ(d.agreement, 1) << name;
    EXPECT_EQ(open_gguf(path)->get<std::string>("tokenizer.chat_template", ""),
              "{{ messages[0].content }}");
  }
  EXPECT_GE(written, 8);
}

TEST_F(ExportTest, GgufFilesBecomeFoldersWithTheSameBytes) {
  ExportOptions o = options(kGolden + "llama/model.F32.gguf", "hf");
  o.dtype = DType::kF32;
  export_model(o);
  const auto want = open_safetensors(kGolden + "llama/model.safetensors");
  const auto got = open_safetensors(folder_.path("hf/model.safetensors"));
  ASSERT_EQ(got->entries().size(), want->entries().size());
  for (const TensorEntry& entry : want->entries()) {
    EXPECT_EQ(got->read(entry.name).to_vector<float>(),
              want->read(entry.name).to(DType::kF32).to_vector<float>())
        << entry.name;
  }
  EXPECT_TRUE(fs::exists(folder_.path("hf/tokenizer.json")));
}

// tools/make_golden.py quantised these files with gguf-py.
TEST_F(ExportTest, QuantisedTensorsAreThoseOfGgufPy) {
  for (const auto& [file, quant] :
       {std::pair("F16", DType::kF16), std::pair("BF16", DType::kBF16),
        std::pair("Q8_0", DType::kQ8_0), std::pair("Q4_1", DType::kQ4_1)}) {
    const std::string out = std::string(file) + ".gguf";
    export_model(gguf_options(kGolden + "llama", out, quant));
    const auto want = open_gguf(fmt::format("{}llama/model.{}.gguf", kGolden, file));
    const auto got = open_gguf(folder_.path(out));
    int same = 0;
    for (const TensorEntry& entry : want->entries()) {
      const Tensor ours = got->read(entry.name), theirs = want->read(entry.name);
      EXPECT_EQ(ours.shape(), theirs.shape()) << entry.name;
      if (ours.dtype() != theirs.dtype()) continue;
      ++same;
      EXPECT_EQ(ours.to(DType::kF32).to_vector<float>(), theirs.to(DType::kF32).to_vector<float>())
          << file << " " << entry.name;
    }
    EXPECT_GE(same, 20) << file;
  }
}

TEST_F(ExportTest, FourBitFormatsKeepEmbeddingAndHead) {
  const std::string model = kGolden + "llama";  // rows of 32 and 96: no whole blocks of Q4_K
  for (const auto& [quant, matrix] :
       {std::pair(DType::kQ4_0, DType::kQ4_0), std::pair(DType::kQ4_K, DType::kQ5_0)}) {
    const ExportResult result = export_model(gguf_options(model, "four.gguf", quant));
    const auto file = open_gguf(result.path);
    EXPECT_EQ(file->read("token_embd.weight").dtype(), DType::kQ8_0);
    EXPECT_EQ(file->read("output.weight").dtype(), DType::kQ8_0);
    EXPECT_EQ(file->read("blk.0.ffn_down.weight").dtype(), matrix);
    EXPECT_EQ(file->read("blk.0.attn_norm.weight").dtype(), DType::kF32);
  }
}

TEST_F(ExportTest, VerifyMeasuresWhatRoundingChanges) {
  ExportOptions o = options(kGolden + "llama", "bf16");
  o.dtype = DType::kBF16;
  o.verify = true;
  const ExportResult result = export_model(o);
  ASSERT_TRUE(result.difference);
  EXPECT_GT(result.difference->max_logit, 0);
  EXPECT_LT(result.difference->kl, 1e-3);
  EXPECT_FALSE(fs::exists(o.output + ".verify"));
  o.output = folder_.path("f32");
  o.dtype = DType::kF32;
  EXPECT_EQ(export_model(o).difference->max_logit, 0);
  EXPECT_EQ(read_json_file(folder_.path("bf16/config.json")).at("dtype"), "bfloat16");
}

TEST_F(ExportTest, FoldersAreCutIntoShards) {
  ExportOptions o = options(kGolden + "llama", "shards");
  o.max_shard_bytes = 40'000;
  export_model(o);
  EXPECT_TRUE(fs::exists(folder_.path("shards/model.safetensors.index.json")));
  EXPECT_EQ(compare_models(kGolden + "llama", o.output, true).max_logit, 0);
}

// Logits of a folder in float32 for the ids of an adapter's golden.
double worst_difference(const std::string& path, const std::string& adapter, double* kl) {
  const auto golden = open_safetensors(kAdapters + adapter + "/logits.safetensors");
  const Tensor want = golden->read("logits");
  const Tensor got = probe_logits(path, golden->read("ids").to_vector<int32_t>());
  const int64_t vocab = want.size(1);
  double worst = 0, sum = 0;
  for (int64_t row = 0; row < want.size(0); ++row) {
    const float* x = want.data<float>() + row * vocab;
    const float* y = got.data<float>() + row * vocab;
    for (int64_t i = 0; i < vocab; ++i) {
      worst = std::max(worst, std::fabs(double{x[i]} - double{y[i]}));
    }
    sum += kl_divergence(x, y, vocab);
  }
  *kl = sum / static_cast<double>(want.size(0));
  return worst;
}

TEST_F(ExportTest, MergedAdaptersPredictWhatPeftDoesUnmerged) {
  for (const auto& [adapter, base] : {std::pair("plain", "llama"), std::pair("patterns", "llama"),
                                      std::pair("tied", "smollm2")}) {
    ExportOptions o = options(kGolden + base, adapter);
    o.adapter = kAdapters + adapter;
    o.dtype = DType::kF32;
    export_model(o);
    double kl = 0;
    EXPECT_LT(worst_difference(o.output, adapter, &kl), 1e-4) << adapter;
    EXPECT_LT(kl, 1e-8) << adapter;
    EXPECT_EQ(read_json_file(o.output + "/config.json").at("tie_word_embeddings"), false);
    const ExportResult gguf = export_model([&] {
      ExportOptions g = gguf_options(o.model_path, std::string(adapter) + ".gguf", DType::kF16);
      g.adapter = o.adapter;
      return g;
    }());
    worst_difference(gguf.path, adapter, &kl);
    EXPECT_LT(kl, 1e-4) << adapter;
  }
}

TEST_F(ExportTest, TokenizersComeBackFromGguf) {
  const auto check_tokens = [&](const std::string& tokenizer) {
    ExportOptions o = gguf_options(kGolden + "llama", "t.gguf", DType::kF32);
    o.tokenizer_path = tokenizer;
    export_model(o);  // which compares how both encode a few texts
    const auto got = load_tokenizer(*open_gguf(folder_.path("t.gguf")));
    const auto want = load_tokenizer(tokenizer);
    if (want->eos_id()) {
      EXPECT_EQ(got->eos_id(), want->eos_id()) << tokenizer;
    }
    if (want->bos_id()) {
      EXPECT_EQ(got->bos_id(), want->bos_id()) << tokenizer;
    }
    EXPECT_EQ(got->chat_template(), want->chat_template()) << tokenizer;
  };
  check_tokens(folder_.path("tokenizer"));
  check_tokens(kGolden + "tokenizers/byte_fallback.json");
  check_tokens(kGolden + "tokenizers/spm_bpe.model");
  for (const char* name : {"qwen2_5", "qwen3", "llama3_1", "deepseek_v3", "gemma", "gemma3"}) {
    const std::string shared = kRoot + "/../shared/tokenizers/" + name;
    if (fs::exists(shared) && has_tokenizer(shared)) check_tokens(shared);
  }
  ExportOptions o = gguf_options(kGolden + "llama", "t.gguf", DType::kF32);
  for (const char* name : {"wordpiece.json", "spm_unigram.model"}) {
    o.tokenizer_path = kGolden + "tokenizers/" + name;
    EXPECT_THAT(error_of([&] { export_model(o); }), HasSubstr("cannot be written as GGUF"));
  }
}

TEST_F(ExportTest, BadInputIsNamed) {
  const auto fault = [](const ExportOptions& o) { return error_of([&] { export_model(o); }); };
  ExportOptions o = options(kGolden + "llama", "out");
  o.output.clear();
  EXPECT_THAT(fault(o), HasSubstr("--output"));
  o = options("/nowhere", "out");
  EXPECT_THAT(fault(o), HasSubstr("/nowhere"));
  o = options(kGolden + "llama", "out");
  o.output = o.model_path;
  EXPECT_THAT(fault(o), HasSubstr("--output"));
  o = options(kGolden + "smollm2", "out");
  o.adapter = kAdapters + "plain";
  EXPECT_THAT(fault(o), HasSubstr("plain: the model has no 'model.layers.2"));
  EXPECT_THAT(error_of([] { parse_quant("Q3_K"); }), HasSubstr("Q4_K"));
}

}  // namespace
}  // namespace reft
