// Whole runs on a tiny model: what must hold whatever the model, the data and the machine. On a GPU
// with REFT_TEST_DEVICE=cuda.
#include "train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <sstream>

#include "base/log.h"
#include "models/model.h"
#include "ops/moe.h"
#include "tensor/safetensors.h"
#include "text/chat_template.h"
#include "train/checkpoint.h"
#include "train/data/test_files_test.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::HasSubstr;

Device test_device() {
  const char* name = std::getenv("REFT_TEST_DEVICE");
  return name != nullptr && std::string(name) == "cuda" ? Device{DeviceType::kCuda, 0} : kCpuDevice;
}

const std::string kTokenizer =
    std::string(REFT_SOURCE_DIR) + "/tests/golden/tokenizers/byte_level.json";

constexpr const char* kConfig = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
  "vocab_size": 720, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 128, "hidden_act": "silu", "rope_theta": 10000.0,
  "tie_word_embeddings": true, "dtype": "float32"})";

// A line per row; no two texts are equally long.
std::string text_rows(int count) {
  std::string rows;
  for (int i = 0; i < count; ++i) {
    std::string text = fmt::format("row {}", i);
    for (int w = 0; w < 1 + i * 3 % 11; ++w) text += fmt::format(" word{}", (i * 7 + w * w) % 23);
    rows += Json{{"text", text}}.dump() + "\n";
  }
  return rows;
}

std::string chat_rows(int count) {
  std::string rows;
  for (int i = 0; i < count; ++i) {
    const Json messages = {{{"role", "user"}, {"content", fmt::format("What is {}?", i)}},
                           {{"role", "assistant"}, {"content", fmt::format("The {}th.", 3 * i)}}};
    rows += Json{{"messages", messages}}.dump() + "\n";
  }
  return rows;
}

using Bytes = std::map<std::string, std::string>;

Bytes tensors_of(const std::string& file) {
  Bytes result;
  const auto reader = open_safetensors(file);
  for (const TensorEntry& entry : reader->entries()) {
    const Tensor t = reader->read(entry.name);
    result[entry.name].assign(reinterpret_cast<const char*>(t.raw()),
                              static_cast<size_t>(t.nbytes()));
  }
  return result;
}

