// LoRA in training: against PEFT and torch (tools/make_training_golden_lora.py), what must stay as
// it is, and runs that go on.
#include "train/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

#include "base/error_of_test.h"
#include "base/file.h"
#include "base/log.h"
#include "tensor/safetensors.h"
#include "train/checkpoint.h"
#include "train/data/test_files_test.h"
#include "train/trainer.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

const std::string kRoot = REFT_SOURCE_DIR;
const std::string kBase = kRoot + "/tests/golden/llama";
const std::string kAdapters = kRoot + "/tests/train/adapters/";

std::string word_tokenizer() {
  Json vocab = Json::object();
  for (int id = 0; id < 211; ++id) vocab[id == 2 ? "</s>" : fmt::format("w{}", id)] = id;
  return Json{{"version", "1.0"},
              {"added_tokens", {{{"id", 2}, {"content", "</s>"}, {"special", true}}}},
              {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
              {"model", {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", "w0"}}}}
      .dump();
}

std::map<std::string, std::vector<float>> values_of(const std::string& file) {
  std::map<std::string, std::vector<float>> result;
  const auto reader = open_safetensors(file);
  for (const TensorEntry& e : reader->entries())
    result[e.name] = reader->read(e.name).to(DType::kF32).to_vector<float>();
  return result;
}

class LoraTest : public testing::Test {
 protected:
  LoraTest() : rows_(read_json_file(kRoot + "/tests/train/curve.json").at("rows")) {
    set_log_level(LogLevel::kError);
    folder_.write("words/tokenizer.json", word_tokenizer());
    folder_.write("words/tokenizer_config.json", R"({"eos_token": "</s>"})");
    std::string lines;
    for (const Json& row : rows_) {
      std::string text;
      for (const int id : row) text += fmt::format("{}w{}", text.empty() ? "" : " ", id);
      lines += Json{{"text", text}}.dump() + "\n";
    }
    folder_.write("rows.jsonl", lines);
  }
  ~LoraTest() override { set_log_level(LogLevel::kInfo); }

  TrainerOptions options(const std::string& out, const std::string& base = kBase) const {
    TrainerOptions o;
    o.model_path = base;
    o.tokenizer_path = folder_.path("words");
    o.fine_tuning = FineTuning::kLora;
    o.encoder.cutoff_len = 96;
    o.loader.mix.datasets = {{.name = "rows", .path = folder_.path("rows.jsonl")}};
    o.loader.mix.shuffle = false;
    o.loader.batch_size = 2;
    o.schedule.kind = ScheduleKind::kConstant;
    o.schedule.learning_rate = 1e-2;
    o.output_dir = folder_.path(out);
    o.quiet = true;
    return o;
  }
  // PEFT's adapter without dropout, so that its curve can be followed.
  std::string golden_adapter(const std::string& name) const {
    const fs::path to = folder_.path("adapter-" + name);
    fs::create_directories(to);
    fs::copy_file(kAdapters + name + "/adapter_model.safetensors", to / "adapter_model.safetensors",
                  fs::copy_options::overwrite_existing);
    Json config = read_json_file(kAdapters + name + "/adapter_config.json");
    config["lora_dropout"] = 0;
    write_file_atomic((to / "adapter_config.json").string(), config.dump());
    return to.string();
  }
  std::vector<double> logged(const std::string& out, const char* key = "loss") const {
    std::vector<double> values;
    std::istringstream lines(folder_.read(out + "/train_log.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const Json entry = parse_json(line, "train_log.jsonl");
      if (entry.contains(key)) values.push_back(entry[key].get<double>());
    }
    return values;
  }

  TempFolder folder_;
  Json rows_;
};

struct Packed {
  Batch batch;
  Tensor labels;
  // Rows [first, last), each with the end token.
  Packed(const Json& rows, size_t first, size_t last) {
    std::vector<int32_t> ids, positions, start = {0}, wanted, targets;
    for (size_t r = first; r < last; ++r) {
      std::vector<int32_t> row = rows[r];
      row.push_back(2);
      for (size_t i = 0; i < row.size(); ++i) {
        if (i + 1 < row.size()) {
          wanted.push_back(static_cast<int32_t>(ids.size()));
          targets.push_back(row[i + 1]);
        }
        ids.push_back(row[i]);
        positions.push_back(static_cast<int32_t>(i));
      }
      start.push_back(static_cast<int32_t>(ids.size()));
    }
    batch.token_ids = Tensor::from_vector(ids);
    batch.positions = Tensor::from_vector(positions);
    batch.attention.query_start = Tensor::from_vector(start);
    batch.logit_rows = Tensor::from_vector(wanted);
    labels = Tensor::from_vector(targets);
  }
};

LoadedModel load(const std::string& path, const LoraConfig& config,
                 const std::string& dtype = "float32") {
  return load_model(path, {.dtype = dtype, .quiet = true, .trainable = [&](const std::string& n) {
                             return is_lora_trainable(n, config);
                           }});
}

TEST_F(LoraTest, GradientsAreThoseOfPeft) {
  const auto golden = values_of(kRoot + "/tests/train/lora_gradients.safetensors");
  for (const std::string name : {"plain", "patterns"}) {
    const LoraAdapter adapter = read_adapter(golden_adapter(name));
    const LoadedModel loaded = load(kBase, adapter.config);
    CausalLmModel& model = *loaded.model;
    attach_lora(model, adapter.config, 0);
    initialize_lora(model, kCpuDevice, 1);
    load_lora(model, adapter);
    const Packed packed(rows_, 0, 4);
    Tape tape;
    watch_parameters(tape, model);
    const Tensor losses = model.token_losses(packed.batch, packed.labels, {});
    const auto count = static_cast<size_t>(losses.numel());
    tape.backward(losses,
                  Tensor::from_vector(std::vector<float>(count, 1.0f / static_cast<float>(count))));
    int compared = 0;
    model.visit([&](const std::string& path, Parameter& p) {
      if (!p.trainable || !p.gradient.defined()) return;
      const std::vector<float> got = p.gradient.to_vector<float>();
      const std::vector<float>& want = golden.at(name + "." + path);
      ASSERT_EQ(got.size(), want.size()) << path;
      double difference = 0, length = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        difference += std::pow(double{got[i]} - want[i], 2);
        length += std::pow(double{want[i]}, 2);
      }
      EXPECT_LT(std::sqrt(difference), 1e-4 * std::sqrt(length)) << name << " " << path;
      ++compared;
    });
    EXPECT_EQ(compared, name == "plain" ? 12 : 64);
  }
}

TEST_F(LoraTest, LossCurvesAreThoseOfPeft) {
  const Json golden = read_json_file(kRoot + "/tests/train/lora.json");
  const Json& settings = golden.at("options");
  for (const std::string name : {"plain", "patterns"}) {
    TrainerOptions o = options(name);
    o.lora.adapter = golden_adapter(name);
    o.grad_accumulation_steps = settings.at("grad_accumulation_steps");
    o.max_steps = settings.at("steps");
    o.optimizer.weight_decay = settings.at("weight_decay");
    o.schedule = {.kind = ScheduleKind::kLinear,
                  .learning_rate = settings.at("learning_rate"),
                  .warmup_steps = settings.at("warmup_steps")};
    train(o);
    const std::vector<double> got = logged(name), want = golden.at(name).at("loss");
    ASSERT_EQ(got.size(), want.size());
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
    EXPECT_LT(worst, 1e-4) << name;
    const std::vector<double> norms = logged(name, "grad_norm"),
                              theirs = golden.at(name).at("grad_norm");
    for (size_t i = 0; i < norms.size(); ++i)
      EXPECT_NEAR(norms[i], theirs[i], 1e-4 * theirs[i]) << name << " " << i;
  }
}

// B is zero: the first step computes what the base computes, bit for bit, on any kind of base.
TEST_F(LoraTest, ANewAdapterChangesNothing) {
  const Packed packed(rows_, 0, 6);
  for (const std::string& base : {kBase, kBase + "/model.Q4_1.gguf", kBase + "/model.BF16.gguf"}) {
    for (const bool dora : {false, true}) {
      const bool blocks = base.ends_with("Q4_1.gguf");
      const LoadedModel loaded = load(base, {}, blocks ? "bfloat16" : "float32");
      const auto losses = [&] {
        return loaded.model->token_losses(packed.batch, packed.labels, {}).to_vector<float>();
      };
      const std::vector<float> before = losses();
      LoraOptions lora{.use_rslora = true, .use_dora = dora};
      attach_lora(*loaded.model, choose_lora(*loaded.model, lora, base), 0);
      initialize_lora(*loaded.model, kCpuDevice, 1);
      EXPECT_EQ(losses(), before) << base << " " << dora;
    }
  }
}

// A step through blocks: the gradients that reach A and B are those of the expanded weights, but
// for activations of 16 bits.
TEST_F(LoraTest, QuantisedBasesHandGradientsOn) {
  const Packed packed(rows_, 0, 4);
  std::vector<std::map<std::string, std::vector<float>>> gradients;
  for (const char* dtype : {"float32", "bfloat16"}) {
    const LoadedModel loaded = load(kBase + "/model.Q4_1.gguf", {}, dtype);
    attach_lora(*loaded.model, choose_lora(*loaded.model, {}, ""), 0);
    initialize_lora(*loaded.model, kCpuDevice, 1);
    Tape tape;
    watch_parameters(tape, *loaded.model);
    const Tensor losses = loaded.model->token_losses(packed.batch, packed.labels, {});
    tape.backward(
        losses, Tensor::from_vector(std::vector<float>(static_cast<size_t>(losses.numel()), 1.0f)));
    auto& into = gradients.emplace_back();
    loaded.model->visit([&](const std::string& name, Parameter& p) {
      if (p.trainable) into[name] = p.gradient.to_vector<float>();
    });
  }
  double largest = 0, worst = 0;
  for (const auto& [name, want] : gradients[0]) {
    for (size_t i = 0; i < want.size(); ++i) {
      largest = std::max(largest, std::abs(double{want[i]}));
      worst = std::max(worst, std::abs(double{want[i]} - gradients[1].at(name)[i]));
    }
  }
  EXPECT_GT(largest, 0);
  EXPECT_LT(worst, 2e-3 * largest);
}

TEST_F(LoraTest, TheFolderIsAnAdapterThatTrainingGoesOnFrom) {
  TrainerOptions o = options("out");
  o.max_steps = 4;
  o.lora.additional_targets = {"norm"};
  o.lora.targets = {"q_proj", "v_proj", "down_proj"};
  o.lora.layers = {1, 2};
  train(o);
  EXPECT_FALSE(fs::exists(o.output_dir + "/model.safetensors"));
  EXPECT_FALSE(fs::exists(o.output_dir + "/config.json"));
  EXPECT_TRUE(fs::exists(o.output_dir + "/tokenizer.json"));
  const LoraAdapter adapter = read_adapter(o.output_dir);
  EXPECT_EQ(adapter.config.alpha, 16);
  EXPECT_EQ(adapter.layers.size(), 6u);
  EXPECT_TRUE(adapter.layers.contains("model.layers.2.self_attn.v_proj"));
  EXPECT_TRUE(adapter.saved.contains("model.norm.weight"));
  for (const auto& [path, w] : adapter.layers) {
    const std::vector<float> b = w.b.to(DType::kF32).to_vector<float>();
    EXPECT_TRUE(std::ranges::any_of(b, [](float v) { return v != 0; })) << path;
  }
  // No states for what is frozen.
  EXPECT_EQ(values_of(o.output_dir + "/checkpoint-4/optimizer.safetensors").size(), 2u * 13);
  // Another run begins where this one ended.
  const LoadedModel loaded = load(kBase, adapter.config);
  attach_lora(*loaded.model, adapter.config, 0);
  initialize_lora(*loaded.model, kCpuDevice, 1);
  load_lora(*loaded.model, adapter);
  const Packed packed(rows_, 0, 2);
  const std::vector<float> losses =
      loaded.model->token_losses(packed.batch, packed.labels, {}).to_vector<float>();
  TrainerOptions next = options("next");
  next.lora.adapter = o.output_dir;
  next.max_steps = 1;
  train(next);
  EXPECT_NEAR(
      logged("next").at(0),
      std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size()),
      1e-5);
  EXPECT_NE(logged("next").at(0), logged("out").at(0));
}

struct Variant {
  const char* name;
  FineTuning type;
  std::string base;
  LoraOptions lora;
};

class LoraRun : public LoraTest, public testing::WithParamInterface<Variant> {};

TEST_P(LoraRun, GoesOnBitForBitAndRecomputationChangesNothing) {
  const Variant& v = GetParam();
  TrainerOptions o = options("whole", kBase + v.base);
  o.fine_tuning = v.type;
  o.lora = v.lora;
  o.neftune_noise_alpha = 5;
  o.loader.mix.shuffle = true;
  o.grad_accumulation_steps = 3;
  o.max_steps = 6;
  train(o);
  const auto want = values_of(o.output_dir + "/adapter_model.safetensors");
  o.output_dir = folder_.path("parts");
  o.resume = true;
  for (const int micro_batch : {2, 5, 1}) {
    int seen = 0;
    EXPECT_TRUE(train(o, [&] { return ++seen == micro_batch; }).interrupted);
  }
  train(o);
  EXPECT_EQ(logged("parts"), logged("whole"));
  EXPECT_EQ(values_of(o.output_dir + "/adapter_model.safetensors"), want);
  o.output_dir = folder_.path("again");
  o.recompute = Recompute::kFull;
  train(o);
  EXPECT_EQ(logged("again"), logged("whole"));
  EXPECT_EQ(values_of(o.output_dir + "/adapter_model.safetensors"), want);
  EXPECT_LT(logged("whole").back(), logged("whole").front());
}

INSTANTIATE_TEST_SUITE_P(
    All, LoraRun,
    testing::Values(Variant{"dropout", FineTuning::kLora, "", {.dropout = 0.2, .use_dora = true}},
                    Variant{"qlora", FineTuning::kQlora, "/model.Q4_1.gguf", {.dropout = 0.1}},
                    Variant{"quantised",
                            FineTuning::kQlora,
                            "",
                            {.additional_targets = {"lm_head"}, .quantization_bit = 8}}),
    [](const auto& info) { return info.param.name; });

TEST_F(LoraTest, LoraPlusAndErrors) {
  // Adam's first step is the learning rate, whatever the gradient; A has none while B is zero.
  std::vector<LoraAdapter> adapters;
  for (const double ratio : {0.0, 16.0}) {
    TrainerOptions o = options(fmt::format("plus{}", ratio));
    o.lora.loraplus_lr_ratio = ratio;
    o.max_steps = 1;
    train(o);
    adapters.push_back(read_adapter(o.output_dir));
  }
  for (const auto& [path, w] : adapters[0].layers) {
    const LoraWeights& plus = adapters[1].layers.at(path);
    EXPECT_EQ(w.a.to_vector<float>(), plus.a.to_vector<float>()) << path;
    const std::vector<float> b = w.b.to_vector<float>(), fast = plus.b.to_vector<float>();
    for (size_t i = 0; i < b.size(); ++i) EXPECT_NEAR(fast[i], 16 * b[i], 1e-5) << path;
  }
  const auto error = [&](auto change) {
    TrainerOptions bad = options("bad");
    bad.max_steps = 1;
    change(bad);
    return error_of([&] { train(bad); });
  };
  EXPECT_THAT(error([](auto& b) { b.lora.targets = {"q_prj"}; }), HasSubstr("q_prj"));
  EXPECT_THAT(error([](auto& b) { b.lora.targets = {"lm_head"}; }), HasSubstr("additional_target"));
  EXPECT_THAT(error([](auto& b) { b.lora.additional_targets = {"q_proj"}; }),
              HasSubstr("--lora_target too"));
  EXPECT_THAT(error([](auto& b) { b.lora.rank = 0; }), HasSubstr("--lora_rank"));
  EXPECT_THAT(error([](auto& b) { b.lora.dropout = 1; }), HasSubstr("--lora_dropout"));
  EXPECT_THAT(error([](auto& b) { b.lora.layers = {3}; }), HasSubstr("--lora_layers"));
  EXPECT_THAT(error([](auto& b) { b.lora.quantization_bit = 3; }), HasSubstr("quantization_bit"));
  EXPECT_THAT(error([](auto& b) {
                b.fine_tuning = FineTuning::kFull;
                b.lora.quantization_bit = 4;
              }),
              HasSubstr("quantization_bit"));
  EXPECT_THAT(error([](auto& b) { b.lora.adapter = "/nowhere"; }), HasSubstr("/nowhere"));
}

}  // namespace
}  // namespace reft
