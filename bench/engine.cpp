// What the engine adds to the forward passes.
//
//   bench_engine                     microseconds per step with a model that takes no time, 1, 32
//   and 256 sequences bench_engine model.gguf [dtype]  decode: bare forward and sample calls
//   against the engine, 1 and 8 sequences
#include <algorithm>
#include <cstdio>
#include <numeric>

#include "base/log.h"
#include "engine/batch_builder.h"
#include "engine/engine_fake.h"
#include "tensor/gguf.h"
#include "text/tokenizer.h"

namespace reft {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds per step of `num_sequences` equal requests of `num_tokens` tokens, prefill left out.
double engine_step_seconds(Engine& engine, int num_sequences, int64_t num_tokens,
                           const std::vector<int32_t>& prompt) {
  std::mutex mutex;
  std::condition_variable signal;
  int ended = 0;
  int started = 0;
  std::chrono::steady_clock::time_point first;
  for (int i = 0; i < num_sequences; ++i) {
    GenerationRequest request;
    request.id = std::to_string(i);
    request.prompt = prompt;
    request.prompt.push_back(i);  // no two alike
    request.params.temperature = 0;
    request.params.max_tokens = num_tokens;
    request.params.ignore_eos = true;
    request.on_update = [&](GenerationUpdate&& update) {
      if (update.num_output_tokens > 1 && update.finish_reason == FinishReason::kNone) return;
      std::lock_guard lock(mutex);
      if (update.num_output_tokens == 1 && ++started == num_sequences)
        first = std::chrono::steady_clock::now();
      if (update.finish_reason != FinishReason::kNone && ++ended == num_sequences)
        signal.notify_all();
    };
    engine.submit(std::move(request));
  }
  std::unique_lock lock(mutex);
  signal.wait(lock, [&] { return ended == num_sequences; });
  return seconds_since(first) / static_cast<double>(num_tokens - 1);
}

void measure_overhead() {
  std::printf("%10s %12s %14s\n", "sequences", "us per step", "us per token");
  for (int n : {1, 32, 256}) {
    EngineOptions options;
    options.kv_cache_memory_bytes = 64 << 20;
    fake::ModelSettings settings;
    settings.instant = true;
    settings.max_position = 8192;
    Engine engine(fake::load(settings), std::make_shared<fake::ByteTokenizer>(), options);
    double best = 1e9;
    for (int round = 0; round < 3; ++round)
      best = std::min(best, engine_step_seconds(engine, n, 4000, {1, 2, 3}));
    std::printf("%10d %12.2f %14.3f\n", n, best * 1e6, best * 1e6 / n);
  }
}

// Seconds per step of bare forward and sample calls on `num_sequences` sequences.
double bare_step_seconds(LoadedModel& loaded, int num_sequences, int64_t num_tokens,
                         const std::vector<int32_t>& prompt) {
  const int64_t block_size = 16;
  const auto prompt_len = static_cast<int64_t>(prompt.size()) + 1;
  const int64_t width = (prompt_len + num_tokens + block_size - 1) / block_size;
  KvCache cache(loaded.model->cache_specs(), width * num_sequences, block_size,
                loaded.compute_dtype, kCpuDevice);
  std::vector<int32_t> last(static_cast<size_t>(num_sequences));
  std::chrono::steady_clock::time_point start;
  for (int64_t step = 0; step < num_tokens; ++step) {
    if (step == 1) start = std::chrono::steady_clock::now();
    StepPlan plan;
    plan.table_width = width;
    plan.query_start.push_back(0);
    for (int s = 0; s < num_sequences; ++s) {
      const int64_t first = step == 0 ? 0 : prompt_len + step - 1;
      const int64_t end = prompt_len + step;
      for (int64_t p = first; p < end; ++p) {
        const bool in_prompt = p < prompt_len - 1;
        plan.token_ids.push_back(in_prompt             ? prompt[static_cast<size_t>(p)]
                                 : p == prompt_len - 1 ? s
                                                       : last[static_cast<size_t>(s)]);
        plan.positions.push_back(static_cast<int32_t>(p));
        plan.slots.push_back(static_cast<int32_t>(s * width * block_size + p));
      }
      plan.query_start.push_back(static_cast<int32_t>(plan.token_ids.size()));
      plan.context_len.push_back(static_cast<int32_t>(end));
      for (int64_t b = 0; b < width; ++b)
        plan.block_table.push_back(static_cast<int32_t>(s * width + b));
      plan.logit_rows.push_back(static_cast<int32_t>(plan.token_ids.size()) - 1);
      plan.max_query_len = end - first;
      plan.max_context_len = end;
    }
    plan.num_tokens = static_cast<int64_t>(plan.token_ids.size());
    Tensor logits = loaded.model->forward(make_batch(plan, kCpuDevice), cache);
    SampleRow greedy;
    greedy.temperature = 0;
    const std::vector<SampleResult> sampled =
        sample(logits, std::vector<SampleRow>(last.size(), greedy));
    for (size_t s = 0; s < last.size(); ++s) last[s] = sampled[s].token;
  }
  return seconds_since(start) / static_cast<double>(num_tokens - 1);
}

void measure_model(const std::string& path, const std::string& dtype) {
  const LoadOptions load_options{.dtype = dtype, .quiet = true};
  std::vector<int32_t> prompt(64);
  std::iota(prompt.begin(), prompt.end(), 1000);
  LoadedModel bare = load_model(path, load_options);
  std::shared_ptr<const Tokenizer> tokenizer;
  if (path.ends_with(".gguf")) {
    tokenizer = load_tokenizer(*open_gguf(path));
  } else {
    tokenizer = load_tokenizer(path);
  }
  Engine engine(load_model(path, load_options), tokenizer, EngineOptions());
  std::printf("%10s %14s %14s %10s\n", "sequences", "bare tok/s", "engine tok/s", "added us");
  for (int n : {1, 8}) {
    double best_bare = 1e9;
    double best_engine = 1e9;
    for (int round = 0; round < 3; ++round) {
      best_bare = std::min(best_bare, bare_step_seconds(bare, n, 128, prompt));
      best_engine = std::min(best_engine, engine_step_seconds(engine, n, 128, prompt));
    }
    std::printf("%10d %14.1f %14.1f %10.1f\n", n, n / best_bare, n / best_engine,
                (best_engine - best_bare) * 1e6);
  }
}

}  // namespace
}  // namespace reft

int main(int argc, char** argv) {
  try {
    reft::set_log_level(reft::LogLevel::kWarning);
    if (argc > 1) {
      reft::measure_model(argv[1], argc > 2 ? argv[2] : "auto");
    } else {
      reft::measure_overhead();
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
