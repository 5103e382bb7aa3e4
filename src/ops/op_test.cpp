// Every registered op has a test; `test_ops --perf [filter]` prints how fast the ops are whose
// lines contain the filter.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
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
void run_suite_with_isa(const char* level) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    setenv("REFT_CPU_ISA", level, 1);
    execl("/proc/self/exe", "test_ops", "--gtest_filter=-OpIsa.*:OpCoverage.*", "--gtest_brief=1",
          static_cast<char*>(nullptr));
    _exit(127);
  }
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
