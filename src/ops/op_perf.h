// Times of the ops at the shapes of SmolLM2-135M and Qwen3-0.6B, one line each: µs, GB/s, GFLOP/s.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>

#include "base/function_ref.h"
#include "ops/activation.h"
#include "ops/attention.h"
#include "ops/graph.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/op_cases.h"
#include "ops/optimizer.h"
#include "ops/sampling.h"

namespace reft {

struct OpPerf {
  std::string filter;  // print lines that contain it

  bool wants(const std::string& name) const { return name.find(filter) != std::string::npos; }

  // `bytes` and `flops` of one call, as an ideal implementation would need them; f makes `calls`.
  void line(const std::string& name, double bytes, double flops, FunctionRef<void()> f,
            int calls = 1) const {
    if (!wants(name)) return;
    using Clock = std::chrono::steady_clock;
    double best = 1e9, spent = 0;
    for (int i = 0; spent < 0.15 || i < 5; ++i) {
      const auto begin = Clock::now();
      f();
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      best = std::min(best, seconds / calls);
      spent += seconds;
    }
    fmt::print("{:<52} {:>10.2f} us {:>8.1f} GB/s {:>8.1f} GFLOP/s\n", name, best * 1e6,
               bytes / best * 1e-9, flops / best * 1e-9);
  }
};

struct PerfModel {
  const char* name;
  int64_t hidden, ffn, heads, kv_heads, head_dim, vocab;
  bool qk_norm;
};

inline void perf_elementwise(const OpPerf& perf, const PerfModel& m, int64_t tokens) {
  const std::string at = fmt::format("{} T={}", m.name, tokens);
  const Tensor x = random_values({tokens, m.hidden}, 1), weight = random_values({m.hidden}, 2);
  Tensor residual = random_values({tokens, m.hidden}, 3);
  const double bytes = 4.0 * static_cast<double>(x.numel());
  perf.line("rms_norm " + at, 2 * bytes, 0, [&] { rms_norm(x, weight, 1e-6f); });
  perf.line("add_rms_norm " + at, 4 * bytes, 0, [&] { add_rms_norm(residual, x, weight, 1e-6f); });
  perf.line("add_into " + at, 3 * bytes, 0, [&] { add_into(residual, x); });
  const Tensor gate_up = random_values({tokens, 2 * m.ffn}, 4);
  perf.line("gated_activation silu " + at, 6.0 * static_cast<double>(gate_up.numel()), 0,
            [&] { gated_activation(gate_up, Activation::kSilu); });
  perf.line("gated_activation gelu_tanh " + at, 6.0 * static_cast<double>(gate_up.numel()), 0,
            [&] { gated_activation(gate_up, Activation::kGeluTanh); });
}

inline void perf_attention(const OpPerf& perf, const PerfModel& m, DType dtype, int64_t sequences,
                           int64_t queries, int64_t context) {
  const std::string at =
      fmt::format("{} {} B={} q={} ctx={}", m.name, dtype_name(dtype), sequences, queries, context);
  const int64_t page = 16, blocks = (context + page - 1) / page, tokens = sequences * queries;
  const Shape shape{sequences * blocks, m.kv_heads, page, m.head_dim};
  PagedKv kv{Tensor::zeros(shape, dtype), Tensor::zeros(shape, dtype)};
  std::vector<int32_t> table, start = {0}, slots, positions;
  for (int64_t b = 0; b < sequences; ++b) {
    for (int64_t i = 0; i < blocks; ++i)
      table.push_back(static_cast<int32_t>((b * blocks + i * 7919) % (sequences * blocks)));
    start.push_back(static_cast<int32_t>((b + 1) * queries));
    for (int64_t i = 0; i < queries; ++i) {
      slots.push_back(static_cast<int32_t>((b * blocks * page + i) % (sequences * blocks * page)));
      positions.push_back(static_cast<int32_t>(context - queries + i));
    }
  }
  AttentionBatch batch{Tensor::from_vector(start),
                       Tensor::from_vector(std::vector<int32_t>(static_cast<size_t>(sequences),
                                                                static_cast<int32_t>(context))),
                       Tensor::from_vector(table, {sequences, blocks}), queries, context};
  const Tensor qkv = random_values({tokens, (m.heads + 2 * m.kv_heads) * m.head_dim}, 1);
  QkNormRopeArgs rope{.cos_sin = random_values({context, m.head_dim}, 2)};
  if (m.qk_norm) rope.q_weight = rope.k_weight = random_values({m.head_dim}, 3);
  const Tensor slot_ids = Tensor::from_vector(slots), position_ids = Tensor::from_vector(positions);
  Tensor q;
  perf.line("qk_norm_rope_cache " + at, 8.0 * static_cast<double>(qkv.numel()), 0,
            [&] { q = qk_norm_rope_cache(qkv, position_ids, slot_ids, kv, rope); });
  q = random_values({tokens, m.heads, m.head_dim}, 5);
  const AttentionArgs args{.scale = 0.1f};
  const double keys = static_cast<double>(context) - static_cast<double>(queries - 1) / 2;
  perf.line(
      "paged_attention " + at,
      2.0 * static_cast<double>(row_bytes(dtype, m.kv_heads * m.head_dim) * context * sequences),
      4.0 * keys * static_cast<double>(tokens * m.heads * m.head_dim),
      [&] { paged_attention(q, kv, batch, args); });
}

// A decoding step's attention on the device of a card, bfloat16, in a graph of 28 layers with a
// cache each: the qkv product alone, then with the attention behind it, fused and in its parts. The
// difference is the attention. Bytes: keys and values.
inline void perf_decode(const OpPerf& perf, const PerfModel& m, Device device, int64_t sequences,
                        int64_t context) {
  const std::string at = fmt::format("{} B={} ctx={}", m.name, sequences, context);
  const std::string names[] = {"qkv " + at, "qkv + rope_attention " + at,
                               "qkv + rope, attention " + at};
  if (!std::ranges::any_of(names, [&](const std::string& name) { return perf.wants(name); })) {
    return;
  }
  constexpr int kLayers = 28;
  const int64_t page = 16, blocks = context / page, width = (m.heads + 2 * m.kv_heads) * m.head_dim;
  std::vector<int32_t> table, start, slots;
  for (int64_t b = 0; b < sequences; ++b) {
    for (int64_t i = 0; i < blocks; ++i)
      table.push_back(static_cast<int32_t>((b * blocks + i) * 7919 % (sequences * blocks)));
    slots.push_back(table.back() * static_cast<int32_t>(page) + static_cast<int32_t>(page - 1));
  }
  for (int64_t b = 0; b <= sequences; ++b) start.push_back(static_cast<int32_t>(b));
  const auto all = [&](int64_t value) {
    return Tensor::from_vector(
               std::vector<int32_t>(static_cast<size_t>(sequences), static_cast<int32_t>(value)))
        .to(device);
  };
  const AttentionBatch batch{Tensor::from_vector(start).to(device), all(context),
                             Tensor::from_vector(table, {sequences, blocks}).to(device), 1,
                             context};
  const Tensor positions = all(context - 1), slot_ids = Tensor::from_vector(slots).to(device);
  QkNormRopeArgs rope{.cos_sin = random_values({context, m.head_dim}, 2).to(device)};
  if (m.qk_norm) rope.q_weight = rope.k_weight = random_values({m.head_dim}, 3).to(device);
  const AttentionArgs args{.scale = 0.1f};
  const Shape shape{sequences * blocks, m.kv_heads, page, m.head_dim};
  std::vector<PagedKv> caches;
  for (int i = 0; i < kLayers; ++i) {
    caches.push_back(
        {Tensor::zeros(shape, DType::kBF16, device), Tensor::zeros(shape, DType::kBF16, device)});
  }
  const Tensor x = random_values({sequences, m.hidden}, 1).to(DType::kBF16).to(device);
  Weight w = Weight::from(random_values({width, m.hidden}, 4, 0.02f).to(DType::kBF16));
  prepare_weight(w, device, DType::kBF16);
  const auto run = [&](const std::string& name, FunctionRef<void(PagedKv&)> layer) {
    const auto step = [&] {
      for (PagedKv& kv : caches) layer(kv);
    };
    step();
    const auto graph = record_graph(device, step);
    const double bytes = 4.0 * static_cast<double>(sequences * context * m.kv_heads * m.head_dim);
    perf.line(
        name, bytes, 0,
        [&] {
          graph->replay();
          positions.to(kCpuDevice);  // waits for it
        },
        kLayers);
  };
  run(names[0], [&](PagedKv&) { linear(x, w); });
  run(names[1], [&](PagedKv& kv) {
    rope_attention(linear(x, w), positions, slot_ids, kv, rope, batch, args);
  });
  run(names[2], [&](PagedKv& kv) {
    const Tensor q = qk_norm_rope_cache(linear(x, w), positions, slot_ids, kv, rope);
    paged_attention(q, kv, batch, args);
  });
}

// Products of a decoding step with quantised weights on the device of a card: several copies of the
// weight, recorded in a graph, so that none stays in a cache. Bytes: of the weights as they are
// stored in the checkpoint. `data`: [N, K] floats, made at the first need.
inline void perf_quantized(const OpPerf& perf, Device device, int64_t n, int64_t k, DType dtype,
                           bool gated, Tensor& data) {
  const auto name_of = [&](int64_t tokens) {
    return fmt::format("linear {}{} N={} K={} T={}", dtype_name(dtype), gated ? " gated" : "", n, k,
                       tokens);
  };
  constexpr int64_t kTokens[] = {1, 4, 16, 32, 64, 256, 2048};
  if (std::ranges::none_of(kTokens, [&](int64_t t) { return perf.wants(name_of(t)); })) return;
  if (!data.defined()) data = random_values({n, k}, 1, 0.02f);
  const int64_t bytes = row_bytes(dtype, k) * n;
  const int copies = static_cast<int>(std::max<int64_t>(4, (int64_t{400} << 20) / bytes));
  std::vector<Weight> weights;
  const bool fp8 = dtype == DType::kF8E4M3;
  const Tensor stored = data.to(fp8 ? DType::kBF16 : dtype);
  for (int i = 0; i < copies; ++i) {
    Weight w = Weight::from(stored);
    if (fp8) quantize_weight(w, device);
    prepare_weight(w, device, DType::kBF16);
    weights.push_back(std::move(w));
  }
  for (const int64_t tokens : kTokens) {
    if (!perf.wants(name_of(tokens))) continue;
    const Tensor x = random_values({tokens, k}, 2).to(DType::kBF16).to(device);
    const auto step = [&] {
      for (const Weight& w : weights)
        gated ? gated_linear(x, w, {}, Activation::kSilu) : linear(x, w);
    };
    step();
    const auto graph = record_graph(device, step);
    perf.line(
        name_of(tokens), static_cast<double>(bytes), 2.0 * static_cast<double>(tokens * n * k),
        [&] {
          graph->replay();
          x.rows(0, 1).to(kCpuDevice);  // waits for it
        },
        copies);
  }
}

// The shapes of Qwen3-8B: qkv, output, gate and up, down.
inline void perf_quantized(const OpPerf& perf, Device device) {
  constexpr int64_t kShapes[][2] = {{6144, 4096}, {4096, 4096}, {24576, 4096}, {4096, 12288}};
  for (const auto& [n, k] : kShapes) {
    Tensor data;
    for (const DType dtype :
         {DType::kBF16, DType::kF8E4M3, DType::kQ4_0, DType::kQ4_1, DType::kQ8_0}) {
      perf_quantized(perf, device, n, k, dtype, n == 24576, data);
    }
  }
}

inline void perf_sampling(const OpPerf& perf, const PerfModel& m, Device device, int64_t rows) {
  const std::string at = fmt::format("{} R={} {}", m.name, rows, device_name(device));
  Tensor logits = random_values({rows, m.vocab}, 1, 3.0f).to(device);
  const double bytes = 4.0 * static_cast<double>(logits.numel());
  const auto run = [&](const char* name, const SampleRow& row) {
    const std::vector<SampleRow> all(static_cast<size_t>(rows), row);
    perf.line(fmt::format("sample {} {}", name, at), bytes, 0, [&] { sample(logits, all); });
  };
  run("greedy", {.temperature = 0});
  run("greedy, 5 logprobs", {.temperature = 0, .num_logprobs = 5});
  run("temperature", {.temperature = 0.8f});
  run("top_k 20 top_p 0.95", {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f});
  run("top_p 0.9", {.temperature = 1.0f, .top_p = 0.9f});
  run("min_p 0.05", {.min_p = 0.05f});
  const std::vector<int32_t> ids(1000, 7);
  run("penalties, 1000 outputs", {.frequency_penalty = 0.1f, .output_ids = &ids});
  const std::vector<int32_t> targets(static_cast<size_t>(rows), 5);
  perf.line("score top 5 " + at, bytes, 0, [&] { score(logits, targets, 5); });
}

// The update steps of one matrix of the feed-forward part.
inline void perf_optimizer(const OpPerf& perf, const PerfModel& m) {
  const Tensor grad = random_values({m.ffn, m.hidden}, 1);
  const auto zeros = [&](DType dtype) { return Tensor::zeros(grad.shape(), dtype); };
  Tensor value = random_values({m.ffn, m.hidden}, 2), rounded = value.to(DType::kBF16), master;
  Tensor first = zeros(DType::kF32), second = zeros(DType::kF32);
  Tensor first16 = zeros(DType::kBF16), second16 = zeros(DType::kBF16);
  Adam8State state = Adam8State::zeros(value);
  const AdamWArgs args{.learning_rate = 1e-5};
  const auto n = static_cast<double>(grad.numel()), d = static_cast<double>(m.hidden);
  perf.line(fmt::format("adamw {}", m.name), 28 * n, 0,
            [&] { adamw(value, master, first, second, grad, args); });
  perf.line(fmt::format("adamw bfloat16 {}", m.name), 16 * n, 0,
            [&] { adamw(rounded, master, first16, second16, grad, args); });
  perf.line(fmt::format("adamw_8bit {}", m.name), 16 * n, 0,
            [&] { adamw_8bit(value, master, state, grad, args); });
  perf.line(fmt::format("square_sums {}", m.name), 4 * n, 0, [&] { global_norm({&grad, 1}); });
  perf.line(fmt::format("orthogonalize {}", m.name), 0, 5 * (4 * d * n + 2 * d * d * d),
            [&] { orthogonalize(first); });
}

inline void print_op_perf(const std::string& filter) {
  const OpPerf perf{filter};
  const PerfModel models[] = {{"smollm2", 576, 1536, 9, 3, 64, 49152, false},
                              {"qwen3-0.6b", 1024, 3072, 16, 8, 128, 151936, true}};
  for (const auto& m : models) {
    for (const int64_t tokens : {1, 8, 512}) perf_elementwise(perf, m, tokens);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      perf_attention(perf, m, dtype, 1, 1, 128);
      perf_attention(perf, m, dtype, 1, 1, 4096);
      perf_attention(perf, m, dtype, 8, 1, 1024);
      perf_attention(perf, m, dtype, 1, 512, 512);
      perf_attention(perf, m, dtype, 1, 2048, 4096);
    }
    for (const Device device : test_devices()) {
      if (!has_op_graphs(device)) continue;
      for (const int64_t sequences : {1, 32}) {
        for (const int64_t context : {512, 640, 4096})
          perf_decode(perf, m, device, sequences, context);
      }
    }
    for (const int64_t rows : {1, 8}) perf_sampling(perf, m, kCpuDevice, rows);
    for (const Device device : test_devices()) {
      if (device == kCpuDevice) continue;
      for (const int64_t rows : {1, 32, 256}) perf_sampling(perf, m, device, rows);
    }
    perf_optimizer(perf, m);
  }
  for (const Device device : test_devices()) {
    if (has_op_graphs(device)) perf_quantized(perf, device);
  }
}

}  // namespace reft
