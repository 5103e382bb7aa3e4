// Loading: what is refused and how it is said, dummy weights, sizes of the published models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>

#include "base/file.h"
#include "base/thread_pool.h"
#include "models/config.h"
#include "models/dummy.h"
#include "models/model.h"
#include "tensor/checkpoint_reader.h"
#include "tensor/safetensors_writer.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const fs::path kGolden = fs::path(REFT_SOURCE_DIR) / "tests" / "golden";

// A copy of a golden folder whose config and tensors a test may change.
class ModelFolder {
 public:
  explicit ModelFolder(const std::string& golden)
      : path_(fs::temp_directory_path() /
              ("reft_load_test_" + std::to_string(getpid()) + "_" + std::to_string(++count_))),
        config_(read_json_file((kGolden / golden / "config.json").string())) {
    fs::remove_all(path_);
    fs::create_directories(path_);
    const auto reader = open_checkpoint((kGolden / golden).string());
    for (const TensorEntry& entry : reader->entries())
      tensors_.emplace_back(entry.name, reader->read(entry.name));
  }
  ~ModelFolder() { fs::remove_all(path_); }

  Json& config() { return config_; }
  std::vector<std::pair<std::string, Tensor>>& tensors() { return tensors_; }
  Tensor& tensor(const std::string& name) {
    for (auto& [own, tensor] : tensors_) {
      if (own == name) return tensor;
    }
    throw Error("no tensor " + name);
  }
  void drop(const std::string& name) {
    std::erase_if(tensors_, [&](const auto& item) { return item.first == name; });
  }

