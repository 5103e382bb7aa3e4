// Times a model's forward pass alone, without engine, sampler or tokenizer: `bench_forward --model
// PATH
// [--threads 2] [--dtype auto] [--prompt 512] [--generate 128] [--repeat 3]`. One sequence: first
// the whole prompt, then greedy tokens one by one. Prints the load time and tokens per second of
// both, the best of the repeats.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "base/args.h"
#include "base/thread_pool.h"
#include "models/model.h"

namespace reft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int64_t kBlockSize = 16;

// Tokens [begin, begin + ids.size()) of the one sequence; logits of the last.
Batch make_batch(const std::vector<int32_t>& ids, int64_t begin, int64_t num_blocks) {
  const auto count = static_cast<int64_t>(ids.size());
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(begin));
  std::vector<int32_t> table(static_cast<size_t>(num_blocks));
  std::iota(table.begin(), table.end(), 0);
  Batch batch;
  batch.token_ids = Tensor::from_vector(ids);
  batch.positions = Tensor::from_vector(positions);
  batch.slots = batch.positions;
  batch.attention.query_start = Tensor::from_vector<int32_t>({0, static_cast<int32_t>(count)});
  batch.attention.context_len = Tensor::from_vector<int32_t>({static_cast<int32_t>(begin + count)});
  batch.attention.block_table = Tensor::from_vector(table, {1, num_blocks});
  batch.attention.max_query_len = count;
  batch.attention.max_context_len = begin + count;
  batch.logit_rows = Tensor::from_vector<int32_t>({static_cast<int32_t>(count - 1)});
  return batch;
}

int32_t argmax(const Tensor& logits) {
  const float* x = logits.data<float>();
  return static_cast<int32_t>(std::max_element(x, x + logits.numel()) - x);
}

int run(int argc, char** argv) {
  std::string model_path, dtype = "auto", load_format = "auto";
  int64_t threads = 0, prompt = 512, generate = 128, repeat = 3;
  ArgParser args("bench_forward", "Times a model's forward pass alone");
  args.add("model", &model_path, "folder or .gguf file");
  args.add("dtype", &dtype, "auto, float32, float16 or bfloat16");
  args.add("load_format", &load_format, "auto or dummy");
  args.add("threads", &threads, "compute threads; 0: all CPUs");
  args.add("prompt", &prompt, "prompt tokens");
  args.add("generate", &generate, "generated tokens");
  args.add("repeat", &repeat, "repeats, of which the best counts");
  if (!args.parse(std::vector<std::string>(argv + 1, argv + argc))) return 0;
  set_compute_threads(static_cast<int>(threads));

  const auto load_start = Clock::now();
  const LoadedModel loaded =
      load_model(model_path, {.dtype = dtype, .load_format = load_format, .quiet = true});
  fmt::print("loaded in {:.2f} s: {} parameters, {:.1f} MB, KV cache in {}\n",
             seconds_since(load_start), loaded.num_parameters,
             static_cast<double>(loaded.weight_bytes) / 1e6, dtype_name(loaded.compute_dtype));

  const int64_t num_blocks = (prompt + generate + kBlockSize - 1) / kBlockSize;
  KvCache cache(loaded.model->cache_specs(), num_blocks, kBlockSize, loaded.compute_dtype,
                kCpuDevice);
  std::vector<int32_t> ids(static_cast<size_t>(prompt));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(
        100 + i * 7919 % static_cast<size_t>(loaded.model->info().vocab_size - 100));
  }
  double best_prompt = 1e30, best_generate = 1e30;
  for (int64_t r = 0; r < repeat; ++r) {
    auto start = Clock::now();
    int32_t next = argmax(loaded.model->forward(make_batch(ids, 0, num_blocks), cache));
    best_prompt = std::min(best_prompt, seconds_since(start));
    start = Clock::now();
    for (int64_t i = 0; i < generate; ++i) {
      next = argmax(loaded.model->forward(make_batch({next}, prompt + i, num_blocks), cache));
    }
    best_generate = std::min(best_generate, seconds_since(start));
  }
  fmt::print("prompt {} tokens: {:.1f} tok/s; generation {} tokens: {:.1f} tok/s\n", prompt,
             static_cast<double>(prompt) / best_prompt, generate,
             static_cast<double>(generate) / best_generate);
  return 0;
}

}  // namespace
}  // namespace reft

int main(int argc, char** argv) {
  try {
    return reft::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_forward: {}\n", e.what());
    return 1;
  }
}
