#include "engine/engine.h"

#include <gtest/gtest.h>
#include <time.h>

#include <numeric>
#include <random>

#include "base/log.h"
#include "engine/engine_fake.h"

namespace reft {
namespace {

using fake::Call;
using fake::greedy;
using fake::Output;
using fake::run_all;
using fake::run_one;
using fake::start;

std::shared_ptr<const Tokenizer> byte_tokenizer() {
  static const auto tokenizer = std::make_shared<const fake::ByteTokenizer>();
  return tokenizer;
}

std::unique_ptr<Engine> make_engine(EngineOptions options = {}, fake::ModelSettings settings = {}) {
  static const bool quiet = [] {
    set_log_level(LogLevel::kOff);
    return true;
  }();
  (void)quiet;
  if (options.num_gpu_blocks_override == 0) options.kv_cache_memory_bytes = 1 << 20;
  return std::make_unique<Engine>(fake::load(std::move(settings)), byte_tokenizer(),
                                  std::move(options));
}

// The scheduling thread publishes a moment after the last update was delivered.
void expect_all_free(const Engine& engine) {
  EXPECT_TRUE(fake::becomes_true([&] {
    const EngineStats stats = engine.stats();
    return stats.num_kv_blocks == stats.num_free_kv_blocks && stats.num_requests_running == 0 &&
           stats.num_requests_waiting == 0;
  }));
}

std::vector<int32_t> random_prompt(std::mt19937& random, size_t length) {
  std::vector<int32_t> ids(length);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 256);
  return ids;
}

// Requests of all kinds, some with common prefixes.
std::vector<Call> mixed_calls(int count) {
  std::mt19937 random(3);
  const std::vector<int32_t> common = random_prompt(random, 37);
  std::vector<Call> calls;
  for (int i = 0; i < count; ++i) {
    Call call;
    if (i % 2 == 0) call.prompt.assign(common.begin(), common.begin() + 20 + i % 17);
    const std::vector<int32_t> own = random_prompt(random, 1 + random() % 40);
    call.prompt.insert(call.prompt.end(), own.begin(), own.end());
    call.params.max_tokens = 1 + static_cast<int64_t>(random() % 25);
    call.params.temperature = i % 3 == 0 ? 0.0f : 0.9f;
    call.params.seed = 1000 + static_cast<uint64_t>(i);
    if (i % 4 == 1) call.params.repetition_penalty = 1.3f;
    if (i % 5 == 1) call.params.presence_penalty = 0.7f;
    if (i % 5 == 2) call.params.top_k = 20;
    if (i % 6 == 3) call.params.logprobs = 3;
    if (i % 7 == 3) call.params.prompt_logprobs = 2;
    if (i % 11 == 4) call.params.n = 3;
    calls.push_back(std::move(call));
  }
  return calls;
}

void expect_same_logprobs(const std::vector<TokenLogprobs>& a,
                          const std::vector<TokenLogprobs>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].size(), b[i].size());
    for (size_t j = 0; j < a[i].size(); ++j) {
      EXPECT_EQ(a[i][j].token, b[i][j].token);
      EXPECT_EQ(a[i][j].logprob, b[i][j].logprob);
      EXPECT_EQ(a[i][j].rank, b[i][j].rank);
    }
  }
}

void expect_same(const std::vector<std::vector<Output>>& a,
                 const std::vector<std::vector<Output>>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].size(), b[i].size());
    for (size_t j = 0; j < a[i].size(); ++j) {
      EXPECT_EQ(a[i][j].ids, b[i][j].ids) << "request " << i << " output " << j;
      EXPECT_EQ(a[i][j].text, b[i][j].text);
      EXPECT_EQ(a[i][j].finish, b[i][j].finish);
      expect_same_logprobs(a[i][j].logprobs, b[i][j].logprobs);
      expect_same_logprobs(a[i][j].prompt_logprobs, b[i][j].prompt_logprobs);
    }
  }
}

// One request at a time, whole prompts, nothing shared.
std::vector<std::vector<Output>> reference(const std::vector<Call>& calls) {
  EngineOptions options;
  options.enable_prefix_caching = false;
  options.max_num_seqs = 1;
  const auto engine = make_engine(options);
  std::vector<std::vector<Output>> outputs;
  for (const Call& call : calls) outputs.push_back(run_all(*engine, {call})[0]);
  return outputs;
}

struct Config {
  const char* name;
  int64_t block_size, budget, seqs, blocks;
  bool caching = true, chunked = true;
  const char* policy = "fcfs";
};

