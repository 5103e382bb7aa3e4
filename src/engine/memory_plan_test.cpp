#include "engine/memory_plan.h"

#include <gtest/gtest.h>

namespace reft {
namespace {

constexpr int64_t kMiB = 1 << 20;

KvFacts facts(int64_t available = 1024 * kMiB) {
  return {.block_bytes = kMiB, .model_len = 2048, .available_bytes = available};
}

std::string message_of(const EngineOptions& options, const KvFacts& f) {
  try {
    plan_kv_cache(options, f);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(KvPlan, TakesAQuarterOfWhatIsFree) {
  EngineOptions o;
  const KvPlan plan = plan_kv_cache(o, facts());
  EXPECT_EQ(plan.num_blocks, 256);
  EXPECT_EQ(plan.max_model_len, 2048);
}

TEST(KvPlan, StopsAtFourGiBAndAtWhatCanBeUsed) {
  EngineOptions o;
  EXPECT_EQ(plan_kv_cache(o, facts(int64_t{1} << 40)).num_blocks, 4096);
  o.max_num_seqs = 2;
  EXPECT_EQ(plan_kv_cache(o, facts(int64_t{1} << 40)).num_blocks, 256);
}

TEST(KvPlan, BytesAndOverrideWin) {
  EngineOptions o;
  o.kv_cache_memory_bytes = 300 * kMiB + 5;
  EXPECT_EQ(plan_kv_cache(o, facts()).num_blocks, 300);
  o.num_gpu_blocks_override = 7;
  const KvPlan plan = plan_kv_cache(o, facts());
  EXPECT_EQ(plan.num_blocks, 7);
  EXPECT_EQ(plan.max_model_len, 7 * 16);
}

TEST(KvPlan, LowersTheModelsOwnLengthButRefusesAGivenOneThatDoesNotFit) {
  EngineOptions o;
  EXPECT_EQ(plan_kv_cache(o, facts(200 * kMiB)).max_model_len, 50 * 16);
  o.max_model_len = 2000;
  const std::string message = message_of(o, facts(200 * kMiB));
  for (const char* part : {"2000", "125.00 MiB", "50.00 MiB", "--max_model_len 800",
                           "--kv_cache_memory_bytes 131072000"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  EXPECT_NE(message_of(EngineOptions(), facts(2 * kMiB)).find("1.00 MiB"), std::string::npos);
}

TEST(KvPlan, NamesAGpuShareThatFits) {
  KvFacts f = facts(100 * kMiB);
  f.dedicated = true;
  f.total_bytes = 10000 * kMiB;
  f.used_bytes = 6000 * kMiB;
  EngineOptions o;
  EXPECT_EQ(plan_kv_cache(o, f).num_blocks, 100);  // all of it
  o.max_model_len = 2000;                          // 125 MiB
  std::string message = message_of(o, f);
  EXPECT_NE(message.find("--gpu_memory_utilization 0.62"), std::string::npos) << message;
  EXPECT_NE(message.find("--max_model_len 1600"), std::string::npos) << message;
  f.available_bytes = 0;
  message = message_of(EngineOptions(), f);  // 128 MiB for the model's own length
  EXPECT_NE(message.find("--gpu_memory_utilization 0.62"), std::string::npos) << message;
  f.used_bytes = 9900 * kMiB;  // the model's own length does not fit, a shorter one does
  message = message_of(EngineOptions(), f);
  EXPECT_NE(message.find("--gpu_memory_utilization 1.00 with a smaller"), std::string::npos)
      << message;
  f.used_bytes = 10000 * kMiB;
  message = message_of(EngineOptions(), f);
  EXPECT_NE(message.find("too little memory"), std::string::npos) << message;
  EXPECT_EQ(message.find("--gpu_memory_utilization"), std::string::npos) << message;
}

TEST(KvPlan, RefusesMoreThanTheModelKnows) {
  EngineOptions o;
  o.max_model_len = 4096;
  EXPECT_NE(message_of(o, facts()).find("2048"), std::string::npos);
}

TEST(Options, NameTheFlag) {
  const auto refused = [](auto change, const char* flag) {
    EngineOptions o;
    change(o);
    try {
      check_options(o);
      ADD_FAILURE() << flag << " was accepted";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(flag), std::string::npos) << e.what();
    }
  };
  refused([](auto& o) { o.max_num_seqs = 0; }, "--max_num_seqs");
  refused([](auto& o) { o.max_num_batched_tokens = 0; }, "--max_num_batched_tokens");
  refused([](auto& o) { o.block_size = 0; }, "--block_size");
  refused([](auto& o) { o.max_model_len = -1; }, "--max_model_len");
  refused([](auto& o) { o.num_gpu_blocks_override = -1; }, "--num_gpu_blocks_override");
  refused([](auto& o) { o.kv_cache_memory_bytes = -1; }, "--kv_cache_memory_bytes");
  refused([](auto& o) { o.max_queued_requests = -1; }, "--max_queued_requests");
  refused([](auto& o) { o.scheduling_policy = "lifo"; }, "--scheduling_policy");
}

TEST(AvailableMemory, IsPlausible) {
  EXPECT_GT(available_memory(), 16 * kMiB);
  EXPECT_LT(available_memory(), int64_t{1} << 50);
}

}  // namespace
}  // namespace reft
