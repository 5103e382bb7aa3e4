// Adapters that PEFT has written (tools/make_training_golden_peft.py), and what is written back.
#include "engine/peft_adapter.h"
#include "base/error_of_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

const std::string kAdapters = std::string(REFT_SOURCE_DIR) + "/tests/train/adapters/";

class AdapterFolder : public testing::Test {
 protected:
  AdapterFolder()
      : folder_((fs::temp_directory_path() / fmt::format("reft_adapter_{}", ::getpid())).string()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~AdapterFolder() override { fs::remove_all(folder_); }
  void write(const LoraAdapter& adapter) const {
    write_safetensors(folder_ + "/adapter_model.safetensors", adapter_tensors(adapter));
    write_file_atomic(folder_ + "/adapter_config.json", adapter_config_json(adapter.config).dump());
  }
  std::string folder_;
};

std::vector<std::byte> bytes_of(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.raw(), t.raw() + t.nbytes()};
}

void expect_same(const LoraAdapter& a, const LoraAdapter& b) {
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (const auto& [path, weights] : a.layers) {
    const LoraWeights& other = b.layers.at(path);
    EXPECT_EQ(weights.scale, other.scale) << path;
    EXPECT_EQ(bytes_of(weights.a), bytes_of(other.a)) << path;
    EXPECT_EQ(bytes_of(weights.b), bytes_of(other.b)) << path;
    EXPECT_EQ(bytes_of(weights.magnitude), bytes_of(other.magnitude)) << path;
  }
  ASSERT_EQ(a.saved.size(), b.saved.size());
  for (const auto& [key, tensor] : a.saved) EXPECT_EQ(bytes_of(tensor), bytes_of(b.saved.at(key)));
}

TEST_F(AdapterFolder, PeftsAdaptersAreReadAndWrittenBack) {
  for (const char* name : {"plain", "patterns"}) {
    const LoraAdapter adapter = read_adapter(kAdapters + name);
    const Json scales = read_json_file(kAdapters + name + "/golden.json");
    ASSERT_EQ(adapter.layers.size(), scales.size());
    for (const auto& [path, scale] : scales.items()) {
      EXPECT_DOUBLE_EQ(adapter.layers.at(path).scale, scale.get<double>()) << path;
      EXPECT_TRUE(adapter.config.is_target(path)) << path;
    }
    EXPECT_FALSE(adapter.config.is_target("lm_head"));
    write(adapter);
    expect_same(adapter, read_adapter(folder_));
    // The very keys of PEFT.
    const auto ours = open_safetensors(folder_ + "/adapter_model.safetensors");
    const auto theirs = open_safetensors(kAdapters + name + "/adapter_model.safetensors");
    EXPECT_EQ(ours->entries().size(), theirs->entries().size());
    for (const TensorEntry& entry : theirs->entries()) EXPECT_TRUE(ours->contains(entry.name));
  }
}

TEST_F(AdapterFolder, PatternsAndFlagsAreRead) {
  const LoraConfig plain = read_adapter(kAdapters + "plain").config;
  EXPECT_EQ(plain.rank, 4);
  EXPECT_EQ(plain.alpha, 8);
  EXPECT_EQ(plain.dropout, 0.05);
  EXPECT_EQ(plain.base_model, "tiny-llama");
  EXPECT_THAT(plain.target_modules, testing::UnorderedElementsAre("down_proj", "q_proj"));
  EXPECT_FALSE(plain.is_target("model.layers.0.self_attn.xq_proj"));
  const LoraAdapter patterns = read_adapter(kAdapters + "patterns");
  EXPECT_TRUE(patterns.config.use_dora && patterns.config.use_rslora);
  EXPECT_EQ(patterns.layers.at("model.layers.1.mlp.up_proj").a.size(0), 3);
  EXPECT_THAT(patterns.config.modules_to_save, ElementsAre("lm_head"));
  EXPECT_TRUE(patterns.saved.contains("lm_head.weight"));
}

