// Adapters through the whole engine: the tokens of merged weights, and of each request alone
// however they are mixed.
#include "engine/lora_slots.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "base/error_of_test.h"
#include "base/file.h"
#include "base/log.h"
#include "engine/engine_fake.h"
#include "tensor/safetensors_writer.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using fake::Call;
using fake::greedy;
using fake::Output;
using fake::run_all;
using fake::run_one;
using testing::HasSubstr;

const std::string kRoot = REFT_SOURCE_DIR;
const std::string kBase = kRoot + "/tests/golden/llama";
const std::string kPlain = kRoot + "/tests/train/adapters/plain";

class ServedLora : public testing::Test {
 protected:
  ServedLora()
      : folder_((fs::temp_directory_path() / fmt::format("reft_served_{}", ::getpid())).string()) {
    set_log_level(LogLevel::kOff);
    fs::remove_all(folder_);
    fs::create_directories(folder_ + "/dora");
    // PEFT's adapter of all ranks, with DoRA; without the head that it also trained.
    LoraAdapter dora = read_adapter(kRoot + "/tests/train/adapters/patterns");
    dora.saved.clear();
    dora.config.modules_to_save.clear();
    write_safetensors(folder_ + "/dora/adapter_model.safetensors", adapter_tensors(dora));
    write_file_atomic(folder_ + "/dora/adapter_config.json",
                      adapter_config_json(dora.config).dump());
  }
  ~ServedLora() override {
    fs::remove_all(folder_);
    set_log_level(LogLevel::kInfo);
  }

  std::string dora() const { return folder_ + "/dora"; }

  std::unique_ptr<Engine> engine(const std::string& path, int64_t max_loras = 2) const {
    EngineOptions options;
    options.kv_cache_memory_bytes = 8 << 20;
    options.block_size = 4;
    options.max_loras = max_loras;
    return std::make_unique<Engine>(load_model(path, {.dtype = "float32", .quiet = true}), nullptr,
                                    options);
  }

  // A model whose weights hold the adapter: W + scale B A, with DoRA its rows at their lengths.
  std::string merged(const std::string& adapter_folder) const {
    const LoraAdapter adapter = read_adapter(adapter_folder);
    NamedTensors tensors;
    for (const CheckpointTensor& t : checkpoint_tensors(kBase)) {
      Tensor value = Tensor::empty(t.value.shape(), DType::kF32);
      value.copy_from(t.value.to(DType::kF32));
      const auto it = adapter.layers.find(t.key.substr(0, t.key.rfind('.')));
      if (it != adapter.layers.end()) merge(it->second, value);
      tensors.emplace_back(t.key, value);
    }
    const std::string to = folder_ + "/merged";
    fs::create_directories(to);
    write_safetensors(to + "/model.safetensors", tensors);
    fs::copy_file(kBase + "/config.json", to + "/config.json",
                  fs::copy_options::overwrite_existing);
    return to;
  }
  static void merge(const LoraWeights& w, Tensor& value) {
    const int64_t n = value.size(0), k = value.size(1), r = w.a.size(0);
    for (int64_t i = 0; i < n; ++i) {
      std::vector<double> row(static_cast<size_t>(k));
      double square = 0;
      for (int64_t j = 0; j < k; ++j) {
        double sum = 0;
        for (int64_t l = 0; l < r; ++l)
          sum += double{w.b.data<float>()[i * r + l]} * w.a.data<float>()[l * k + j];
        row[static_cast<size_t>(j)] = value.data<float>()[i * k + j] + w.scale * sum;
        square += row[static_cast<size_t>(j)] * row[static_cast<size_t>(j)];
      }
      const double factor =
          w.magnitude.defined() ? w.magnitude.data<float>()[i] / std::sqrt(square) : 1;
      for (int64_t j = 0; j < k; ++j)
        value.data<float>()[i * k + j] = static_cast<float>(factor * row[static_cast<size_t>(j)]);
    }
  }

  static Call call(const std::string& adapter, int start = 5, int64_t tokens = 12) {
    Call call;
    for (int i = 0; i < 13; ++i) call.prompt.push_back((start * 31 + i * 17) % 200 + 3);
    call.params = greedy(tokens);
    call.params.ignore_eos = true;
    call.params.logprobs = 1;
    call.adapter = adapter;
    return call;
  }

  std::string folder_;
};

TEST_F(ServedLora, AnAdapterWritesWhatMergedWeightsDo) {
  for (const std::string& path : {kPlain, dora()}) {
    const auto served = engine(kBase);
    served->load_adapter("a", path);
    const auto whole = engine(merged(path), 0);
    for (const int start : {1, 2, 3}) {
      const Output got = run_one(*served, call("a", start));
      const Output want = run_one(*whole, call("", start));
      EXPECT_EQ(got.ids, want.ids) << path;
      ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
      for (size_t i = 0; i < got.logprobs.size(); ++i)
        EXPECT_NEAR(got.logprobs[i][0].logprob, want.logprobs[i][0].logprob, 1e-3) << path;
    }
  }
}

