#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <set>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "cli/bench_data.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "train/checkpoint.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TEST(Cli, CommandsHaveNamesSummariesAndFlags) {
  std::set<std::string> names;
  for (const Command& command : all_commands()) {
    EXPECT_TRUE(names.insert(command.name).second) << command.name;
    EXPECT_GT(std::string(command.summary).size(), 10u) << command.name;
    EXPECT_GE(command.flags().size(), 2u) << command.name;
  }
}

TEST(Cli, ShortModelNames) {
  EXPECT_EQ(short_model_name("/a/SmolLM2-135M-Instruct.Q4_1.gguf"), "SmolLM2-135M-Instruct");
  EXPECT_EQ(short_model_name("Qwen3-0.6B-Q8_0.gguf"), "Qwen3-0.6B");
  EXPECT_EQ(short_model_name("Llama-3.2-1B-Q4_K_M.gguf"), "Llama-3.2-1B");
  EXPECT_EQ(short_model_name("/models/Qwen3/Qwen3-4B/"), "Qwen3-4B");
  EXPECT_EQ(short_model_name("model.gguf"), "model");
}

TEST(Bench, SummaryOfKnownValues) {
  const Summary s = summarize({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(s.mean, 2.5);
  EXPECT_DOUBLE_EQ(s.median, 2.5);
  EXPECT_DOUBLE_EQ(s.percentile(0), 1);
  EXPECT_DOUBLE_EQ(s.percentile(100), 4);
  EXPECT_DOUBLE_EQ(s.percentile(99), 3.97);
  EXPECT_DOUBLE_EQ(summarize({}).percentile(50), 0);
}

const Command& command_named(const std::string& name) {
  for (const Command& command : all_commands()) {
    if (command.name == name) return command;
  }
  fail("no command '{}'", name);
}

std::string error_of(const std::string& command, const std::vector<std::string>& args) {
  try {
    command_named(command).run(args);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

// The commands as the product page prints them (and flags of vLLM's users), without running them:
// an unknown flag would be named first.
TEST(Cli, FlagsOfTheProductPageAreAccepted) {
  EXPECT_THAT(
      error_of("serve", {"--served_model_name", "Qwen3-4B", "--chat_template", "qwen3", "-tp", "1",
                         "--disable-uvicorn-access-log", "--model", "/nowhere/Qwen3-4B"}),
      HasSubstr("/nowhere/Qwen3-4B"));
  std::vector<std::string> train = {"--cutoff_len",
                                    "512",
                                    "--model",
                                    "/nowhere/Qwen3-4B",
                                    "--block_size",
                                    "512",
                                    "--test_every",
                                    "200",
                                    "--batch_size",
                                    "4",
                                    "--fine_tuning_type",
                                    "full",
                                    "--weight_decay",
                                    "0.1",
                                    "--warmup_steps",
                                    "100",
                                    "--lr_scheduler_type",
                                    "step",
                                    "--learning_rate",
                                    "4e-5",
                                    "--epochs",
                                    "100",
                                    "--learning_rate_decay_frac",
                                    "0.0",
                                    "--use_bf16",
                                    "--stage",
                                    "sft",
                                    "--checkpoint_dir",
                                    "/nowhere/out",
                                    "--save_every",
                                    "20000",
                                    "--grad_accumulation_steps",
                                    "32",
                                    "--resume",
                                    "--load_pretrained",
                                    "--tensor_parallels",
                                    "1",
                                    "--pipeline_parallels",
                                    "1",
                                    "--data_parallels",
                                    "1",
                                    "--nodes",
                                    "1",
                                    "--gpus_per_node",
                                    "1",
                                    "--chat_template",
                                    "qwen3",
                                    "--datasets",
                                    "cci3@/nowhere/CCI3-HQ/data",
                                    "--datasets",
                                    "alpaca@/nowhere/alpaca.json",
                                    "--datasets",
                                    "fineweb@/nowhere/CC-MAIN-2025-26"};
  EXPECT_THAT(error_of("train", train), HasSubstr("/nowhere/Qwen3-4B"));
  for (std::string& flag : train) {
    if (flag.starts_with("--")) std::replace(flag.begin(), flag.end(), '_', '-');
  }
  EXPECT_THAT(error_of("train", train), HasSubstr("/nowhere/Qwen3-4B"));
}

TEST(Cli, WhatTrainingCannotDoIsNamed) {
  const auto expect = [](const std::vector<std::string>& flags, const char* words) {
    std::vector<std::string> args = {"--model", "/nowhere", "--datasets", "a@/nowhere.json"};
    args.insert(args.end(), flags.begin(), flags.end());
    EXPECT_THAT(error_of("train", args), HasSubstr(words)) << words;
  };
  expect({"--fine_tuning_type", "oft"}, "oft");
  expect({"--stage", "ppo"}, "ppo");
  expect({"--stage", "nonsense"}, "nonsense");
  expect({"--tensor_parallels", "2"}, "--tensor_parallels 2 is not there yet");
  expect({"--learning_rat", "1"}, "did you mean --learning-rate?");
  expect({"--activation_checkpointing", "selective"}, "full");
  expect({"--val_size", "1"}, "--val_size");
  expect({"--seed", "-1"}, "--seed");
  expect({"--use_bf16", "--dtype", "float32"}, "--use_bf16");
  expect({"--nan_policy", "apply"}, "skip");
  expect({"--max_shard_size", "big"}, "max_shard_size");
  expect({"--chat_template_kwargs", "[]"}, "--chat_template_kwargs");
  EXPECT_THAT(error_of("train", {"--model", "/nowhere"}), HasSubstr("--datasets"));
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "reft-cli-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// A signal as it comes from outside, in the middle of a run that would go on for days.
TEST(Cli, SigtermSavesACheckpoint) {
  const fs::path golden = fs::path(REFT_SOURCE_DIR) / "tests" / "golden";
  const TemporaryFolder folder;
  const fs::path out = folder.path() / "out";
  Json config = read_json_file((golden / "llama/config.json").string());
  config["vocab_size"] = 720;
  write_file_atomic(folder.path() / "config.json", config.dump());
  write_file_atomic(folder.path() / "tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  fs::copy(golden / "tokenizers/byte_level.json", folder.path() / "tokenizer.json");
  write_file_atomic(folder.path() / "text.txt", "one row\nand another one\nand a third\n");
  std::vector<std::string> args = {"--stage",
                                   "pt",
                                   "--no-load-pretrained",
                                   "--log-level",
                                   "error",
                                   "--model",
                                   folder.path(),
                                   "--datasets",
                                   "text@" + (folder.path() / "text.txt").string(),
                                   "--max-steps",
                                   "1e9",
                                   "--cutoff-len",
                                   "16",
                                   "--checkpoint-dir",
                                   out};
  // The first line of the log is written with the handlers in place.
  std::thread killer([&] {
    while (!fs::exists(out / "train_log.jsonl") || fs::file_size(out / "train_log.jsonl") == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ::kill(::getpid(), SIGTERM);
  });
  EXPECT_EQ(command_named("train").run(args), 128 + SIGTERM);
  killer.join();
  set_log_level(LogLevel::kInfo);
  const std::optional<std::string> checkpoint = latest_checkpoint(out);
  ASSERT_TRUE(checkpoint.has_value());
  EXPECT_GE(read_train_state(*checkpoint).step, 1);
  EXPECT_FALSE(fs::exists(out / "model.safetensors"));
}

TEST(Cli, WeightsMayComeWithoutATokenizer) {
  const std::string golden = std::string(REFT_SOURCE_DIR) + "/tests/golden/";
  ModelFlags flags;
  flags.quiet = true;
  for (const std::string model : {"llama", "llama/model.F32.gguf"}) {
    flags.model = golden + model;
    const ServingModel alone = flags.load();
    EXPECT_EQ(alone.tokenizer, nullptr) << model;
    try {
      alone.require_tokenizer();
      ADD_FAILURE() << model;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(flags.model), std::string::npos) << e.what();
    }
    EXPECT_THROW(flags.load_tokenizer_for(flags.model), Error) << model;
  }
  flags.tokenizer = golden + "tokenizers/byte_level.json";
  EXPECT_GT(flags.load().require_tokenizer().vocab_size(), 256);
  flags.tokenizer = golden + "llama";
  EXPECT_THROW(flags.load(), Error);  // one that was asked for must be there
}

}  // namespace
}  // namespace reft
