#include "engine/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/engine_fake.h"
#include "engine/metrics.h"
#include "engine/sampling_state.h"

namespace reft {
namespace {

TEST(SamplingParams, RefusesValuesOutOfRangeNamingTheField) {
  struct Case {
    const char* param;
    std::function<void(SamplingParams&)> change;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<Case> cases = {
      {"n", [](auto& p) { p.n = 0; }},
      {"n", [](auto& p) { p.n = -1; }},
      {"n", [](auto& p) { p.n = 1000000000; }},
      {"temperature", [](auto& p) { p.temperature = -1; }},
      {"temperature", [=](auto& p) { p.temperature = nan; }},
      {"temperature", [=](auto& p) { p.temperature = inf; }},
      {"top_p", [](auto& p) { p.top_p = 0; }},
      {"top_p", [](auto& p) { p.top_p = 1.1f; }},
      {"top_p", [=](auto& p) { p.top_p = nan; }},
      {"top_k", [](auto& p) { p.top_k = -2; }},
      {"min_p", [](auto& p) { p.min_p = 1.5f; }},
      {"min_p", [=](auto& p) { p.min_p = nan; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = 0; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = -1; }},
      {"repetition_penalty", [=](auto& p) { p.repetition_penalty = inf; }},
      {"presence_penalty", [](auto& p) { p.presence_penalty = 2.5f; }},
      {"frequency_penalty", [](auto& p) { p.frequency_penalty = -2.5f; }},
      {"frequency_penalty", [=](auto& p) { p.frequency_penalty = nan; }},
      {"stop",
       [](auto& p) {
         p.stop = {"a", ""};
       }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids = {100}; }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids = {-1}; }},
      {"max_tokens", [](auto& p) { p.max_tokens = 0; }},
      {"max_tokens", [](auto& p) { p.max_tokens = -1; }},
      {"min_tokens", [](auto& p) { p.min_tokens = -1; }},
      {"min_tokens", [](auto& p) { p.max_tokens = 2, p.min_tokens = 3; }},
      {"logprobs", [](auto& p) { p.logprobs = -1; }},
      {"logprobs", [](auto& p) { p.logprobs = 21; }},
      {"prompt_logprobs", [](auto& p) { p.prompt_logprobs = 21; }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{100, 1.0f}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{-1, 1.0f}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{1, 1e9f}};
       }},
      {"logit_bias",
       [=](auto& p) {
         p.logit_bias = {{1, nan}};
       }},
      {"allowed_token_ids",
       [](auto& p) {
         p.allowed_token_ids = {1, 100};
       }},
      {"bad_words", [](auto& p) { p.bad_words = {""}; }},
  };
  for (const Case& c : cases) {
    SamplingParams params;
    c.change(params);
    try {
      params.validate(100);
      ADD_FAILURE() << c.param << " was accepted";
    } catch (const RequestError& e) {
      EXPECT_EQ(e.param(), c.param);
      EXPECT_EQ(e.status(), 400);
      EXPECT_NE(std::string(e.what()).find(c.param), std::string::npos) << e.what();
    }
  }
}

TEST(SamplingParams, AcceptsTheEdges) {
  SamplingParams p;
  p.temperature = 1e30f;
  p.top_k = 1000000;
  p.top_p = 1e-6f;
  p.min_p = 1;
  p.presence_penalty = -2;
  p.seed = std::numeric_limits<uint64_t>::max();
  p.max_tokens = std::numeric_limits<int64_t>::max();
  p.logprobs = 20;
  p.logit_bias = {{0, -100.0f}, {99, 100.0f}};
  p.bad_words = std::vector<std::string>(1000, "x");
  p.stop = std::vector<std::string>(1000, std::string(1000, 'y'));
  EXPECT_NO_THROW(p.validate(100));
}

std::shared_ptr<const SamplingSetup> setup(const SamplingParams& params,
                                           std::vector<int32_t> prompt = {1, 2}) {
  static const fake::ByteTokenizer tokenizer;
  return std::make_shared<const SamplingSetup>(params, std::move(prompt),
                                               std::vector<int32_t>{fake::kEos}, &tokenizer, 100);
}