// With `async` a step is queued before the tokens of the one before are known, as on a GPU.
class EngineEquivalence : public ::testing::TestWithParam<std::tuple<Config, bool>> {};

TEST_P(EngineEquivalence, OutputsDoNotDependOnScheduling) {
  const Config& c = std::get<0>(GetParam());
  EngineOptions options;
  options.async_scheduling = std::get<1>(GetParam());
  options.block_size = c.block_size;
  options.max_num_batched_tokens = c.budget;
  options.max_num_seqs = c.seqs;
  options.num_gpu_blocks_override = c.blocks;
  options.enable_prefix_caching = c.caching;
  options.enable_chunked_prefill = c.chunked;
  options.scheduling_policy = c.policy;
  fake::Gate gate;  // the first step ends when all requests are there
  const auto engine = make_engine(options, {.on_step = gate.step()});
  const std::vector<Call> calls = mixed_calls(40);
  static const std::vector<std::vector<Output>> expected = reference(calls);
  expect_same(run_all(*engine, calls, [&] { gate.open(); }), expected);
  expect_same(run_all(*engine, calls), expected);  // again, with what the prefix cache kept
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.prefix_cache_hits > 0, c.caching);
  EXPECT_EQ(stats.num_preemptions > 0, c.blocks > 0);
  expect_all_free(*engine);
}

INSTANTIATE_TEST_SUITE_P(
    Configs, EngineEquivalence,
    ::testing::Combine(
        ::testing::Values(Config{"batch", 16, 2048, 256, 0},
                          Config{"no_cache", 16, 2048, 256, 0, false},
                          Config{"small_chunks", 16, 7, 256, 0},
                          Config{"one_token_steps", 16, 1, 1, 0}, Config{"block_1", 1, 64, 256, 0},
                          Config{"block_3", 3, 50, 256, 0},
                          Config{"whole_prompts", 8, 128, 256, 20, true, false},
                          Config{"tiny_pool", 4, 64, 256, 30},
                          Config{"tiny_pool_no_cache", 4, 64, 256, 30, false},
                          Config{"tiny_pool_priority", 4, 2048, 256, 28, true, true, "priority"}),
        ::testing::Bool()),
    [](const auto& info) {
      return std::string(std::get<0>(info.param).name) + (std::get<1>(info.param) ? "_async" : "");
    });

TEST(Engine, FindsACachedPrefixAndSeparatesSalts) {
  const auto engine = make_engine();
  std::vector<int32_t> prompt(100);
  std::iota(prompt.begin(), prompt.end(), 0);
  const Output fresh = run_one(*engine, {.prompt = prompt, .params = greedy(20)});
  EXPECT_EQ(fresh.num_cached_tokens, 0);
  const Output cached = run_one(*engine, {.prompt = prompt, .params = greedy(20)});
  EXPECT_EQ(cached.num_cached_tokens, 96);
  EXPECT_EQ(cached.ids, fresh.ids);
  const Output salted =
      run_one(*engine, {.prompt = prompt, .params = greedy(20), .salt = "tenant"});
  EXPECT_EQ(salted.num_cached_tokens, 0);
  EXPECT_EQ(salted.ids, fresh.ids);

  // The next turn of a conversation finds what was generated too.
  std::vector<int32_t> turn = prompt;
  turn.insert(turn.end(), fresh.ids.begin(), fresh.ids.end());
  turn.push_back(5);
  EXPECT_EQ(run_one(*engine, {.prompt = turn, .params = greedy(1)}).num_cached_tokens, 112);

  // Exactly full blocks: the last one is computed again, because its logits are wanted.
  prompt.resize(96);
  EXPECT_EQ(run_one(*engine, {.prompt = prompt, .params = greedy(1)}).num_cached_tokens, 80);
  engine->reset_prefix_cache();
  EXPECT_EQ(run_one(*engine, {.prompt = prompt, .params = greedy(1)}).num_cached_tokens, 0);
  expect_all_free(*engine);
}

EngineOptions async_options(bool async = true) {
  EngineOptions options;
  options.async_scheduling = async;
  return options;
}

