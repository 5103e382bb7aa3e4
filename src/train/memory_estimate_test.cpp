#include "train/memory_estimate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace reft {
namespace {

using testing::HasSubstr;
using testing::Not;

// Qwen3-0.6B.
MemoryModel qwen3() {
  return memory_model_of({.vocab_size = 151'936,
                          .hidden_size = 1024,
                          .intermediate_size = 3072,
                          .num_layers = 28,
                          .num_heads = 16,
                          .num_kv_heads = 8,
                          .head_dim = 128,
                          .tied = true},
                         true, 16);
}

TEST(MemoryEstimate, ModelsHaveTheirPublishedSizes) {
  const MemoryModel m = qwen3();
  EXPECT_EQ(m.parameters, 596'049'920);
  EXPECT_EQ(m.weight_bytes, 2 * 596'049'920LL);
  EXPECT_EQ(m.lora_parameters, 10'092'544);  // as PEFT counts for rank 16 on all linears
  // Llama-3.1-8B: its own head.
  EXPECT_EQ(memory_model_of({.vocab_size = 128'256,
                             .hidden_size = 4096,
                             .intermediate_size = 14'336,
                             .num_layers = 32,
                             .num_heads = 32,
                             .num_kv_heads = 8,
                             .head_dim = 128},
                            false, 8)
                .parameters,
            8'030'261'248);
}

int64_t row(const std::vector<MemoryRow>& rows, const std::string& name) {
  for (const MemoryRow& r : rows) {
    if (r.name == name) return r.bytes;
  }
  return -1;
}

TEST(MemoryEstimate, BytesPerParameter) {
  const MemoryModel m = qwen3();
  const int64_t p = m.parameters;
  const auto fixed = [&](const MemoryOptions& o) {
    const auto rows = estimate_memory(m, o);
    return total_bytes(rows) - row(rows, "activations") - row(rows, "their gradients") -
           row(rows, "logits");
  };
  EXPECT_EQ(fixed({}), (2 + 4 + 4 + 8) * p);
  EXPECT_EQ(fixed({.master_weights = false, .state_dtype = DType::kBF16}), (2 + 4 + 4) * p);
  EXPECT_NEAR(
      static_cast<double>(fixed({.optimizer = OptimizerKind::kAdamW8bit, .master_weights = false})),
      (2 + 4 + 2.03125) * static_cast<double>(p), 16);
  EXPECT_EQ(row(estimate_memory(m, {.optimizer = OptimizerKind::kMuon}), "optimizer states"),
            4 * p + 4 * m.embedding_parameters);
  EXPECT_EQ(row(estimate_memory(m, {.optimizer = OptimizerKind::kSgd}), "optimizer states"), 4 * p);
}

// The megabytes per token of a flash-attention SwiGLU stack in bfloat16.
TEST(MemoryEstimate, ActivationsPerToken) {
  const auto per_token = [](Recompute recompute) {
    MemoryOptions o{.recompute = recompute};
    return static_cast<double>(row(estimate_memory(qwen3(), o), "activations")) / 2048 / 1e6;
  };
  EXPECT_NEAR(per_token(Recompute::kNone), 1.26, 0.01);
  EXPECT_NEAR(per_token(Recompute::kFull), 0.057 + 1.26 / 28, 0.001);
  MemoryOptions o{.loss_chunk_bytes = 4 * 100 * 151'936};
  EXPECT_EQ(row(estimate_memory(qwen3(), o), "logits"), 4 * 100 * 151'936);
  o.cutoff_len = 64;
  EXPECT_EQ(row(estimate_memory(qwen3(), o), "logits"), 4 * 64 * 151'936);
}

TEST(MemoryEstimate, LoraNeedsStatesForTheAdapterOnly) {
  MemoryModel m = qwen3();
  m.trainable_parameters = m.lora_parameters;
  const auto rows = estimate_memory(m, {.lora = true, .trainable_dtype = DType::kF32});
  EXPECT_EQ(row(rows, "adapter") + row(rows, "gradients") + row(rows, "optimizer states"),
            16 * m.lora_parameters);
  EXPECT_EQ(row(rows, "master weights"), -1);
}

TEST(MemoryEstimate, WhatFitsIsSaid) {
  const std::string report = memory_report(qwen3(), {}, 80'000'000'000);
  EXPECT_THAT(report, HasSubstr("80.00 GB free: fits"));
  EXPECT_THAT(report, Not(HasSubstr("would fit")));
}

TEST(MemoryEstimate, ChoicesFit) {
  const MemoryOptions options{.batch_size = 12};
  const int64_t need = total_bytes(estimate_memory(qwen3(), options));
  for (const int64_t available : {need - 1, int64_t{24'000'000'000}, int64_t{16'000'000'000},
                                  int64_t{8'000'000'000}, int64_t{3'000'000'000}}) {
    const auto choices = fitting_choices(qwen3(), options, available);
    ASSERT_FALSE(choices.empty()) << available;
    for (const MemoryChoice& choice : choices) EXPECT_LE(choice.bytes, available) << choice.flags;
  }
  EXPECT_EQ(fitting_choices(qwen3(), options, need - 1).front().flags,
            "--activation_checkpointing full");
  // Half the micro-batch is enough: a third is not offered.
  const std::string report = memory_report(qwen3(), options, need - 1);
  EXPECT_THAT(report, HasSubstr("--batch_size 6 and 2 times the accumulation steps"));
  EXPECT_THAT(report, Not(HasSubstr("--batch_size 4")));
  EXPECT_THAT(report, HasSubstr("does not fit"));
  EXPECT_THAT(memory_report(qwen3(), options, 1'000'000'000),
              HasSubstr("No change of batch, checkpointing, optimizer or LoRA makes it fit"));
  EXPECT_THAT(fitting_choices(qwen3(), options, 3'000'000'000).front().flags,
              HasSubstr("--fine_tuning_type lora --batch_size 1 --activation_checkpointing full"));
}

TEST(MemoryEstimate, ErrorsNameTheFlag) {
  EXPECT_EQ(parse_recompute("full"), Recompute::kFull);
  try {
    parse_recompute("some");
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("--activation_checkpointing"));
  }
}

}  // namespace
}  // namespace reft