TEST(SamplingState, MasksEndsUntilMinTokens) {
  SamplingParams p;
  p.min_tokens = 2;
  p.stop_token_ids = {5};
  SamplingState state(setup(p), 0);
  ASSERT_NE(state.row().banned_ids, nullptr);
  EXPECT_EQ(*state.row().banned_ids, (std::vector<int32_t>{fake::kEos, 5}));
  int32_t stop = -1;
  EXPECT_EQ(state.accept(9, &stop), FinishReason::kNone);
  EXPECT_EQ(state.accept(9, &stop), FinishReason::kNone);
  EXPECT_EQ(state.row().banned_ids, nullptr);
  EXPECT_EQ(state.accept(5, &stop), FinishReason::kStop);
  EXPECT_EQ(stop, 5);
  EXPECT_TRUE(state.ended());
}

TEST(SamplingState, EndsOnEosUnlessIgnored) {
  SamplingParams p;
  int32_t stop = -1;
  SamplingState state(setup(p), 0);
  EXPECT_EQ(state.accept(fake::kEos, &stop), FinishReason::kStop);
  EXPECT_EQ(stop, -1);
  p.ignore_eos = true;
  SamplingState ignoring(setup(p), 0);
  EXPECT_EQ(ignoring.accept(fake::kEos, &stop), FinishReason::kNone);
}

TEST(SamplingState, BansTheLastTokenOfABadWordOnlyAfterItsHead) {
  SamplingParams p;
  p.bad_words = {"abc", "z"};
  SamplingState state(setup(p), 0);
  int32_t stop = -1;
  // "z" alone, and "abc" with its head: " abc" has another length here and does not count.
  EXPECT_EQ(*state.row().banned_ids, (std::vector<int32_t>{'z'}));
  state.accept('a', &stop);
  EXPECT_EQ(*state.row().banned_ids, (std::vector<int32_t>{'z'}));
  state.accept('b', &stop);
  EXPECT_EQ(*state.row().banned_ids, (std::vector<int32_t>{'z', 'c'}));
  state.accept('x', &stop);
  EXPECT_EQ(*state.row().banned_ids, (std::vector<int32_t>{'z'}));
}

TEST(SamplingState, RefusesAllowedIdsThatAreAllBanned) {
  SamplingParams p;
  p.allowed_token_ids = {'z'};
  p.bad_words = {"z"};
  EXPECT_THROW(setup(p), RequestError);
}

TEST(SamplingState, ClipsMaxTokensToTheContext) {
  SamplingParams p;
  p.max_tokens = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(setup(p)->max_tokens, 98);
  p.max_tokens.reset();
  EXPECT_EQ(setup(p)->max_tokens, 98);
  p.max_tokens = 3;
  EXPECT_EQ(setup(p)->max_tokens, 3);
}

TEST(Seeds, ExplicitOnesCountUpAndOthersDiffer) {
  SamplingParams p;
  EXPECT_NE(output_seed(p, 0, 0, 0), output_seed(p, 0, 0, 1));
  EXPECT_NE(output_seed(p, 0, 0, 0), output_seed(p, 0, 1, 0));
  EXPECT_NE(output_seed(p, 0, 0, 0), output_seed(p, 1, 0, 0));
  p.seed = 41;
  EXPECT_EQ(output_seed(p, 9, 9, 1), 42U);
}

TEST(Histogram, CountsInclusiveBounds) {
  Histogram h({1, 2, 5});
  for (double v : {0.5, 1.0, 1.5, 5.0, 6.0}) h.observe(v);
  EXPECT_EQ(h.counts, (std::vector<uint64_t>{2, 1, 1, 1}));
  EXPECT_EQ(h.total, 5U);
  EXPECT_DOUBLE_EQ(h.sum, 14);
  const EngineStats stats;
  for (const Histogram* each :
       {&stats.time_to_first_token, &stats.inter_token_latency, &stats.e2e_latency,
        &stats.request_prompt_tokens, &stats.iteration_tokens}) {
    EXPECT_TRUE(std::ranges::is_sorted(each->bounds, std::ranges::less_equal()));
  }
  EXPECT_EQ(stats.inter_token_latency.bounds[0], 0.0005);
}

}  // namespace
}  // namespace reft