// The step behind the end of a sequence may not have run: what it was to write is not in the cache.
TEST(Engine, CachesNoTokenThatWasSampledLast) {
  for (const bool async : {false, true}) {
    EngineOptions options = async_options(async);
    options.block_size = 4;
    const auto engine = make_engine(options, {.script = {7, 7, fake::kEos, 8}});
    const Output ended = run_one(*engine, {.prompt = {1, 2, 3}, .params = greedy(10)});
    EXPECT_EQ(ended.ids, (std::vector<int32_t>{fake::kEos}));
    // The block of the prompt and the end token: the model finds a stale key when it counts.
    const Output next = run_one(*engine, {.prompt = {1, 2, 3, fake::kEos, 5}, .params = greedy(2)});
    EXPECT_EQ(next.finish, FinishReason::kLength) << next.error;
    EXPECT_EQ(next.num_cached_tokens, 0);
    expect_all_free(*engine);
  }
}

TEST(Engine, AnAsynchronousStepBehindTheEndIsDropped) {
  for (const bool async : {false, true}) {
    std::atomic<int> steps = 0;
    const auto engine =
        make_engine(async_options(async),
                    {.script = {5, 6, 7, fake::kEos}, .on_step = [&](const Batch&) { ++steps; }});
    // A slow machine may give away the head start.
    for (int i = 0; i < (async ? 100 : 1) && steps != 5; ++i) {
      steps = 0;
      const Output out = run_one(*engine, {.prompt = {1}, .params = greedy(50)});
      EXPECT_EQ(out.ids, (std::vector<int32_t>{5, 6, 7, fake::kEos}));
      EXPECT_EQ(out.finish, FinishReason::kStop);
      EXPECT_EQ(out.num_output_tokens, 4);
      EXPECT_EQ(out.num_late, 0);
      expect_all_free(*engine);
    }
    EXPECT_EQ(steps, async ? 5 : 4);  // the one that continues the end token
  }
}

// All that a row of sampling knows of the tokens before it.
TEST(Engine, AsynchronousStepsKnowTheTokenBefore) {
  std::vector<Call> calls;
  const auto add = [&](auto&& change) {
    Call call{.prompt = {1, 2, 3, static_cast<int32_t>(calls.size())}, .params = greedy(12)};
    change(call.params);
    calls.push_back(std::move(call));
  };
  add([](SamplingParams& p) { p.bad_words = {"ab"}; });
  add([](SamplingParams& p) { p.bad_words = {"ab", "ca"}, p.frequency_penalty = 0.5f; });
  add([](SamplingParams& p) { p.repetition_penalty = 1.9f; });
  add([](SamplingParams& p) { p.presence_penalty = 2.0f, p.logprobs = 3; });
  add([](SamplingParams& p) { p.frequency_penalty = 1.5f, p.temperature = 1.0f, p.seed = 3; });
  add([](SamplingParams& p) { p.min_tokens = 7, p.stop_token_ids = {'c'}; });
  add([](SamplingParams& p) { p.stop = {"bca"}, p.prompt_logprobs = 1; });
  add([](SamplingParams& p) { p.temperature = 0.9f, p.seed = 5, p.n = 2; });
  const std::vector<int32_t> script = {'a', 'b', 'c', 'a', 'b', 'c', 'd'};
  const auto run = [&](bool async, bool plain) {
    const auto engine =
        make_engine(async_options(async), {.script = plain ? std::vector<int32_t>() : script});
    auto outputs = run_all(*engine, calls);
    expect_all_free(*engine);
    return outputs;
  };
  for (const bool plain : {false, true}) expect_same(run(true, plain), run(false, plain));
}

TEST(Engine, ManyOutputsEqualSingleRequestsWithTheirSeeds) {
  const auto engine = make_engine();
  Call call{.prompt = {1, 2, 3}};
  call.params.max_tokens = 12;
  call.params.seed = 77;
  call.params.n = 3;
  const std::vector<Output> together = run_all(*engine, {call})[0];
  call.params.n = 1;
  for (uint64_t i = 0; i < 3; ++i) {
    call.params.seed = 77 + i;
    EXPECT_EQ(run_one(*engine, call).ids, together[i].ids);
  }
  EXPECT_NE(together[0].ids, together[1].ids);
}

TEST(Engine, UnseededRequestsDiffer) {
  const auto engine = make_engine();
  Call call{.prompt = {1, 2, 3}};
  call.params.max_tokens = 12;
  EXPECT_NE(run_one(*engine, call).ids, run_one(*engine, call).ids);
}