  const fs::path& path() const { return path_; }
  LoadedModel load(LoadOptions options = {.dtype = "float32", .quiet = true}) const {
    write_file_atomic((path_ / "config.json").string(), config_.dump());
    if (options.load_format != "dummy")
      write_safetensors((path_ / "model.safetensors").string(), tensors_);
    return load_model(path_.string(), options);
  }
  // The message of the Error that loading throws; "" when it does not.
  std::string error(LoadOptions options = {.dtype = "float32", .quiet = true}) const {
    try {
      load(options);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

 private:
  static inline int count_ = 0;

  fs::path path_;
  Json config_;
  std::vector<std::pair<std::string, Tensor>> tensors_;
};

TEST(Load, BadConfigNamesTheKey) {
  struct Case {
    const char* key;
    Json value;  // discarded: the key is removed
  };
  const Json removed(Json::value_t::discarded);
  const std::vector<Case> cases = {
      {"hidden_size", 0},
      {"hidden_size", -32},
      {"hidden_size", "32"},
      {"hidden_size", 32.5},
      {"hidden_size", removed},
      {"hidden_size", 1e30},
      {"num_hidden_layers", 0},
      {"num_hidden_layers", 1000000},
      {"num_hidden_layers", removed},
      {"num_attention_heads", 0},
      {"num_attention_heads", true},
      {"num_attention_heads", removed},
      {"num_key_value_heads", -1},
      {"num_attention_heads", 3},
      {"intermediate_size", 0},
      {"intermediate_size", nullptr},
      {"vocab_size", 0},
      {"vocab_size", removed},
      {"head_dim", 15},
      {"head_dim", 0},
      {"max_position_embeddings", 0},
      {"max_position_embeddings", 2000000000},
      {"rms_norm_eps", -1e-6},
      {"rms_norm_eps", "small"},
      {"hidden_act", "swoosh"},
      {"hidden_act", 3},
      {"tie_word_embeddings", "yes"},
      {"attention_bias", 1},
      {"dtype", "int4"},
      {"rope_parameters", 7},
      {"quantization_config", {{"quant_method", "bitsandbytes"}}},
  };
  for (const Case& c : cases) {
    ModelFolder folder("llama");
    if (c.value.is_discarded()) {
      folder.config().erase(c.key);
    } else {
      folder.config()[c.key] = c.value;
    }
    const std::string error = folder.error();
    EXPECT_THAT(error, HasSubstr(c.key)) << c.key << " = " << c.value;
    EXPECT_THAT(error, HasSubstr("config.json")) << c.key << " = " << c.value;
  }
}

TEST(Load, BrokenQuantizedCheckpointsNameTheTensor) {
  struct Case {
    const char* golden;
    std::function<void(ModelFolder&)> change;
    const char* said;
  };
  const auto quantization = [](const char* key, Json value) {
    return
        [key, value](ModelFolder& folder) { folder.config()["quantization_config"][key] = value; };
  };
  const std::string layer = "model.layers.0.";
  const Case cases[] = {
      {"quant_awq", quantization("bits", 3), "awq with 3 bits"},
      {"quant_awq", quantization("version", "gemv"), "gemv"},
      {"quant_awq", quantization("group_size", 48), "group_size"},
      {"quant_awq", quantization("quant_method", "gptq"), "qweight"},
      {"quant_awq", quantization("quant_method", "aqlm"), "aqlm"},
      {"quant_awq", [&](ModelFolder& f) { f.drop(layer + "mlp.up_proj.qzeros"); },
       "mlp.up_proj.qzeros' is missing"},
      {"quant_awq", [&](ModelFolder& f) { f.drop(layer + "mlp.up_proj.qweight"); },
       "mlp.up_proj.weight' is missing"},
      {"quant_awq",
       [&](ModelFolder& f) {
         Tensor& t = f.tensor(layer + "self_attn.q_proj.scales");
         t = t.rows(0, 1);
       },
       "self_attn.q_proj.qzeros"},
      {"quant_gptq_act",
       [&](ModelFolder& f) {
         Tensor& t = f.tensor(layer + "mlp.down_proj.g_idx");
         std::vector<int32_t> groups = t.to_vector<int32_t>();
         groups[5] = 3;
         t = Tensor::from_vector(groups);
       },
       "names group 3 of 3"},
      {"quant_fp8_block", [&](ModelFolder& f) { f.drop(layer + "mlp.up_proj.weight_scale_inv"); },
       "mlp.up_proj.weight_scale_inv"},
      {"quant_fp8_block", quantization("weight_block_size", {128}), "weight_block_size"},
      {"quant_fp8_block", quantization("weight_block_size", {64, 128}), "blocks of 64 x 128"},
      {"quant_fp8_block", quantization("fmt", "e5m2"), "e5m2"},
      {"quant_packed", [&](ModelFolder& f) { f.drop(layer + "mlp.up_proj.weight_scale"); },
       "mlp.up_proj.weight_scale' is missing"},
  };
  for (const Case& c : cases) {
    ModelFolder folder(c.golden);
    c.change(folder);
    EXPECT_THAT(folder.error(), HasSubstr(c.said)) << c.golden;
  }
}

TEST(Load, QuantizationMayLieInAFileOfItsOwn) {
  ModelFolder folder("quant_gptq");
  const LoadedModel want = folder.load();
  const Json quantization = folder.config()["quantization_config"];
  folder.config().erase("quantization_config");
  EXPECT_THAT(folder.error(), HasSubstr("self_attn.q_proj.weight' is missing"));
  write_file_atomic((folder.path() / "quantize_config.json").string(), quantization.dump());
  EXPECT_EQ(folder.load().num_parameters, want.num_parameters);
}

TEST(Load, QuantizedCheckpointsAreNotTrained) {
  const ModelFolder folder("quant_awq");
  EXPECT_THAT(folder.error({.dtype = "bfloat16",
                            .quiet = true,
                            .trainable = [](const std::string&) { return true; }}),
              HasSubstr("quantised by 'awq' cannot be trained"));
}

// The parameters that are quantised at load: those of linear layers, but the head.
TEST(Load, QuantizationIsAskedForByName) {
  const auto quantized = [](const LoadedModel& loaded) {
    std::vector<std::string> names;
    loaded.model->visit([&](const std::string& name, Parameter& parameter) {
      EXPECT_EQ(parameter.quantize, name.ends_with("_proj.weight")) << name;
      if (parameter.quantize) names.push_back(name);
    });
    return names.size();
  };
  ModelFolder plain("llama");
  const int64_t layers = plain.config().at("num_hidden_layers").get<int64_t>();
  LoadOptions options{.dtype = "bfloat16", .quantization = "fp8", .quiet = true};
  EXPECT_EQ(quantized(plain.load(options)), static_cast<size_t>(7 * layers));
  options.load_format = "dummy";
  EXPECT_EQ(quantized(plain.load(options)), static_cast<size_t>(7 * layers));
  options.quantization = "auto";
  EXPECT_EQ(quantized(ModelFolder("quant_fp8_block").load(options)), 14u);  // as its config says

  options = {.dtype = "bfloat16", .quantization = "gptq", .quiet = true};
  EXPECT_THAT(plain.error(options), HasSubstr("needs a checkpoint of that kind"));
  ModelFolder awq("quant_awq");
  EXPECT_THAT(awq.error(options), HasSubstr("the checkpoint's quant_method is 'awq'"));
  options.quantization = "awq";
  EXPECT_EQ(awq.error(options), "");
}

TEST(Load, BadRotaryParametersNameTheKey) {
  struct Case {
    const char* key;
    Json rope;
  };
  const std::vector<Case> cases = {
      {"rope_type", {{"rope_type", "spiral"}}},
      {"rope_theta", {{"rope_type", "default"}, {"rope_theta", 0}}},
      {"rope_theta", {{"rope_type", "default"}, {"rope_theta", "big"}}},
      {"factor", {{"rope_type", "linear"}}},
      {"factor", {{"rope_type", "linear"}, {"factor", -2}}},
      {"low_freq_factor", {{"rope_type", "llama3"}, {"factor", 8}, {"high_freq_factor", 4}}},
      {"high_freq_factor",
       {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}},
      {"original_max_position_embeddings",
       {{"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 0}}},
      {"short_factor",
       {{"rope_type", "longrope"},
        {"factor", 4},
        {"short_factor", {1, 2}},
        {"long_factor", {1, 2}}}},
      {"partial_rotary_factor",
       {{"rope_type", "linear"}, {"factor", 1}, {"partial_rotary_factor", 0.2}}},
      {"partial_rotary_factor",
       {{"rope_type", "linear"}, {"factor", 1}, {"partial_rotary_factor", 2}}},
  };
  for (const Case& c : cases) {
    ModelFolder folder("llama");
    folder.config()["rope_parameters"] = c.rope;
    EXPECT_THAT(folder.error(), HasSubstr(c.key)) << c.rope;
  }
}

TEST(Load, YarnStretchesThePositions) {
  ModelFolder folder("llama_yarn");
  Json& rope = folder.config()["rope_parameters"];
  EXPECT_EQ(folder.load().model->info().max_position, 128);  // 4 · 16 are fewer
  rope["original_max_position_embeddings"] = 100;
  EXPECT_EQ(folder.load().model->info().max_position, 400);
  rope.erase("original_max_position_embeddings");
  EXPECT_EQ(folder.load().model->info().max_position, 512);
  folder.config()["rope_scaling"] = {{"type", "yarn"}, {"factor", 2.5}};
  EXPECT_EQ(folder.load().model->info().max_position, 320);
  folder.config()["rope_scaling"] = {{"type", "linear"}, {"factor", 2.5}};
  EXPECT_EQ(folder.load().model->info().max_position, 128);
}

TEST(Load, BadLayerTypes) {
  ModelFolder folder("qwen3_sliding");
  folder.config()["layer_types"] = {"full_attention"};
  EXPECT_THAT(folder.error(), HasSubstr("layer_types is not a list of num_hidden_layers = 3"));
  folder.config()["layer_types"] = {"full_attention", "linear_attention", "full_attention"};
  EXPECT_THAT(folder.error(), HasSubstr("linear_attention"));
}

TEST(Load, UnknownArchitectures) {
  ModelFolder folder("llama");
  folder.config()["architectures"] = {"GPTZForCausalLM"};
  EXPECT_THAT(folder.error(),
              testing::AllOf(HasSubstr("GPTZForCausalLM"), HasSubstr("Qwen3ForCausalLM")));
  folder.config()["auto_map"] = {{"AutoModel", "modeling_gptz.GPTZ"}};
  EXPECT_THAT(folder.error(), testing::AllOf(HasSubstr("auto_map"), HasSubstr("never run")));
  folder.config()["architectures"] = Json::array();
  folder.config().erase("model_type");
  EXPECT_THAT(folder.error(), HasSubstr("architectures"));
  // Known architectures do not need their custom code, and model_type stands in for architectures.
  folder.config()["model_type"] = "llama";
  EXPECT_EQ(folder.error(), "");
}

TEST(Load, MissingMisshapedAndOddTensorsNameFileAndTensor) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  {
    ModelFolder folder("llama");
    folder.drop(name);
    EXPECT_THAT(folder.error(), testing::AllOf(HasSubstr(name), HasSubstr("missing"),
                                               HasSubstr(folder.path().string())));
  }
  {
    ModelFolder folder("llama");
    folder.tensor(name) = Tensor::zeros({96, 33}, DType::kF32);
    EXPECT_THAT(folder.error(),
                testing::AllOf(HasSubstr(name), HasSubstr("[96, 33]"), HasSubstr("[96, 32]"),
                               HasSubstr("model.safetensors")));
  }
  {
    ModelFolder folder("llama");
    folder.tensor(name) = Tensor::zeros({96, 32}, DType::kI32);
    EXPECT_THAT(folder.error(), testing::AllOf(HasSubstr(name), HasSubstr("int32"),
                                               HasSubstr("model.safetensors")));
  }
  {
    ModelFolder folder("llama");
    folder.config()["vocab_size"] = 212;
    EXPECT_THAT(folder.error(),
                testing::AllOf(HasSubstr("embed_tokens.weight"), HasSubstr("[212, 32]")));
  }
}

TEST(Load, SlidingWindowAbsentOrNull) {
  for (const char* golden : {"mistral", "qwen2"}) {
    ModelFolder folder(golden);
    folder.config().erase("layer_types");
    const auto window = [&] { return folder.load().model->cache_specs().back().window; };
    EXPECT_GT(window(), 0) << golden;
    folder.config()["sliding_window"] = nullptr;
    EXPECT_EQ(window(), 0) << golden;
    folder.config().erase("sliding_window");
    EXPECT_EQ(window(), 4096) << golden;
  }
}

TEST(Load, MissingFiles) {
  EXPECT_THROW(load_model((kGolden / "no_such_model").string(), {}), Error);
  EXPECT_THROW(load_model((kGolden / "rope.json").string(), {}), Error);
  ModelFolder folder("llama");
  EXPECT_THAT(folder.error({.load_format = "pickle"}), HasSubstr("pickle"));
  EXPECT_THAT(folder.error({.dtype = "int8"}), HasSubstr("int8"));
  write_file_atomic((folder.path() / "config.json").string(), "{\"architectures\": [");
  EXPECT_THROW(load_model(folder.path().string(), {}), Error);
}

TEST(Load, ExtraTensorsAreIgnored) {
  ModelFolder folder("llama");
  folder.tensors().emplace_back("model.layers.0.self_attn.rotary_emb.inv_freq",
                                Tensor::zeros({8}, DType::kF32));
  folder.tensors().emplace_back("score.weight", Tensor::zeros({2, 32}, DType::kF32));
  EXPECT_EQ(folder.error(), "");
}

TEST(Load, PrefixMayBeAbsentOrAnothers) {
  const int64_t parameters = ModelFolder("llama").load().num_parameters;
  for (const std::string prefix : {"", "language_model.model.", "model.language_model."}) {
    ModelFolder folder("llama");
    for (auto& [name, tensor] : folder.tensors()) {
      if (name.starts_with("model.")) name = prefix + name.substr(6);
    }
    EXPECT_EQ(folder.load().num_parameters, parameters) << prefix;
  }
}

TEST(Load, HeadTying) {
  const Tensor embedding = ModelFolder("llama3").tensor("model.embed_tokens.weight");
  const int64_t tied = ModelFolder("llama3").load().num_parameters;
  ModelFolder folder("llama3");
  folder.tensors().emplace_back("lm_head.weight", embedding);
  EXPECT_EQ(folder.load().num_parameters, tied) << "an equal head is shared";
  Tensor other = Tensor::zeros(embedding.shape(), DType::kF32);
  folder.tensor("lm_head.weight") = other;
  EXPECT_EQ(folder.load().num_parameters, tied + embedding.numel()) << "another head is used";
  folder.drop("lm_head.weight");
  folder.config()["tie_word_embeddings"] = false;
  EXPECT_THAT(folder.error(), HasSubstr("lm_head.weight"));
}

// The shapes alone, without weights.
int64_t count_parameters(const Json& config) {
  for (const ModelFamily& family : model_families()) {
    for (const std::string& name : family.architectures) {
      if (name != read_architecture(config)) continue;
      int64_t total = 0;
      family.create(config, {.max_model_len = 1})
          ->visit(
              [&](const std::string&, Parameter& parameter) { total += parameter.shape.numel(); });
      return total;
    }
  }
  return 0;
}

Json real_config(const char* architecture, int64_t vocab, int64_t hidden, int64_t layers,
                 int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t intermediate,
                 bool tied) {
  return {{"architectures", {architecture}},
          {"vocab_size", vocab},
          {"hidden_size", hidden},
          {"num_hidden_layers", layers},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"head_dim", head_dim},
          {"intermediate_size", intermediate},
          {"tie_word_embeddings", tied},
          {"max_position_embeddings", 32768}};
}

TEST(Load, PublishedParameterCounts) {
  EXPECT_EQ(
      count_parameters(real_config("Qwen3ForCausalLM", 151936, 1024, 28, 16, 8, 128, 3072, true)),
      596049920);
  EXPECT_EQ(
      count_parameters(real_config("Qwen3ForCausalLM", 151936, 4096, 36, 32, 8, 128, 12288, false)),
      8190735360);
  Json moe = real_config("Qwen3MoeForCausalLM", 151936, 2048, 48, 32, 4, 128, 6144, false);
  moe.update({{"num_experts", 128}, {"num_experts_per_tok", 8}, {"moe_intermediate_size", 768}});
  EXPECT_EQ(count_parameters(moe), 30532122624);
  moe.update({{"hidden_size", 4096},
              {"num_hidden_layers", 94},
              {"num_attention_heads", 64},
              {"moe_intermediate_size", 1536}});
  EXPECT_EQ(count_parameters(moe), 235093634560);
  EXPECT_EQ(
      count_parameters(real_config("LlamaForCausalLM", 128256, 2048, 16, 32, 8, 64, 8192, true)),
      1235814400);
  EXPECT_EQ(
      count_parameters(real_config("LlamaForCausalLM", 128256, 4096, 32, 32, 8, 128, 14336, false)),
      8030261248);
  EXPECT_EQ(count_parameters(real_config("LlamaForCausalLM", 49152, 576, 30, 9, 3, 64, 1536, true)),
            134515008);
  EXPECT_EQ(count_parameters(
                real_config("MistralForCausalLM", 32000, 4096, 32, 32, 8, 128, 14336, false)),
            7241732096);
  EXPECT_EQ(
      count_parameters(real_config("Qwen2ForCausalLM", 151936, 896, 24, 14, 2, 64, 4864, true)),
      494032768);
  EXPECT_EQ(
      count_parameters(real_config("GemmaForCausalLM", 256000, 2048, 18, 8, 1, 256, 16384, true)),
      2506172416);
  EXPECT_EQ(
      count_parameters(real_config("Gemma2ForCausalLM", 256000, 2304, 26, 8, 4, 256, 9216, true)),
      2614341888);
  EXPECT_EQ(
      count_parameters(real_config("Gemma3ForCausalLM", 262144, 1152, 26, 4, 1, 256, 6912, true)),
      999885952);
}

// The released config of gemma-3-4b-it leaves out everything that is transformers' default.
TEST(Load, SparseGemma3Config) {
  const Json config = {{"architectures", {"Gemma3ForConditionalGeneration"}},
                       {"model_type", "gemma3"},
                       {"torch_dtype", "bfloat16"},
                       {"text_config",
                        {{"hidden_size", 2560},
                         {"intermediate_size", 10240},
                         {"model_type", "gemma3_text"},
                         {"num_hidden_layers", 34},
                         {"rope_scaling", {{"factor", 8.0}, {"rope_type", "linear"}}},
                         {"sliding_window", 1024}}}};
  EXPECT_EQ(count_parameters(config), 3880263168);
  for (const ModelFamily& family : model_families()) {
    if (family.architectures.back() != "Gemma3ForConditionalGeneration") continue;
    const auto model = family.create(config, {.max_model_len = 1});
    EXPECT_EQ(model->info().checkpoint_dtype, DType::kBF16);
    EXPECT_EQ(model->info().max_position, 131072);
    const std::vector<LayerCacheSpec> specs = model->cache_specs();
    ASSERT_EQ(specs.size(), 34u);
    EXPECT_EQ(specs[4].window, 1024);
    EXPECT_EQ(specs[5].window, 0);
  }
}

TEST(Load, DummyWeights) {
  ModelFolder folder("qwen3");
  const LoadOptions options{.load_format = "dummy", .seed = 7, .quiet = true};
  const auto logits_of = [&](LoadOptions own) {
    const LoadedModel loaded = folder.load(own);
    EXPECT_EQ(loaded.compute_dtype, DType::kBF16);
    EXPECT_EQ(loaded.num_parameters, ModelFolder("qwen3").load().num_parameters);
    Batch batch;
    batch.token_ids = Tensor::from_vector<int32_t>({3, 4});
    batch.positions = Tensor::from_vector<int32_t>({0, 1});
    batch.slots = batch.positions;
    batch.attention = {.query_start = Tensor::from_vector<int32_t>({0, 2}),
                       .context_len = Tensor::from_vector<int32_t>({2}),
                       .block_table = Tensor::from_vector<int32_t>({0}, {1, 1}),
                       .max_query_len = 2,
                       .max_context_len = 2};
    batch.logit_rows = Tensor::from_vector<int32_t>({1});
    KvCache cache(loaded.model->cache_specs(), 1, 16, loaded.compute_dtype, kCpuDevice);
    return loaded.model->forward(batch, cache).to_vector<float>();
  };
  const std::vector<float> first = logits_of(options);
  float largest = 0;
  for (const float x : first) {
    ASSERT_TRUE(std::isfinite(x));
    largest = std::max(largest, std::abs(x));
  }
  EXPECT_GT(largest, 0);
  EXPECT_EQ(first, logits_of(options)) << "the same seed gives the same weights";
  LoadOptions other = options;
  other.seed = 8;
  EXPECT_NE(first, logits_of(other));
}

TEST(Load, DummyWeightsDoNotDependOnTheThreads) {
  const Parameter large{.name = "weight", .shape = {701, 997}, .set = {}};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    set_compute_threads(1);
    const Tensor one = dummy_tensor(large, "a", dtype, 3);
    set_compute_threads(5);
    const Tensor five = dummy_tensor(large, "a", dtype, 3);
    set_compute_threads(0);
    EXPECT_EQ(std::memcmp(one.raw(), five.raw(), static_cast<size_t>(one.nbytes())), 0);
    const Tensor other = dummy_tensor(large, "b", dtype, 3);
    EXPECT_NE(std::memcmp(one.raw(), other.raw(), static_cast<size_t>(one.nbytes())), 0);
  }
}

}  // namespace
}  // namespace reft
