// Every folder of tests/golden through the whole engine: the tokens of transformers, and equal
// outputs however the requests are scheduled.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/log.h"
#include "engine/engine_fake.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using fake::Call;
using fake::greedy;
using fake::Output;
using fake::run_all;

const fs::path kGolden = fs::path(REFT_SOURCE_DIR) / "tests" / "golden";

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& folder : fs::directory_iterator(kGolden)) {
    if (fs::exists(folder.path() / "config.json")) names.push_back(folder.path().filename());
  }
  std::ranges::sort(names);
  return names;
}

std::unique_ptr<Engine> make_engine(const std::string& name, EngineOptions options) {
  set_log_level(LogLevel::kOff);
  if (options.num_gpu_blocks_override == 0) options.kv_cache_memory_bytes = 8 << 20;
  // On the CPU, or with REFT_TEST_DEVICE=cuda on the first GPU, decode graphs included.
  const char* place = std::getenv("REFT_TEST_DEVICE");
  const bool cuda = place != nullptr && std::string_view(place) == "cuda";
  const Device device = cuda ? Device{DeviceType::kCuda, 0} : kCpuDevice;
  LoadedModel model =
      load_model((kGolden / name).string(), {.device = device, .dtype = "float32", .quiet = true});
  return std::make_unique<Engine>(std::move(model), nullptr, std::move(options));
}

std::vector<int32_t> read_ids(const std::string& name, const char* key) {
  return open_safetensors((kGolden / name / "golden.safetensors").string())
      ->read(key)
      .to_vector<int32_t>();
}

// The golden prompt, parts of it, and variants: greedy and seeded, with logprobs of both kinds.
std::vector<Call> calls_of(const std::string& name) {
  const std::vector<int32_t> ids = read_ids(name, "input_ids");
  const auto num_greedy = static_cast<int64_t>(read_ids(name, "greedy_ids").size());
  std::vector<Call> calls;
  for (int i = 0; i < 6; ++i) {
    Call call{.prompt = ids, .params = greedy(num_greedy)};
    call.params.ignore_eos = true;
    if (i > 0) call.prompt.resize(ids.size() - static_cast<size_t>(2 * i));
    if (i % 2 == 1) {
      call.params.temperature = 0.8f;
      call.params.seed = static_cast<uint64_t>(i);
    }
    if (i % 3 == 0) call.params.logprobs = 2;
    if (i == 4) call.params.prompt_logprobs = 1;
    if (i == 5) call.params.n = 2;
    calls.push_back(std::move(call));
  }
  return calls;
}

void expect_near(const std::vector<TokenLogprobs>& a, const std::vector<TokenLogprobs>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].size(), b[i].size());
    for (size_t j = 0; j < a[i].size(); ++j) {
      EXPECT_EQ(a[i][j].token, b[i][j].token);
      EXPECT_NEAR(a[i][j].logprob, b[i][j].logprob, 1e-4);
    }
  }
}

void expect_same(const std::vector<std::vector<Output>>& a,
                 const std::vector<std::vector<Output>>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j) {
      EXPECT_EQ(a[i][j].ids, b[i][j].ids) << "request " << i << " output " << j;
      EXPECT_EQ(a[i][j].finish, b[i][j].finish);
      expect_near(a[i][j].logprobs, b[i][j].logprobs);
      expect_near(a[i][j].prompt_logprobs, b[i][j].prompt_logprobs);
    }
  }
}

class EngineGolden : public testing::TestWithParam<std::string> {};

TEST_P(EngineGolden, EqualTokensHoweverScheduled) {
  const std::string& name = GetParam();
  const std::vector<Call> calls = calls_of(name);

  EngineOptions alone;
  alone.enable_prefix_caching = false;
  const auto reference = make_engine(name, alone);
  std::vector<std::vector<Output>> expected;
  for (const Call& call : calls) expected.push_back(run_all(*reference, {call})[0]);
  EXPECT_EQ(expected[0][0].ids, read_ids(name, "greedy_ids"));

  struct Config {
    const char* what;
    std::function<void(EngineOptions&)> change;
  };
  const std::vector<Config> configs = {
      {"batch and cached prefixes", [](EngineOptions&) {}},
      {"batch without a prefix cache", [](EngineOptions& o) { o.enable_prefix_caching = false; }},
      {"chunks", [](EngineOptions& o) { o.max_num_batched_tokens = 7; }},
      {"steps one by one", [](EngineOptions& o) { o.async_scheduling = false; }},
      {"steps queued ahead", [](EngineOptions& o) { o.async_scheduling = true; }},
      {"no recorded steps", [](EngineOptions& o) { o.enforce_eager = true; }},
      {"blocks of 1 token", [](EngineOptions& o) { o.block_size = 1; }},
      {"blocks of 5 tokens", [](EngineOptions& o) { o.block_size = 5; }},
      {"blocks of 64 tokens", [](EngineOptions& o) { o.block_size = 64; }},
      {"preemption",
       [&](EngineOptions& o) {
         o.block_size = 4;
         o.num_gpu_blocks_override =
             static_cast<int64_t>(calls[0].prompt.size() + expected[0][0].ids.size()) / 4 + 12;
         o.enable_prefix_caching = false;
       }},
  };
  for (const Config& config : configs) {
    SCOPED_TRACE(config.what);
    EngineOptions options;
    config.change(options);
    const auto engine = make_engine(name, options);
    expect_same(run_all(*engine, calls), expected);
    expect_same(run_all(*engine, calls), expected);
    EXPECT_EQ(engine->stats().num_preemptions > 0, options.num_gpu_blocks_override > 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, EngineGolden, testing::ValuesIn(golden_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace reft