TEST(Engine, EndsAtTheContextAndRefusesLongerPrompts) {
  EngineOptions options;
  options.max_model_len = 50;
  const auto engine = make_engine(options);
  SamplingParams params = greedy(1000);
  params.ignore_eos = true;
  const Output whole = run_one(*engine, {.prompt = std::vector<int32_t>(10, 3), .params = params});
  EXPECT_EQ(whole.ids.size(), 40U);
  EXPECT_EQ(whole.finish, FinishReason::kLength);
  EXPECT_EQ(whole.num_output_tokens, 40);
  EXPECT_EQ(run_one(*engine, {.prompt = std::vector<int32_t>(49, 3), .params = params}).ids.size(),
            1U);
  for (size_t length : {50U, 51U, 5000U}) {
    try {
      start(*engine, {.prompt = std::vector<int32_t>(length, 3), .params = params});
      ADD_FAILURE() << length << " tokens were accepted";
    } catch (const RequestError& e) {
      EXPECT_EQ(e.param(), "prompt");
      EXPECT_NE(std::string(e.what()).find("50"), std::string::npos);
      EXPECT_NE(std::string(e.what()).find(std::to_string(length)), std::string::npos);
    }
  }
}

TEST(Engine, RefusesAPromptLargerThanThePool) {
  EngineOptions options;
  options.num_gpu_blocks_override = 4;
  const auto engine = make_engine(options);
  EXPECT_EQ(engine->max_model_len(), 64);
  EXPECT_THROW(start(*engine, {.prompt = std::vector<int32_t>(100, 1), .params = greedy(4)}),
               RequestError);
  const Output filling = run_one(*engine, {.prompt = std::vector<int32_t>(60, 1), .params = [] {
                                             SamplingParams p = greedy(100);
                                             p.ignore_eos = true;
                                             return p;
                                           }()});
  EXPECT_EQ(filling.ids.size(), 4U);
  EXPECT_EQ(filling.finish, FinishReason::kLength);
}

TEST(Engine, RefusesBadRequests) {
  fake::Gate gate;  // the running request stays so
  const auto engine = make_engine({}, {.on_step = gate.step()});
  const auto refused = [&](const Call& call, const char* param) {
    try {
      start(*engine, call);
      ADD_FAILURE() << param << " was accepted";
    } catch (const RequestError& e) {
      EXPECT_EQ(e.param(), param);
      EXPECT_EQ(e.status(), 400);
    }
  };
  refused({.prompt = {}, .params = greedy(1)}, "prompt");
  refused({.prompt = {1, -1}, .params = greedy(1)}, "prompt");
  refused({.prompt = {1, fake::kVocab}, .params = greedy(1)}, "prompt");
  refused({.prompt = {1}, .params = greedy(0)}, "max_tokens");
  const auto running = start(*engine, {.prompt = {1}, .params = greedy(2000), .id = "same"});
  refused({.prompt = {1}, .params = greedy(1), .id = "same"}, "request_id");
  engine->abort("same");
  gate.open();
  EXPECT_TRUE(running->wait());
  EXPECT_EQ(run_one(*engine, {.prompt = {1}, .params = greedy(1), .id = "same"}).ids.size(), 1U);

  Engine textless(fake::load(), nullptr, EngineOptions());
  SamplingParams params = greedy(1);
  params.stop = {"x"};
  EXPECT_THROW(start(textless, {.prompt = {1}, .params = params}), RequestError);
  const Output ids_only = run_one(textless, {.prompt = {1}, .params = greedy(3)});
  EXPECT_EQ(ids_only.ids.size(), 3U);
  EXPECT_EQ(ids_only.text, "");
}

// The script is what the model says after a prompt of one token.
fake::ModelSettings says(const std::string& text) {
  fake::ModelSettings settings;
  for (char c : text) settings.script.push_back(static_cast<unsigned char>(c));
  settings.script.push_back(fake::kEos);
  return settings;
}

TEST(Engine, StopsOnEosAndShowsItOnlyWhenAsked) {
  const auto engine = make_engine({}, says("hi"));
  Call call{.prompt = {1}, .params = greedy(10)};
  Output out = run_one(*engine, call);
  EXPECT_EQ(out.text, "hi");
  EXPECT_EQ(out.ids, (std::vector<int32_t>{'h', 'i', fake::kEos}));
  EXPECT_EQ(out.finish, FinishReason::kStop);
  EXPECT_TRUE(std::holds_alternative<std::monostate>(out.stop_reason));
  call.params.include_stop_str_in_output = true;
  call.params.skip_special_tokens = false;
  EXPECT_EQ(run_one(*engine, call).text, "hi<eos>");
  call.params = greedy(7);
  call.params.ignore_eos = true;
  out = run_one(*engine, call);
  EXPECT_EQ(out.text, "hihih");
  EXPECT_EQ(out.finish, FinishReason::kLength);
  call.params = greedy(10);
  call.params.stop_token_ids = {'i'};
  out = run_one(*engine, call);
  EXPECT_EQ(out.text, "h");
  EXPECT_EQ(std::get<int32_t>(out.stop_reason), 'i');
  call.params.include_stop_str_in_output = true;
  EXPECT_EQ(run_one(*engine, call).text, "hi");
  call.params = greedy(10);
  call.params.min_tokens = 5;
  out = run_one(*engine, call);
  EXPECT_GE(out.ids.size(), 5U);
  EXPECT_EQ(std::count(out.ids.begin(), out.ids.begin() + 5, fake::kEos), 0);
}

