// Every registered op has a test; `test_ops --perf [filter]` prints how fast the ops are whose
// lines contain the filter.
#include <gtest/gtest.h>

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "ops/kernel.h"
#include "ops/op_cases.h"
#include "ops/op_perf.h"

namespace reft {
namespace {

TEST(OpCoverage, EveryRegisteredOpHasATest) {
  EXPECT_FALSE(all_kernel_slots().empty());
  for (const KernelSlot* slot : all_kernel_slots()) {
    EXPECT_TRUE(covered_ops().contains(slot->name())) << "no test covers op " << slot->name();
  }
}

// The whole suite again in a process that is held to a lesser instruction set (see
// backends/cpu/isa.h).
void run_suite_with_isa(const std::string& level) {
  const std::string setting = "REFT_CPU_ISA=" + level;
  std::vector<char*> environment = {const_cast<char*>(setting.c_str())};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, "REFT_CPU_ISA=", 13) != 0) environment.push_back(*entry);
  }
  environment.push_back(nullptr);
  const char* const arguments[] = {"test_ops", "--gtest_filter=-OpIsa.*:OpCoverage.*",
                                   "--gtest_brief=1", nullptr};
  pid_t child = 0;
  ASSERT_EQ(posix_spawn(&child, "/proc/self/exe", nullptr, nullptr,
                        const_cast<char* const*>(arguments), environment.data()),
            0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the op tests fail with " << level;
}

TEST(OpIsa, SuitePassesWithAvx2) { run_suite_with_isa("avx2"); }
TEST(OpIsa, SuitePassesWithoutVectorExtensions) { run_suite_with_isa("scalar"); }

}  // namespace
}  // namespace reft

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--perf") == 0) {
    reft::print_op_perf(argc > 2 ? argv[2] : "");
    return 0;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