class TrainerTest : public testing::Test {
 protected:
  TrainerTest() {
    set_log_level(LogLevel::kError);
    folder_.write("new/config.json", kConfig);
    fs::copy(kTokenizer, folder_.path("new/tokenizer.json"));
    folder_.write("new/tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
    folder_.write("texts.jsonl", text_rows(11));
    folder_.write("chats.jsonl", chat_rows(4));
  }
  ~TrainerTest() override { set_log_level(LogLevel::kInfo); }

  // A new model on the texts, in float32, two rows a step.
  TrainerOptions options(const std::string& out) const {
    TrainerOptions o;
    o.model_path = folder_.path("new");
    o.load_pretrained = false;
    o.device = test_device();
    o.chat_template = resolve_chat_template("chatml");
    o.encoder.cutoff_len = 96;
    o.loader.mix.datasets = {{.name = "texts", .path = folder_.path("texts.jsonl")}};
    o.loader.batch_size = 2;
    o.schedule.kind = ScheduleKind::kConstant;
    o.schedule.learning_rate = 1e-2;
    o.output_dir = folder_.path(out);
    o.quiet = true;
    return o;
  }
  TrainerOptions chat_options(const std::string& out) const {
    TrainerOptions o = options(out);
    o.loader.mix.datasets = {{.name = "chats", .path = folder_.path("chats.jsonl")}};
    o.loader.batch_size = 4;
    return o;
  }
  // A model with weights, a step away from random ones.
  std::string pretrained() const {
    TrainerOptions o = options("pretrained");
    o.max_steps = 1;
    train(o);
    return o.output_dir;
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
  Bytes weights(const std::string& out) const {
    return tensors_of(folder_.path(out) + "/model.safetensors");
  }
  // Stops at that micro-batch, counted from 1; says whether it got there.
  bool train_until(const TrainerOptions& o, int micro_batch) const {
    int seen = 0;
    return train(o, [&] { return ++seen == micro_batch; }).interrupted;
  }

  TempFolder folder_;
};

std::string error_of(const TrainerOptions& options) {
  try {
    train(options);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST_F(TrainerTest, OneBatchIsLearntByHeartAndTheFolderHasIt) {
  TrainerOptions o = chat_options("out");
  o.max_steps = 200;
  o.schedule.kind = ScheduleKind::kLinear;
  const TrainResult result = train(o);
  EXPECT_EQ(result.steps, 200);
  EXPECT_FALSE(result.interrupted);
  const std::vector<double> losses = logged("out");
  ASSERT_EQ(losses.size(), 200u);
  EXPECT_GT(losses.front(), 5);
  EXPECT_LT(losses.back(), 0.01);
  // The model that was written begins where the run ended.
  TrainerOptions next = chat_options("next");
  next.model_path = o.output_dir;
  next.load_pretrained = true;
  next.chat_template.clear();  // the one that came with the weights
  next.max_steps = 1;
  train(next);
  EXPECT_LT(logged("next").at(0), 0.01);
  EXPECT_EQ(load_model(o.output_dir, {.quiet = true}).num_parameters,
            load_model(o.model_path, {.load_format = "dummy", .quiet = true}).num_parameters);
  EXPECT_TRUE(fs::exists(o.output_dir + "/loss.svg"));
  EXPECT_TRUE(fs::exists(o.output_dir + "/tokenizer.json"));
}

struct Variant {
  const char* name;
  std::string dtype;
  bool packing;
  bool master_weights;
  OptimizerKind optimizer;
  FineTuning fine_tuning;
};

class Interrupted : public TrainerTest, public testing::WithParamInterface<Variant> {};

// Six micro-batches an epoch, or fewer when packed, three a step: every stop lies elsewhere, within
// a step or behind one, in the first or a later epoch.
TEST_P(Interrupted, RunsGoOnBitForBit) {
  const Variant& v = GetParam();
  TrainerOptions o = options("whole");
  if (v.fine_tuning == FineTuning::kFreeze) {
    o.model_path = pretrained();
    o.load_pretrained = true;
  }
  o.fine_tuning = v.fine_tuning;
  o.dtype = v.dtype;
  o.loader.packing = v.packing;
  o.loader.batch_size = v.packing ? 1 : 2;
  o.grad_accumulation_steps = 3;
  o.epochs = 3;
  o.optimizer.kind = v.optimizer;
  o.optimizer.master_weights = v.master_weights;
  const int64_t steps = train(o).steps;
  ASSERT_GE(steps, 3);
  o.output_dir = folder_.path("parts");
  o.resume = true;
  for (const int micro_batch : {2, 2, 1, 3}) EXPECT_TRUE(train_until(o, micro_batch));
  EXPECT_EQ(train(o).steps, steps);
  EXPECT_EQ(logged("parts"), logged("whole"));
  EXPECT_EQ(logged("parts", "grad_norm"), logged("whole", "grad_norm"));
  EXPECT_EQ(weights("parts"), weights("whole"));
  const std::string last = fmt::format("/checkpoint-{}/", steps);
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(tensors_of(folder_.path("parts") + last + file),
              tensors_of(folder_.path("whole") + last + file))
        << file;
  }
  EXPECT_EQ(read_train_state(folder_.path("parts") + last).epoch,
            read_train_state(folder_.path("whole") + last).epoch);
}

INSTANTIATE_TEST_SUITE_P(
    All, Interrupted,
    testing::Values(
        Variant{"float32", "float32", false, true, OptimizerKind::kAdamW, FineTuning::kFull},
        Variant{"packed", "float32", true, true, OptimizerKind::kMuon, FineTuning::kFull},
        Variant{"bfloat16", "bfloat16", false, true, OptimizerKind::kAdamW, FineTuning::kFull},
        Variant{"stochastic", "bfloat16", false, false, OptimizerKind::kAdamW8bit,
                FineTuning::kFull},
        Variant{"frozen", "bfloat16", false, true, OptimizerKind::kAdamW, FineTuning::kFreeze}),
    [](const auto& info) { return info.param.name; });

TEST_F(TrainerTest, HowAStepIsCutIntoMicroBatchesChangesNothing) {
  std::vector<std::vector<double>> losses, norms;
  for (const auto& [batch_size, accumulation] :
       {std::pair(4, 1), std::pair(2, 2), std::pair(1, 4)}) {
    TrainerOptions o = options(fmt::format("out{}", accumulation));
    o.loader.batch_size = batch_size;
    o.grad_accumulation_steps = accumulation;
    o.epochs = 2;  // of 11 rows: the last step of each takes what is left
    o.schedule.learning_rate = 1e-3;
    EXPECT_EQ(train(o).steps, 6);
    losses.push_back(logged(fmt::format("out{}", accumulation)));
    norms.push_back(logged(fmt::format("out{}", accumulation), "grad_norm"));
  }
  for (size_t run = 1; run < losses.size(); ++run) {
    ASSERT_EQ(losses[run].size(), losses[0].size());
    for (size_t step = 0; step < losses[0].size(); ++step) {
      EXPECT_NEAR(losses[run][step], losses[0][step], 1e-5) << run << " " << step;
      EXPECT_NEAR(norms[run][step], norms[0][step], 1e-4 * norms[0][step]) << run << " " << step;
    }
  }
}

TEST_F(TrainerTest, PackedRowsAreThoseAlone) {
  std::vector<std::vector<double>> losses;
  for (const bool packing : {false, true}) {
    TrainerOptions o = options(packing ? "packed" : "alone");
    o.loader.packing = packing;
    o.loader.batch_size = 100;  // all rows in one step
    o.epochs = 4;
    o.schedule.learning_rate = 1e-3;
    EXPECT_EQ(train(o).steps, 4);
    losses.push_back(logged(packing ? "packed" : "alone"));
  }
  for (size_t step = 0; step < 4; ++step) EXPECT_NEAR(losses[0][step], losses[1][step], 1e-5);
}

TEST_F(TrainerTest, FrozenTensorsKeepTheirBytes) {
  TrainerOptions o = chat_options("out");
  o.model_path = pretrained();
  o.load_pretrained = true;
  o.fine_tuning = FineTuning::kFreeze;
  o.freeze = {.layers = -2, .modules = {"mlp", "q_proj"}, .extra_modules = {"norm"}};
  o.max_steps = 3;
  train(o);
  const Bytes before = weights("pretrained"), after = weights("out");
  ASSERT_EQ(after.size(), before.size());
  int64_t changed = 0;
  for (const auto& [name, bytes] : after) {
    const bool inside =
        name.find("layers.0.") != std::string::npos || name.find("layers.1.") != std::string::npos;
    const bool part =
        name.find(".mlp.") != std::string::npos || name.find(".q_proj.") != std::string::npos;
    const bool trained = (inside && part) || name == "model.norm.weight";
    EXPECT_EQ(bytes != before.at(name), trained) << name;
    changed += trained ? 1 : 0;
  }
  EXPECT_EQ(changed, 2 * 4 + 1);
  // No states for what is frozen.
  EXPECT_EQ(tensors_of(o.output_dir + "/checkpoint-3/optimizer.safetensors").size(),
            static_cast<size_t>(2 * changed));
}

TEST_F(TrainerTest, RecomputationChangesNothing) {
  TrainerOptions o = options("kept");
  o.max_steps = 4;
  train(o);
  o.output_dir = folder_.path("again");
  o.recompute = Recompute::kFull;
  train(o);
  EXPECT_EQ(logged("again"), logged("kept"));
  EXPECT_EQ(weights("again"), weights("kept"));
}

TEST_F(TrainerTest, HeldOutRowsAreEvaluatedAndNotTrained) {
  TrainerOptions o = options("out");
  o.loader.mix.validation_fraction = 0.4;
  o.test_every = 2;
  o.save_every = 1;
  o.save_total_limit = 2;
  o.max_steps = 5;
  train(o);
  const std::vector<double> losses = logged("out", "eval_loss");
  ASSERT_EQ(losses.size(), 3u);  // after 2 and 4 steps and at the end
  EXPECT_NE(losses[0], losses[1]);
  const std::vector<std::string> left = find_checkpoints(o.output_dir);
  ASSERT_EQ(left.size(), 2u);
  EXPECT_THAT(left[1], HasSubstr("checkpoint-5"));
  // Training on the others is the same without evaluations.
  TrainerOptions same = options("same");
  same.loader.mix.validation_fraction = 0.4;
  same.max_steps = 5;
  train(same);
  EXPECT_EQ(weights("same"), weights("out"));
  EXPECT_TRUE(logged("same", "eval_loss").empty());
}

TEST_F(TrainerTest, PretrainingFillsBlocks) {
  TrainerOptions o = options("out");
  o.encoder.stage = Stage::kPretrain;
  o.encoder.cutoff_len = 16;
  o.epochs = 20;
  train(o);
  const std::vector<double> losses = logged("out");
  EXPECT_LT(losses.back(), losses.front() - 2);
  EXPECT_THAT(logged("out", "seq_len"), Contains(16));
}

TEST_F(TrainerTest, ALossThatIsNotFiniteEndsTheRunAndLeavesTheCheckpoint) {
  TrainerOptions o = options("out");
  o.max_steps = 10;
  o.save_every = 1;
  o.schedule.learning_rate = 1e30;
  EXPECT_THAT(error_of(o), HasSubstr("checkpoint-"));
  const std::vector<std::string> left = find_checkpoints(o.output_dir);
  ASSERT_FALSE(left.empty());
  EXPECT_FALSE(fs::exists(o.output_dir + "/model.safetensors"));
}

TEST_F(TrainerTest, BadOptionsAreErrors) {
  const auto expect = [&](const char* words, const std::function<void(TrainerOptions&)>& change) {
    TrainerOptions o = options("bad");
    o.max_steps = 1;
    change(o);
    EXPECT_THAT(error_of(o), HasSubstr(words));
  };
  expect("--no-load_pretrained", [](TrainerOptions& o) { o.encoder.stage = Stage::kDpo; });
  expect("--checkpoint_dir", [](TrainerOptions& o) { o.output_dir.clear(); });
  expect("--epochs", [](TrainerOptions& o) { o.max_steps = 0, o.epochs = 0; });
  expect("--grad_accumulation_steps", [](TrainerOptions& o) { o.grad_accumulation_steps = 0; });
  expect("--batch_size", [](TrainerOptions& o) { o.loader.batch_size = 0; });
  expect("--cutoff_len 4096", [](TrainerOptions& o) { o.encoder.cutoff_len = 4096; });
  expect("float16", [](TrainerOptions& o) { o.dtype = "float16"; });
  expect("--no-load_pretrained", [](TrainerOptions& o) { o.fine_tuning = FineTuning::kFreeze; });
  expect("has no weights", [](TrainerOptions& o) { o.load_pretrained = true; });
  expect("not/there", [](TrainerOptions& o) { o.loader.mix.datasets[0].path = "not/there"; });
  expect("hold", [](TrainerOptions& o) {
    o.test_every = 1;
    o.loader.mix.validation_fraction = 1e-9;
  });

  const std::string base = pretrained();
  const auto freeze = [&](const char* words, const FreezeOptions& f) {
    expect(words, [&](TrainerOptions& o) {
      o.model_path = base;
      o.load_pretrained = true;
      o.fine_tuning = FineTuning::kFreeze;
      o.freeze = f;
    });
  };
  freeze("3 layers", {.layers = 4});
  freeze("trains nothing", {.layers = 0});
  freeze("self_attn", {.modules = {"moe"}});
  freeze("embed_tokens", {.extra_modules = {"mlp"}});
}

TEST_F(TrainerTest, ARunGoesOnOnlyAsItself) {
  TrainerOptions o = options("out");
  o.max_steps = 2;
  o.resume = true;  // there is nothing to resume yet
  train(o);
  EXPECT_EQ(train(o).steps, 2);  // nor anything left to do
  EXPECT_EQ(logged("out").size(), 2u);
  o.max_steps = 3;
  o.loader.batch_size = 3;
  EXPECT_THAT(error_of(o), HasSubstr("batch_size 2"));
  o = options("out");
  EXPECT_THAT(error_of(o), HasSubstr("--resume"));
}

// A word for every id of the goldens' models.
std::string word_tokenizer(int32_t eos) {
  Json vocab = Json::object();
  for (int id = 0; id < 211; ++id) vocab[id == eos ? "</s>" : fmt::format("w{}", id)] = id;
  return Json{{"version", "1.0"},
              {"added_tokens", {{{"id", eos}, {"content", "</s>"}, {"special", true}}}},
              {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
              {"model", {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", "w0"}}}}
      .dump();
}

// tests/train/curve.json, of tools/make_training_golden_curve.py.
TEST_F(TrainerTest, LossCurvesAreThoseOfTorch) {
  const std::string root = REFT_SOURCE_DIR;
  const Json golden = read_json_file(root + "/tests/train/curve.json");
  const Json& settings = golden.at("options");
  std::string rows;
  for (const Json& row : golden.at("rows")) {
    std::string text;
    for (const int id : row) text += fmt::format("{}w{}", text.empty() ? "" : " ", id);
    rows += Json{{"text", text}}.dump() + "\n";
  }
  folder_.write("words/tokenizer.json", word_tokenizer(golden.at("eos")));
  folder_.write("words/tokenizer_config.json", R"({"eos_token": "</s>"})");
  for (const std::string type : {"full", "freeze"}) {
    TrainerOptions o = options(type);
    o.model_path = root + "/tests/golden/llama";
    o.tokenizer_path = folder_.path("words");
    o.load_pretrained = true;
    o.fine_tuning = parse_fine_tuning(type);
    o.freeze.layers = 1;
    o.loader.mix.datasets[0].path = folder_.write("words.jsonl", rows);
    o.loader.mix.shuffle = false;
    o.loader.batch_size = settings.at("batch_size");
    o.grad_accumulation_steps = settings.at("grad_accumulation_steps");
    o.max_steps = settings.at("steps");
    o.optimizer.weight_decay = settings.at("weight_decay");
    o.max_grad_norm = settings.at("max_grad_norm");
    o.schedule = {.kind = ScheduleKind::kLinear,
                  .learning_rate = settings.at("learning_rate"),
                  .warmup_steps = settings.at("warmup_steps")};
    train(o);
    for (const char* key : {"loss", "grad_norm", "lr"}) {
      const std::vector<double> got = logged(type, key), want = golden.at(type).at(key);
      ASSERT_EQ(got.size(), want.size());
      double worst = 0;
      for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
      EXPECT_LT(worst, 1e-4) << type << " " << key;
    }
  }
}

// The written folder has the keys of the one that was begun with, sharded, tied or below a vision
// model, and is where the run ended.
TEST_F(TrainerTest, EveryFamilyTrainsAndItsFolderIsLoaded) {
  folder_.write("words/tokenizer.json", word_tokenizer(2));
  folder_.write("words/tokenizer_config.json", R"({"eos_token": "</s>"})");
  folder_.write("words.jsonl", R"({"text": "w5 w9 w77 w100 w3 w8 w190 w45 w31 w9 w77"})");
  int models = 0;
  for (const auto& entry : fs::directory_iterator(std::string(REFT_SOURCE_DIR) + "/tests/golden")) {
    if (!fs::exists(entry.path() / "gradients.safetensors")) continue;
    const std::string name = entry.path().filename();
    const Json config = read_json_file(entry.path() / "config.json");
    const bool experts = config.contains("num_experts") || config.contains("num_local_experts");
    TrainerOptions o = options(name);
    if (experts && !combine_experts_backward_kernel.has(o.device.type)) continue;
    ++models;
    o.model_path = entry.path();
    o.tokenizer_path = folder_.path("words");
    o.load_pretrained = true;
    o.loader.mix.datasets[0].path = folder_.path("words.jsonl");
    o.schedule.learning_rate = 1e-3;
    o.max_steps = 4;
    train(o);
    std::vector<std::string> before, after;
    for (const CheckpointTensor& t : checkpoint_tensors(entry.path())) before.push_back(t.key);
    for (const CheckpointTensor& t : checkpoint_tensors(o.output_dir)) after.push_back(t.key);
    std::erase(before, std::string("lm_head.weight"));  // may be a copy of the embedding
    std::erase(after, std::string("lm_head.weight"));
    EXPECT_THAT(after, testing::UnorderedElementsAreArray(before)) << name;
    TrainerOptions next = o;
    next.model_path = o.output_dir;
    next.output_dir = folder_.path(name + "-next");
    next.max_steps = 1;
    train(next);
    const std::vector<double> losses = logged(name);
    EXPECT_LT(logged(name + "-next").at(0), losses.back() - 0.001) << name;
    EXPECT_LT(losses.back(), losses.front()) << name;
  }
  EXPECT_GE(models, 15);  // of a device without experts' gradients too
}

TEST_F(TrainerTest, PreviewShowsWhatIsLearnt) {
  const std::string text = preview_training(chat_options("out"), 1, false);
  EXPECT_THAT(text, HasSubstr("[["));
  EXPECT_THAT(text, HasSubstr("chats: 4 rows read, 4 kept"));
  EXPECT_FALSE(fs::exists(folder_.path("out")));
}

}  // namespace
}  // namespace reft