TEST(Engine, CutsStopStringsWithoutLeakingThemIntoTheStream) {
  const std::string text = "a\xe2\x82\xac and \xf0\x9f\x98\x80 END tail";
  const auto engine = make_engine({}, says(text));
  // Every substring as the stop: the text is what comes before its first end.
  for (size_t begin = 0; begin < text.size(); ++begin) {
    for (size_t length : {1, 2, 4, 7}) {
      const std::string stop = text.substr(begin, length);
      Call call{.prompt = {1}, .params = greedy(60)};
      call.params.stop = {"never there", stop};
      for (bool include : {false, true}) {
        call.params.include_stop_str_in_output = include;
        const Output out = run_one(*engine, call);
        const size_t at = text.find(stop);
        ASSERT_EQ(out.text, text.substr(0, include ? at + stop.size() : at)) << stop;
        ASSERT_EQ(out.finish, FinishReason::kStop);
        ASSERT_EQ(std::get<std::string>(out.stop_reason), stop);
        ASSERT_EQ(out.num_finishes, 1);
        ASSERT_EQ(out.num_late, 0);
        std::string shown;
        for (const std::string& piece : out.pieces) {
          shown += piece;
          ASSERT_TRUE(text.starts_with(shown));
        }
      }
    }
  }
  expect_all_free(*engine);
}

TEST(Engine, GivesHeldBackTextWhenNoStopComes) {
  const auto engine = make_engine({}, says("abcST"));
  Call call{.prompt = {1}, .params = greedy(60)};
  call.params.stop = {"STOP"};
  EXPECT_EQ(run_one(*engine, call).text, "abcST");
  call.params.max_tokens = 4;
  const Output out = run_one(*engine, call);
  EXPECT_EQ(out.text, "abcS");
  EXPECT_EQ(out.finish, FinishReason::kLength);
}

TEST(Engine, BrokenCharactersAreReplacedAtTheEnd) {
  const auto engine = make_engine({}, says("x\xe2\x82\xac"));
  EXPECT_EQ(run_one(*engine, {.prompt = {1}, .params = greedy(3)}).text, "x\xef\xbf\xbd");
  EXPECT_EQ(run_one(*engine, {.prompt = {1}, .params = greedy(4)}).text, "x\xe2\x82\xac");
}

TEST(Engine, ConstrainsTokens) {
  const auto engine = make_engine();
  Call call{.prompt = {1, 2}, .params = greedy(8)};
  call.params.allowed_token_ids = {65, 66};
  for (int32_t id : run_one(*engine, call).ids) EXPECT_TRUE(id == 65 || id == 66);
  call.params.bad_words = {"A"};
  for (int32_t id : run_one(*engine, call).ids) EXPECT_EQ(id, 66);
  call.params = greedy(3);
  call.params.logit_bias = {{70, 100.0f}};
  EXPECT_EQ(run_one(*engine, call).ids, (std::vector<int32_t>{70, 70, 70}));
}

TEST(Engine, NeverCompletesABadWord) {
  const auto engine = make_engine({}, says("xabcabc"));
  Call call{.prompt = {1}, .params = greedy(8)};
  call.params.bad_words = {"abc"};
  const Output out = run_one(*engine, call);
  EXPECT_EQ(out.text.find("abc"), std::string::npos);
  EXPECT_TRUE(out.text.starts_with("xab"));
}

