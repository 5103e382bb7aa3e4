// Times `linear` over all weights of a decoder: `bench_linear [--model smollm2|qwen3] [--formats
// Q4_1,Q8_0,…]
// [--tokens 1,8,512]`. The weights of all layers are distinct, so that they come from memory as in
// a real step. Prints, per weight shape, the time of one call, bytes and operations per second and
// the share of a plain read loop; then the tokens per second that the linears alone allow.
#include <fmt/core.h>

#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/isa.h"
#include "base/thread_pool.h"
#include "ops/linear.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct LayerShape {
  const char* name;
  int64_t n, k;
};

struct ModelShape {
  int64_t layers;
  std::vector<LayerShape> parts;
  LayerShape head;
};

ModelShape model_shape(const std::string& name) {
  if (name == "smollm2") {
    return {30,
            {{"qkv", 960, 576}, {"o", 576, 576}, {"gate_up", 3072, 576}, {"down", 576, 1536}},
            {"lm_head", 49152, 576}};
  }
  if (name == "qwen3") {  // 0.6B
    return {28,
            {{"qkv", 4096, 1024}, {"o", 1024, 2048}, {"gate_up", 6144, 1024}, {"down", 1024, 3072}},
            {"lm_head", 151936, 1024}};
  }
  fail("unknown model '{}': expected smollm2 or qwen3", name);
}

// Random codes under scales of about 0.01.
Tensor random_weight(DType dtype, int64_t n, int64_t k) {
  static std::mt19937_64 random(1);
  Tensor t = Tensor::empty({n, k}, dtype);
  if (!is_block_format(dtype)) {
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t i = 0; i < n; ++i) {
      for (float& value : row) value = static_cast<float>(random() % 256) * 1e-3f - 0.128f;
      quantize_row(dtype, row.data(), t.raw() + i * row_bytes(dtype, k), k);
    }
    return t;
  }
  auto* words = reinterpret_cast<uint64_t*>(t.raw());
  // 16-bit floats read from these bytes are below 0.03 wherever they stand in a block.
  for (int64_t i = 0; i < t.nbytes() / 8; ++i) words[i] = random() & 0x27ff27ff27ff27ffull;
  return t;
}

// Bytes per second of both threads summing memory that no cache holds.
double read_rate() {
  const Tensor memory = Tensor::zeros({int64_t{512} << 20}, DType::kU8);
  const auto* words = reinterpret_cast<const uint64_t*>(memory.raw());
  const int64_t count = memory.nbytes() / 8;
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = Clock::now();
    compute_pool().parallel_for(count, count / (16 * compute_pool().num_threads()),
                                [&](int64_t begin, int64_t end) {
                                  uint64_t sums[8] = {};
                                  for (int64_t i = begin; i + 8 <= end; i += 8) {
                                    for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
                                  }
                                  volatile uint64_t sink = 0;
                                  for (uint64_t sum : sums) sink = sink + sum;
                                });
    best = std::max(best, static_cast<double>(memory.nbytes()) / seconds_since(start));
  }
  return best;
}

struct Timing {
  double seconds = 1e9;  // best of a whole model's calls of this shape
  double bytes = 0;
  double flops = 0;
};

class Bench {
 public:
  Bench(const ModelShape& model, DType dtype, DType compute) : model_(model) {
    std::vector<Weight> raw;
    for (int64_t layer = 0; layer < model.layers; ++layer) {
      for (const LayerShape& part : model.parts) {
        raw.push_back(Weight::from(random_weight(dtype, part.n, part.k)));
      }
    }
    raw.push_back(Weight::from(random_weight(dtype, model.head.n, model.head.k)));
    double bytes = 0;
    for (const Weight& weight : raw) bytes += static_cast<double>(weight.data.nbytes());
    const auto start = Clock::now();
    for (Weight& weight : raw) prepare_weight(weight, kCpuDevice, compute);
    fmt::print("{}: prepared {:.0f} MB in {:.0f} ms\n", dtype_name(dtype), bytes * 1e-6,
               seconds_since(start) * 1e3);
    weights_ = std::move(raw);
  }

