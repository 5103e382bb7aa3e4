#include <gtest/gtest.h>

#include <set>

#include "base/check.h"
#include "cli/bench_data.h"
#include "cli/command.h"
#include "cli/model_flags.h"

namespace reft {
namespace {

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

TEST(Cli, FlagsOfTheProductPageAreAccepted) {
  // `reft serve` as the product page prints it (and flags of vLLM's users), without running it: an
  // unknown flag would be named first.
  for (const Command& command : all_commands()) {
    if (std::string(command.name) != "serve") continue;
    try {
      command.run({"--served_model_name", "Qwen3-4B", "--chat_template", "qwen3", "-tp", "1",
                   "--disable-uvicorn-access-log", "--model", "/nowhere/Qwen3-4B"});
      FAIL() << "a model that does not exist was served";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("/nowhere/Qwen3-4B"), std::string::npos) << e.what();
    }
  }
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