TEST(Engine, ReportsLogprobs) {
  const auto engine = make_engine();
  Call call{.prompt = {1, 2, 3, 4}, .params = greedy(3)};
  call.params.logprobs = 4;
  call.params.prompt_logprobs = 0;
  const Output out = run_one(*engine, call);
  ASSERT_EQ(out.logprobs.size(), 3U);
  for (size_t i = 0; i < 3; ++i) {
    ASSERT_EQ(out.logprobs[i].size(), 4U);  // the greedy token is among the four
    EXPECT_EQ(out.logprobs[i][0].token, out.ids[i]);
    EXPECT_EQ(out.logprobs[i][0].rank, 1);
    EXPECT_GE(out.logprobs[i][0].logprob, out.logprobs[i][1].logprob);
    EXPECT_LE(out.logprobs[i][0].logprob, 0);
  }
  ASSERT_EQ(out.prompt_logprobs.size(), 4U);
  EXPECT_TRUE(out.prompt_logprobs[0].empty());
  EXPECT_EQ(out.prompt_logprobs[2].size(), 1U);
  EXPECT_EQ(out.prompt_logprobs[2][0].token, 3);
  EXPECT_GE(out.prompt_logprobs[2][0].rank, 1);

  call.prompt = {9};
  EXPECT_EQ(run_one(*engine, call).prompt_logprobs.size(), 1U);
}

TEST(Engine, SmallerPrioritiesRunFirst) {
  EngineOptions options;
  options.scheduling_policy = "priority";
  options.max_num_seqs = 1;
  std::mutex order_mutex;
  std::vector<int> order;
  fake::Gate gate;
  const auto engine = make_engine(options, {.on_step = gate.step()});
  std::vector<fake::CollectorPtr> all = {start(*engine, {.prompt = {1}, .params = greedy(1)})};
  std::atomic<int> left{3};
  for (int priority : {5, 9, -2}) {
    GenerationRequest request;
    request.id = std::to_string(priority);
    request.prompt = {1, 2};
    request.params = greedy(2);
    request.priority = priority;
    request.on_update = [&, priority](GenerationUpdate&& u) {
      if (u.finish_reason == FinishReason::kNone) return;
      std::lock_guard lock(order_mutex);
      order.push_back(priority);
      --left;
    };
    engine->submit(std::move(request));
  }
  gate.open();
  EXPECT_TRUE(fake::becomes_true([&] { return left == 0; }));
  EXPECT_EQ(order, (std::vector<int>{-2, 5, 9}));
}

TEST(Engine, RefusesWithAFullQueue) {
  EngineOptions options;
  options.max_num_seqs = 1;
  options.max_queued_requests = 2;
  fake::Gate gate;
  const auto engine = make_engine(options, {.on_step = gate.step()});
  std::vector<fake::CollectorPtr> accepted;
  for (int i = 0; i < 3; ++i)
    accepted.push_back(start(*engine, {.prompt = {1}, .params = greedy(2)}));
  try {
    start(*engine, {.prompt = {1}, .params = greedy(2)});
    ADD_FAILURE() << "a fourth request was accepted";
  } catch (const RequestError& e) {
    EXPECT_EQ(e.status(), 503);
    EXPECT_NE(std::string(e.what()).find("queue"), std::string::npos);
  }
  gate.open();
  for (const auto& c : accepted) EXPECT_TRUE(c->wait());
  EXPECT_EQ(run_one(*engine, {.prompt = {1}, .params = greedy(2)}).ids.size(), 2U);
}

class EngineMode : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Modes, EngineMode, ::testing::Bool(), [](const auto& info) {
  return std::string(info.param ? "async" : "sync");
});

TEST_P(EngineMode, SurvivesAFailingStep) {
  fake::ModelSettings settings;
  settings.poison = 250;
  const auto engine = make_engine(async_options(GetParam()), settings);
  std::mt19937 random(5);
  std::vector<Call> good;
  for (int i = 0; i < 6; ++i) {
    good.push_back({.prompt = {1, 2, 3, i}, .params = greedy(30)});
    good.back().params.logit_bias = {{250, -100.0f}};  // or it would poison itself
  }
  // Some good requests share the step with the poisoned one and end with it; later ones are not
  // touched.
  std::vector<fake::CollectorPtr> running;
  for (const Call& c : good) running.push_back(start(*engine, c));
  Call bad{.prompt = std::vector<int32_t>(40, 250), .params = greedy(4)};
  const Output failed = run_one(*engine, bad);
  EXPECT_EQ(failed.finish, FinishReason::kError);
  EXPECT_NE(failed.error.find("poisoned"), std::string::npos);
  for (const auto& c : running) EXPECT_TRUE(c->wait());
  expect_all_free(*engine);

  // Nothing of the failed step is found in the prefix cache.
  EXPECT_EQ(run_one(*engine, bad).num_cached_tokens, 0);
  EXPECT_TRUE(engine->healthy());
  const auto fresh = make_engine();
  expect_same(run_all(*engine, good), run_all(*fresh, good));
  for (int i = 0; i < 3; ++i) run_one(*engine, bad);
  std::string reason;
  EXPECT_TRUE(fake::becomes_true([&] { return !engine->healthy(); }));
  EXPECT_FALSE(engine->healthy(&reason));
  EXPECT_NE(reason.find("poisoned"), std::string::npos);
  EXPECT_EQ(run_one(*engine, good[0]).finish, FinishReason::kLength);
  EXPECT_TRUE(engine->healthy());
}

