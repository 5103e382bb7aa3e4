// reft bench latency and reft bench throughput: the engine without a server.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "base/json.h"
#include "base/log.h"
#include "base/progress.h"
#include "cli/bench_data.h"
#include "cli/command.h"
#include "cli/model_flags.h"

namespace reft {
namespace {

using Clock = std::chrono::steady_clock;

struct BatchTimes {
  double total_seconds = 0;
  std::vector<double> first_token_seconds;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
};

// Submits all requests at once and waits for the last.
BatchTimes run_batch(Engine& engine, const std::vector<BenchRequest>& requests, const char* label,
                     bool quiet) {
  std::mutex mutex;
  std::condition_variable signal;
  size_t left = requests.size();
  BatchTimes times;
  times.first_token_seconds.assign(requests.size(), 0);
  std::string error;
  ProgressBar bar(static_cast<int64_t>(requests.size()), label, false, quiet);
  const auto start = Clock::now();
  const auto seconds = [start] {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  for (size_t i = 0; i < requests.size(); ++i) {
    GenerationRequest request;
    request.id = fmt::format("bench-{}-{}", static_cast<const void*>(&times), i);
    request.prompt = requests[i].ids;
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = requests[i].output_len;
    request.on_update = [&, i](GenerationUpdate&& update) {
      std::lock_guard lock(mutex);
      if (times.first_token_seconds[i] == 0 && update.num_output_tokens > 0)
        times.first_token_seconds[i] = seconds();
      if (update.finish_reason == FinishReason::kNone) return;
      if (update.finish_reason == FinishReason::kError) error = update.error;
      times.prompt_tokens += update.num_prompt_tokens;
      times.output_tokens += update.num_output_tokens;
      bar.advance();
      if (--left == 0) signal.notify_one();
    };
    engine.submit(std::move(request));
  }
  std::unique_lock lock(mutex);
  signal.wait(lock, [&] { return left == 0; });
  times.total_seconds = seconds();
  check(error.empty(), "a request failed: {}", error);
  return times;
}

struct OfflineOptions {
  ModelFlags model;
  BenchData data;
  std::string output_json;

  void declare_data(ArgParser& parser) {
    parser.add("input_len", &data.input_len, "Prompt length in tokens.", {"random_input_len"});
    parser.add("output_len", &data.output_len, "Output length in tokens.", {"random_output_len"});
    parser.add("output_json", &output_json, "File to write the results to.");
  }

  void write(const Json& result) const {
    if (output_json.empty()) return;
    std::FILE* file = std::fopen(output_json.c_str(), "w");
    check(file != nullptr, "cannot write '{}'", output_json);
    std::fputs((result.dump(2) + "\n").c_str(), file);
    std::fclose(file);
  }
};

struct LatencyOptions : OfflineOptions {
  static constexpr const char* kName = "bench latency";
  static constexpr const char* kSummary =
      "time one batch from prompt to last token, without a server";
  static constexpr const char* kDescription = "Random token ids, greedy, end-of-sequence ignored.";

  int64_t batch_size = 8, num_iters = 5, num_iters_warmup = 1;

  void declare(ArgParser& parser) {
    model.declare_model(parser, false);
    model.declare_engine(parser);
    model.declare_seed(parser);
    parser.group("Benchmark");
    data.input_len = 32;
    declare_data(parser);
    parser.add("batch_size", &batch_size, "Sequences at once.");
    parser.add("num_iters", &num_iters, "Timed batches.");
    parser.add("num_iters_warmup", &num_iters_warmup, "Batches before them.");
    parser.example("reft bench latency --input-len 512 --output-len 128 --batch-size 1",
                   "The default model, alone:");
  }

  int execute(const ArgParser&) {
    check(batch_size > 0 && num_iters > 0 && num_iters_warmup >= 0,
          "batch size and iterations must be positive");
    set_log_level(LogLevel::kWarning);
    model.engine.enable_prefix_caching = false;
    ServingModel serving = model.load();
    data.num_prompts = batch_size;
    std::vector<double> totals, first, per_token;
    const auto requests = make_bench_requests(data, serving.tokenizer.get(),
                                              serving.loaded.model->info().vocab_size, 0);
    model.engine.seed = static_cast<uint64_t>(model.seed);
    Engine engine(std::move(serving.loaded), serving.tokenizer, model.engine);
    for (int64_t i = -num_iters_warmup; i < num_iters; ++i) {
      const BatchTimes times = run_batch(engine, requests, "", true);
      if (i < 0) continue;
      totals.push_back(times.total_seconds);
      for (double t : times.first_token_seconds) {
        first.push_back(t * 1e3);
        if (data.output_len > 1) {
          per_token.push_back((times.total_seconds - t) * 1e3 /
                              static_cast<double>(data.output_len - 1));
        }
      }
    }
    const Summary latency = summarize(totals), ttft = summarize(first), tpot = summarize(per_token);
    std::printf("Avg latency: %.4f seconds\n", latency.mean);
    for (double p : {10.0, 25.0, 50.0, 75.0, 90.0, 99.0}) {
      std::printf("%g%% percentile latency: %.4f seconds\n", p, latency.percentile(p));
    }
    std::printf("Median TTFT: %.2f ms (prompt %.1f tokens/s)\n", ttft.median,
                static_cast<double>(data.input_len * batch_size) / ttft.sorted.back() * 1e3);
    std::printf("Median TPOT: %.3f ms (%.1f tokens/s over %lld sequences)\n", tpot.median,
                tpot.median > 0 ? 1e3 / tpot.median * static_cast<double>(batch_size) : 0.0,
                static_cast<long long>(batch_size));
    write({{"avg_latency", latency.mean},
           {"latencies", totals},
           {"median_ttft_ms", ttft.median},
           {"median_tpot_ms", tpot.median},
           {"batch_size", batch_size},
           {"input_len", data.input_len},
           {"output_len", data.output_len}});
    return 0;
  }
};

struct ThroughputOptions : OfflineOptions {
  static constexpr const char* kName = "bench throughput";
  static constexpr const char* kSummary = "time many requests at once, without a server";
  static constexpr const char* kDescription =
      "Greedy, end-of-sequence ignored; all requests are there from the start.";

  void declare(ArgParser& parser) {
    model.declare_model(parser, false);
    model.declare_engine(parser);
    model.declare_seed(parser);
    parser.group("Benchmark");
    declare_data(parser);
    parser.add("dataset_name", &data.dataset, "Where prompts come from.", {"dataset"});
    parser.choices("dataset_name", {"random", "sharegpt"});
    parser.add("dataset_path", &data.dataset_path, "ShareGPT-style JSON file.");
    parser.add("num_prompts", &data.num_prompts, "Requests.");
    parser.add("random_range_ratio", &data.range_ratio, "Spread of the random lengths, 0 to 1.");
    parser.example("reft bench throughput --num-prompts 200 --input-len 256 --output-len 64",
                   "The default model:");
  }

  int execute(const ArgParser&) {
    set_log_level(LogLevel::kWarning);
    ServingModel serving = model.load();
    const int64_t limit = model.engine.max_model_len > 0
                              ? model.engine.max_model_len
                              : serving.loaded.model->info().max_position;
    const auto requests = make_bench_requests(data, serving.tokenizer.get(),
                                              serving.loaded.model->info().vocab_size, limit);
    model.engine.seed = static_cast<uint64_t>(model.seed);
    Engine engine(std::move(serving.loaded), serving.tokenizer, model.engine);
    const BatchTimes times = run_batch(engine, requests, "requests", false);
    const double n = static_cast<double>(requests.size());
    const double in = static_cast<double>(times.prompt_tokens),
                 out = static_cast<double>(times.output_tokens);
    std::printf("Throughput: %.2f requests/s, %.2f total tokens/s, %.2f output tokens/s\n",
                n / times.total_seconds, (in + out) / times.total_seconds,
                out / times.total_seconds);
    std::printf("Total num prompt tokens: %.0f\nTotal num output tokens: %.0f\nElapsed: %.2f s\n",
                in, out, times.total_seconds);
    write({{"elapsed_time", times.total_seconds},
           {"num_requests", requests.size()},
           {"prompt_tokens", in},
           {"output_tokens", out},
           {"requests_per_second", n / times.total_seconds},
           {"tokens_per_second", (in + out) / times.total_seconds}});
    return 0;
  }
};

}  // namespace

Command bench_latency_command() { return make_command<LatencyOptions>(); }
Command bench_throughput_command() { return make_command<ThroughputOptions>(); }

}  // namespace reft