TEST(LoraConfig, TargetsByNameLayerAndExpression) {
  LoraConfig config;
  config.target_modules = {"mlp.up_proj"};
  config.layers_to_transform = {1, 12};
  EXPECT_TRUE(config.is_target("model.layers.12.mlp.up_proj"));
  EXPECT_FALSE(config.is_target("model.layers.2.mlp.up_proj"));
  EXPECT_FALSE(config.is_target("model.layers.1.mlp.down_proj"));
  config = {};
  config.target_pattern = "all-linear";
  EXPECT_TRUE(config.is_target("model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(config.is_target("lm_head"));
  config.target_pattern = R"(.*\.layers\.[01]\..*_proj)";
  EXPECT_TRUE(config.is_target("model.layers.1.mlp.up_proj"));
  EXPECT_FALSE(config.is_target("model.layers.11.mlp.up_proj"));
  config.target_pattern = "(";
  EXPECT_THAT(error_of([&] { config.is_target("x"); }), HasSubstr("missing closing parenthesis"));
  config.rank_pattern = {{R"(layers\.\d\.mlp\.up_proj)", 2}, {"up_proj", 5}};
  EXPECT_EQ(config.rank_of("model.layers.1.mlp.up_proj"), 2);
  EXPECT_EQ(config.rank_of("model.layers.10.mlp.up_proj"), 5);
  EXPECT_EQ(config.rank_of("model.layers.10.mlp.gate_up_proj"), 8);
}

TEST(LoraConfig, WhatWouldChangeTheResultIsRefused) {
  const Json good = adapter_config_json({.target_modules = {"q_proj"}});
  EXPECT_EQ(parse_adapter_config(good).target_modules, std::vector<std::string>{"q_proj"});
  const auto error_with = [&](const char* key, const Json& value) {
    Json json = good;
    json[key] = value;
    return error_of([&] { parse_adapter_config(json); });
  };
  EXPECT_THAT(error_with("peft_type", "IA3"), HasSubstr("peft_type is 'IA3'"));
  EXPECT_THAT(error_with("bias", "all"), HasSubstr("bias 'all'"));
  EXPECT_THAT(error_with("fan_in_fan_out", true), HasSubstr("'fan_in_fan_out' is not supported"));
  EXPECT_THAT(error_with("target_parameters", {"experts"}), HasSubstr("'target_parameters'"));
  EXPECT_THAT(error_with("init_lora_weights", "pissa"), HasSubstr("'pissa' changed the base"));
  EXPECT_EQ(error_with("init_lora_weights", "gaussian"), "");
  EXPECT_EQ(error_with("target_parameters", Json::array()), "");
  EXPECT_THAT(error_with("r", 0), HasSubstr("r must be above 0"));
  EXPECT_THAT(error_with("r", "8"), HasSubstr("'r' has the wrong type"));
  EXPECT_THAT(error_with("lora_dropout", 1), HasSubstr("lora_dropout"));
  EXPECT_THAT(error_with("rank_pattern", {{"q_proj", 0}}), HasSubstr("'rank_pattern' of 'q_proj'"));
}

TEST_F(AdapterFolder, BadTensorsAreNamed) {
  const auto error_with = [&](auto change) {
    LoraAdapter adapter = read_adapter(kAdapters + "plain");
    change(adapter);
    write(adapter);
    return error_of([&] { read_adapter(folder_); });
  };
  const std::string q = "model.layers.0.self_attn.q_proj";
  EXPECT_EQ(error_with([](LoraAdapter&) {}), "");
  EXPECT_THAT(error_with([&](LoraAdapter& a) { a.layers[q].b = {}; }),
              HasSubstr("'" + q + "' has lora_A only"));
  EXPECT_THAT(
      error_with([&](LoraAdapter& a) { a.layers[q].b = a.layers[q].b.columns(0, 3).contiguous(); }),
      HasSubstr("lora_B [out, rank]"));
  EXPECT_THAT(error_with([&](LoraAdapter& a) { a.config.rank = 8; }),
              HasSubstr("has rank 4, adapter_config.json says 8"));
  EXPECT_THAT(error_with([&](LoraAdapter& a) { a.config.use_dora = true; }),
              HasSubstr("has no lora_magnitude_vector"));
  EXPECT_THAT(error_with([&](LoraAdapter& a) { a.saved["lm_head.weight"] = a.layers[q].a; }),
              HasSubstr("neither LoRA's nor of modules_to_save"));
  fs::remove(folder_ + "/adapter_model.safetensors");
  EXPECT_THAT(error_of([&] { read_adapter(folder_); }), HasSubstr("cannot open"));
  std::ofstream(folder_ + "/adapter_model.bin") << "x";
  EXPECT_THAT(error_of([&] { read_adapter(folder_); }), HasSubstr("adapter_model.bin only"));
}

}  // namespace
}  // namespace reft