TEST_P(EngineMode, QueuedStepBehindAFailureRunsAgain) {
  // Request 1 fails in a step with a second one already launched that holds request 2 alone.
  fake::Gate gate;
  std::atomic<bool> broke = false;
  fake::ModelSettings settings;
  settings.on_step = [&](const Batch&) {
    gate.pass();
    if (!broke.exchange(true)) fail("the first step breaks");
  };
  const auto engine = make_engine(async_options(GetParam()), settings);
  const auto first = start(*engine, {.prompt = {1, 2, 3}, .params = greedy(1)});
  ASSERT_TRUE(fake::becomes_true([&] { return gate.num_arrived() == 1; }));
  const auto second = start(*engine, {.prompt = {4, 5, 6}, .params = greedy(10)});
  ASSERT_TRUE(fake::becomes_true([&] { return engine->stats().num_requests_running == 2; }));
  gate.open();
  ASSERT_TRUE(first->wait());
  ASSERT_TRUE(second->wait());
  EXPECT_EQ(first->outputs()[0].finish, FinishReason::kError);
  const auto fresh = make_engine();
  EXPECT_EQ(second->outputs()[0].ids,
            run_one(*fresh, {.prompt = {4, 5, 6}, .params = greedy(10)}).ids);
}

// A request is aborted, so its blocks are free and known to the prefix cache, when the step fails
// that was to write them.
TEST_P(EngineMode, FindsNothingOfAnAbortedRequestWhoseStepFailed) {
  fake::Gate gate;
  std::atomic<bool> broke = false;
  fake::ModelSettings settings;
  settings.on_step = [&](const Batch&) {
    gate.pass();
    if (!broke.exchange(true)) fail("the first step breaks");
  };
  const auto engine = make_engine(async_options(GetParam()), settings);
  const std::vector<int32_t> prompt(40, 9);
  const auto first = start(*engine, {.prompt = prompt, .params = greedy(1), .id = "first"});
  ASSERT_TRUE(fake::becomes_true([&] { return gate.num_arrived() == 1; }));
  engine->abort("first");
  ASSERT_TRUE(first->wait());
  gate.open();
  ASSERT_TRUE(fake::becomes_true([&] {
    return run_one(*engine, {.prompt = {1}, .params = greedy(1)}).finish == FinishReason::kLength;
  }));
  const Output second = run_one(*engine, {.prompt = prompt, .params = greedy(1)});
  EXPECT_EQ(second.finish, FinishReason::kLength) << second.error;
  EXPECT_EQ(second.num_cached_tokens, 0);
  expect_all_free(*engine);
}