  void run(int64_t tokens, double read) {
    const size_t kinds = model_.parts.size() + 1;
    std::vector<Timing> best(kinds);
    std::vector<Tensor> inputs;
    for (size_t kind = 0; kind < kinds; ++kind) inputs.push_back(input(tokens, shape(kind).k));
    double step = 1e9;
    const auto start = Clock::now();
    for (int repeat = 0; repeat < 3 || seconds_since(start) < 0.7; ++repeat) {
      std::vector<Timing> now(kinds);
      for (Timing& timing : now) timing.seconds = 0;
      const auto step_start = Clock::now();
      for (size_t i = 0; i < weights_.size(); ++i) {
        const size_t kind = i + 1 == weights_.size() ? kinds - 1 : i % (kinds - 1);
        // A prompt needs the logits of its last token only.
        const int64_t rows = kind == kinds - 1 && tokens > 16 ? 1 : tokens;
        const auto call = Clock::now();
        linear(inputs[kind].rows(0, rows), weights_[i]);
        Timing& timing = now[kind];
        timing.seconds += seconds_since(call);
        timing.bytes += static_cast<double>(weights_[i].packed->nbytes());
        timing.flops += 2.0 * static_cast<double>(rows * shape(kind).n * shape(kind).k);
      }
      step = std::min(step, seconds_since(step_start));
      for (size_t kind = 0; kind < kinds; ++kind) {
        if (now[kind].seconds < best[kind].seconds) best[kind] = now[kind];
      }
    }
    for (size_t kind = 0; kind < kinds; ++kind) {
      const Timing& t = best[kind];
      const double calls = kind + 1 == kinds ? 1 : static_cast<double>(model_.layers);
      fmt::print("  T={:<4} {:<8} {:>9.1f} us {:>7.1f} GB/s ({:>3.0f}%) {:>8.1f} GFLOP/s\n", tokens,
                 shape(kind).name, t.seconds / calls * 1e6, t.bytes / t.seconds * 1e-9,
                 100 * t.bytes / t.seconds / read, t.flops / t.seconds * 1e-9);
    }
    fmt::print("  T={:<4} all      {:>9.1f} us: {:.0f} tok/s\n", tokens, step * 1e6,
               static_cast<double>(tokens) / step);
  }

 private:
  const LayerShape& shape(size_t kind) const {
    return kind < model_.parts.size() ? model_.parts[kind] : model_.head;
  }
  static Tensor input(int64_t tokens, int64_t k) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    Tensor x = Tensor::empty({tokens, k}, DType::kF32);
    for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] = normal(random);
    return x;
  }

  ModelShape model_;
  std::vector<Weight> weights_;
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> out;
  size_t begin = 0;
  while (begin <= list.size()) {
    const size_t end = std::min(list.find(',', begin), list.size());
    if (end > begin) out.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

DType parse_format(const std::string& name) {
  for (int i = 0; i < static_cast<int>(DType::kCount); ++i) {
    if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
  }
  return parse_float_dtype(name);
}

void run(int argc, char** argv) {
  std::string model = "smollm2", formats = "Q4_1,Q8_0,bf16,fp16,fp32", tokens = "1,8,512";
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--model")
      model = argv[i + 1];
    else if (flag == "--formats")
      formats = argv[i + 1];
    else if (flag == "--tokens")
      tokens = argv[i + 1];
    else
      fail("unknown flag '{}'", flag);
  }
  const double read = read_rate();
  fmt::print("{} threads, {}, read {:.1f} GB/s\n", compute_pool().num_threads(),
             cpu_features_str(cpu_features()), read * 1e-9);
  for (const std::string& format : split(formats)) {
    const DType dtype = parse_format(format);
    const DType compute = is_float(dtype) ? dtype : DType::kBF16;
    Bench bench(model_shape(model), dtype, compute);
    for (const std::string& t : split(tokens)) bench.run(std::stoll(t), read);
  }
}

}  // namespace
}  // namespace reft

int main(int argc, char** argv) {
  try {
    reft::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
  }
}