TEST_F(ServedLora, MixedRequestsAreThoseAlone) {
  std::vector<Call> calls;
  for (const char* adapter : {"plain", "", "dora", "plain", "", "dora"})
    calls.push_back(call(adapter, 1 + static_cast<int>(calls.size()) / 3));
  std::vector<std::vector<int32_t>> alone;
  for (const Call& c : calls) {
    const auto fresh = engine(kBase);
    fresh->load_adapter("plain", kPlain);
    fresh->load_adapter("dora", dora());
    alone.push_back(run_one(*fresh, c).ids);
  }
  EXPECT_NE(alone[0], alone[1]);
  EXPECT_NE(alone[0], alone[2]);
  const auto all = engine(kBase);
  all->load_adapter("plain", kPlain);
  all->load_adapter("dora", dora());
  const auto outputs = run_all(*all, calls);
  for (size_t i = 0; i < calls.size(); ++i) EXPECT_EQ(outputs[i][0].ids, alone[i]) << i;
  // Without adapters it is the base model, bit for bit.
  const auto base = engine(kBase, 0);
  const Output plain = run_one(*base, call("")), beside = run_one(*all, call(""));
  EXPECT_EQ(plain.ids, beside.ids);
  EXPECT_EQ(plain.logprobs[0][0].logprob, beside.logprobs[0][0].logprob);
}

TEST_F(ServedLora, PrefixesAreNotSharedBetweenAdapters) {
  const auto e = engine(kBase);
  e->load_adapter("plain", kPlain);
  e->load_adapter("dora", dora());
  for (const char* adapter : {"", "plain", "dora"}) {
    EXPECT_EQ(run_one(*e, call(adapter)).num_cached_tokens, 0) << adapter;
    EXPECT_EQ(run_one(*e, call(adapter)).num_cached_tokens, 12) << adapter;
  }
  // Nor with an adapter that was there under the same name.
  EXPECT_TRUE(e->unload_adapter("plain"));
  e->load_adapter("plain", kPlain);
  EXPECT_EQ(run_one(*e, call("plain")).num_cached_tokens, 0);
}

TEST_F(ServedLora, AdaptersComeAndGo) {
  const auto e = engine(kBase, 1);
  EXPECT_THAT(error_of([&] { run_one(*e, call("plain")); }), HasSubstr("plain"));
  e->load_adapter("plain", kPlain);
  const std::vector<int32_t> ids = run_one(*e, call("plain")).ids;
  EXPECT_THAT(error_of([&] { e->load_adapter("plain", kPlain); }), HasSubstr("loaded already"));
  EXPECT_THAT(error_of([&] { e->load_adapter("dora", dora()); }), HasSubstr("--max_loras is 1"));
  // A request that runs keeps its adapter, and the slot with it.
  const auto running = fake::start(*e, call("plain", 5, 60));
  running->wait_for_tokens(1);
  EXPECT_TRUE(e->unload_adapter("plain"));
  EXPECT_FALSE(e->unload_adapter("plain"));
  EXPECT_TRUE(running->wait());
  const std::vector<int32_t> kept = running->outputs()[0].ids;
  EXPECT_EQ(std::vector<int32_t>(kept.begin(), kept.begin() + 12), ids);
  // The engine lets go of it soon after the last token.
  std::string refusal = "?";
  for (int i = 0; i < 500 && !refusal.empty(); ++i) {
    refusal = error_of([&] { e->load_adapter("dora", dora()); });
    if (!refusal.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(refusal, "");
  EXPECT_NE(run_one(*e, call("dora")).ids, ids);
  EXPECT_EQ(e->adapters().size(), 1u);
}

TEST_F(ServedLora, WhatDoesNotFitIsRefusedAndTakesNoSlot) {
  const auto e = engine(kBase, 1);
  EXPECT_THAT(error_of([&] { e->load_adapter("x", "/nowhere"); }), HasSubstr("/nowhere"));
  EXPECT_THAT(error_of([&] { e->load_adapter("x", kRoot + "/tests/train/adapters/patterns"); }),
              HasSubstr("lm_head"));
  const auto other = engine(kRoot + "/tests/golden/qwen3", 1);
  EXPECT_NE(error_of([&] { other->load_adapter("x", dora()); }), "");
  const auto none = engine(kBase, 0);
  EXPECT_THAT(error_of([&] { none->load_adapter("x", kPlain); }), HasSubstr("--enable_lora"));
  e->load_adapter("x", kPlain);
  EXPECT_FALSE(run_one(*e, call("x")).ids.empty());
}

}  // namespace
}  // namespace reft