// Thousands of tokens take tens of seconds: no test waits for their end.
fake::ModelSettings slow() {
  fake::ModelSettings settings;
  settings.on_step = [](const Batch&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  return settings;
}

TEST(Engine, AbortFreesBlocksAndEndsOnce) {
  const auto engine = make_engine({}, slow());
  SamplingParams params = greedy(3000);
  params.ignore_eos = true;
  const auto running = start(*engine, {.prompt = {1}, .params = params, .id = "a"});
  running->wait_for_tokens(3);
  engine->abort("a");
  engine->abort("unknown");
  ASSERT_TRUE(running->wait());
  const Output out = running->outputs()[0];
  EXPECT_EQ(out.finish, FinishReason::kAbort);
  EXPECT_EQ(out.num_finishes, 1);
  expect_all_free(*engine);
  EXPECT_EQ(engine->stats().finished[static_cast<size_t>(FinishReason::kAbort)], 1U);
}

TEST_P(EngineMode, AbortStormLeavesNothing) {
  EngineOptions options = async_options(GetParam());
  options.num_gpu_blocks_override = 64;
  options.block_size = 4;
  options.max_num_batched_tokens = 64;
  const auto engine = make_engine(options);
  constexpr int kThreads = 4;
  constexpr int kEach = 300;
  std::vector<std::vector<fake::CollectorPtr>> all(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < kEach; ++i) {
        Call call{.prompt = random_prompt(random, 1 + random() % 60), .params = greedy(100)};
        call.params.ignore_eos = true;
        call.params.n = i % 10 == 0 ? 3 : 1;
        call.id = std::to_string(t) + "/" + std::to_string(i);
        all[static_cast<size_t>(t)].push_back(start(*engine, call));
        if (random() % 3 > 0)
          std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
        engine->abort(call.id);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (const auto& list : all) {
    for (const auto& c : list) {
      ASSERT_TRUE(c->wait());
      for (const Output& o : c->outputs()) {
        EXPECT_EQ(o.num_finishes, 1);
        EXPECT_EQ(o.num_late, 0);
      }
    }
  }
  expect_all_free(*engine);
}

TEST(Engine, TakesTwentyThousandQueuedRequests) {
  const auto engine = make_engine();
  std::vector<fake::CollectorPtr> all;
  for (int i = 0; i < 20000; ++i)
    all.push_back(start(*engine, {.prompt = {i % 256, i / 256}, .params = greedy(2)}));
  for (const auto& c : all) ASSERT_TRUE(c->wait());
  EXPECT_EQ(all[19999]->outputs()[0].finish, FinishReason::kLength);
  expect_all_free(*engine);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.generation_tokens, stats.request_generation_tokens.sum);
  EXPECT_EQ(stats.e2e_latency.total, 20000U);
  EXPECT_EQ(stats.prompt_tokens, 40000U);
  EXPECT_EQ(stats.time_to_first_token.total, 20000U);
}

TEST(Engine, DrainRefusesNewRequestsAndWaits) {
  const auto engine = make_engine();
  const auto running = start(*engine, {.prompt = {1}, .params = greedy(200)});
  engine->drain(60000);
  EXPECT_NE(running->outputs()[0].finish, FinishReason::kAbort);
  try {
    start(*engine, {.prompt = {1}, .params = greedy(1)});
    ADD_FAILURE() << "a request was accepted while draining";
  } catch (const RequestError& e) {
    EXPECT_EQ(e.status(), 503);
  }
}

TEST(Engine, DrainAbortsAfterTheTimeout) {
  const auto engine = make_engine({}, slow());
  SamplingParams params = greedy(4000);
  params.ignore_eos = true;
  const auto running = start(*engine, {.prompt = {1}, .params = params});
  engine->drain(30);
  EXPECT_EQ(running->outputs()[0].finish, FinishReason::kAbort);
}

TEST(Engine, DestructionEndsWhatRuns) {
  SamplingParams params = greedy(4000);
  params.ignore_eos = true;
  fake::CollectorPtr running;
  {
    const auto engine = make_engine({}, slow());
    running = start(*engine, {.prompt = {1}, .params = params});
    running->wait_for_tokens(2);
  }
  EXPECT_EQ(running->outputs()[0].finish, FinishReason::kAbort);
}

TEST(Engine, UsesNoCpuWhenIdle) {
  const auto engine = make_engine();
  run_one(*engine, {.prompt = {1, 2}, .params = greedy(5)});
  const auto cpu_ns = [] {
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * int64_t{1000000000} + t.tv_nsec;
  };
  // On a busy machine the last request's threads may go to sleep late; what polls shows in every
  // stretch of time.
  int64_t least = INT64_MAX;
  for (int i = 0; i < 5; ++i) {
    const int64_t before = cpu_ns();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    least = std::min(least, cpu_ns() - before);
  }
  EXPECT_LT(least, 400'000);  // 0.2%
}

TEST(Engine, StatsAddUp) {
  const auto engine = make_engine();
  SamplingParams params = greedy(5);
  params.ignore_eos = true;
  run_all(*engine,
          std::vector<Call>(4, Call{.prompt = std::vector<int32_t>(20, 1), .params = params}));
  expect_all_free(*engine);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.generation_tokens, 20U);
  EXPECT_EQ(stats.prompt_tokens, 80U);
  EXPECT_EQ(stats.prefix_cache_queries, 80U);
  EXPECT_EQ(stats.prefix_cache_hits, 48U);
  EXPECT_EQ(stats.finished[static_cast<size_t>(FinishReason::kLength)], 4U);
  EXPECT_EQ(stats.inter_token_latency.total, 16U);
  EXPECT_EQ(stats.queue_time.total, 4U);
  EXPECT_EQ(stats.decode_time.total, 4U);
}

}  // namespace
}  // namespace reft
