#include "base/args.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/check.h"
#include "base/file.h"

namespace reft {
namespace {

struct Flags {
  std::string model = "default";
  std::string policy = "fcfs";
  int64_t max_model_len = 0;
  double utilization = 0.92;
  bool caching = true;
  std::vector<std::string> names;
  std::string prompt;
  ArgParser parser{"reft test", "a test"};

  Flags() {
    parser.add("model", &model, "the model", {"m"});
    parser.add("max_model_len", &max_model_len, "context", {"context_length"});
    parser.add("gpu_memory_utilization", &utilization, "share");
    parser.add("enable_prefix_caching", &caching, "prefix cache");
    parser.add("served_model_name", &names, "names");
    parser.add("scheduling_policy", &policy, "policy");
    parser.choices("scheduling_policy", {"fcfs", "priority"});
    parser.ignored("trust_remote_code", "no remote code is ever run", false);
    parser.positional("PROMPT", &prompt, "text");
  }
  std::string error(const std::vector<std::string>& args) {
    try {
      parser.parse(args);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
};

TEST(Args, AListMayBeJson) {
  Flags f;
  f.parser.parse({"--served-model-name", R"(["a", "b c"])", "[d", "[1]", "--served_model_name=[]"});
  EXPECT_EQ(f.names, (std::vector<std::string>{"a", "b c", "[d", "[1]"}));
}

TEST(Args, DashesUnderscoresEqualsAndAliases) {
  Flags f;
  EXPECT_TRUE(f.parser.parse({"--max-model-len", "4k", "--gpu_memory_utilization=0.5", "-m", "x",
                              "--no-enable_prefix_caching", "--served_model_name", "a", "b",
                              "--served-model-name=c", "--trust-remote-code", "--", "--hello"}));
  EXPECT_EQ(f.max_model_len, 4000);
  EXPECT_EQ(f.utilization, 0.5);
  EXPECT_EQ(f.model, "x");
  EXPECT_FALSE(f.caching);
  EXPECT_EQ(f.names, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(f.prompt, "--hello");
  EXPECT_TRUE(f.parser.was_set("model"));
  EXPECT_FALSE(f.parser.was_set("scheduling_policy"));
  EXPECT_EQ(f.parser.ignored_flags().size(), 1u);
}

TEST(Args, Numbers) {
  for (auto [text, value] : std::vector<std::pair<std::string, int64_t>>{
           {"128K", 131072}, {"1e6", 1000000}, {"-1", -1}, {"4_096", 4096}, {"2m", 2000000}}) {
    Flags f;
    EXPECT_TRUE(f.parser.parse({"--max_model_len", text}));
    EXPECT_EQ(f.max_model_len, value) << text;
  }
  for (const char* text : {"", "x", "1.5", "1e30", "12q", "nan"}) {
    EXPECT_NE(Flags().error({"--max_model_len", text}), "") << text;
  }
}

TEST(Args, BooleansTakeAValueToo) {
  Flags f;
  EXPECT_TRUE(f.parser.parse({"--enable-prefix-caching", "false", "text"}));
  EXPECT_FALSE(f.caching);
  EXPECT_EQ(f.prompt, "text");
  EXPECT_NE(Flags().error({"--enable-prefix-caching=perhaps"}), "");
}

TEST(Args, UnknownFlagSuggestsTheNearest) {
  EXPECT_NE(Flags().error({"--max-modl-len", "3"}).find("did you mean --max-model-len?"),
            std::string::npos);
  EXPECT_EQ(Flags().error({"--zzzzzzzzzz"}).find("did you mean"), std::string::npos);
  EXPECT_NE(Flags().error({"--scheduling-policy", "lifo"}).find("not one of fcfs, priority"),
            std::string::npos);
  EXPECT_NE(Flags().error({"--model"}).find("needs a value"), std::string::npos);
  EXPECT_NE(Flags().error({"one", "two"}).find("unexpected argument 'two'"), std::string::npos);
}

TEST(Args, EnvironmentAndFileGiveWayToTheCommandLine) {
  const std::string path = testing::TempDir() + "/reft_args.json";
  write_file_atomic(path,
                    R"({"model": "file", "max-model-len": 7, "served_model_name": ["p", "q"]})");
  ::setenv("REFT_MODEL", "environment", 1);
  Flags f;
  EXPECT_TRUE(f.parser.parse({"--config", path, "--max_model_len", "9"}));
  EXPECT_EQ(f.model, "environment");
  EXPECT_EQ(f.max_model_len, 9);
  EXPECT_EQ(f.names, (std::vector<std::string>{"p", "q"}));
  ::unsetenv("REFT_MODEL");
  write_file_atomic(path, R"({"modle": "file"})");
  EXPECT_NE(Flags().error({"--config", path}).find("--model"), std::string::npos);
  std::filesystem::remove(path);
}

TEST(Args, HelpShowsEveryFlagWithItsDefault) {
  Flags f;
  const std::string help = f.parser.help();
  for (const char* part :
       {"NAME", "SYNOPSIS", "--max-model-len, --context-length N", "(default: 0.92)",
        "--no-enable-prefix-caching", "fcfs|priority", "--trust-remote-code"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
  }
}

}  // namespace
}  // namespace reft
