#include "ops/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "backends/cpu/simd.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

// A thread's working memory, kept between calls.
float* scratch(int64_t floats) {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<float, Free> memory;
  thread_local int64_t size = 0;
  if (floats > size) {
    const auto bytes = static_cast<size_t>((floats * 4 + 63) / 64 * 64);
    memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    check(memory != nullptr, "out of memory: {} bytes of attention scratch", bytes);
    size = floats;
  }
  return memory.get();
}

const float* optional_data(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }

void store_row(Tensor& cache, int64_t at, const float* x, int64_t n) {
  std::byte* to = cache.raw() + at * row_bytes(cache.dtype(), 1);
  simd_kernels().convert(to, cache.dtype(), x, n);
}

void check_tokens(const Tensor& positions, const Tensor& slots, int64_t table_rows,
                  int64_t num_slots) {
  const int32_t* position = positions.data<int32_t>();
  const int32_t* slot = slots.data<int32_t>();
  for (int64_t t = 0; t < positions.size(0); ++t) {
    check(table_rows < 0 || (position[t] >= 0 && position[t] < table_rows),
          "qk_norm_rope_cache: position {} is outside a rotary table of {}", position[t],
          table_rows);
    check(slot[t] < num_slots, "qk_norm_rope_cache: slot {} is outside a cache of {}", slot[t],
          num_slots);
  }
}

void qk_norm_rope_cache_cpu(Tensor& q, const Tensor& qkv, const Tensor& positions,
                            const Tensor& slots, PagedKv& kv, const QkNormRopeArgs& args) {
  const auto& simd = simd_kernels();
  const int64_t heads = q.size(1), dims = q.size(2);
  const int64_t kv_heads = kv.k.size(1), page = kv.k.size(2);
  const bool rotates = args.cos_sin.defined() && args.cos_sin.size(1) > 0;
  check_tokens(positions, slots, rotates ? args.cos_sin.size(0) : -1, kv.k.size(0) * page);
  const HeadRule rule{.eps = args.eps,
                      .weight_offset = args.kind == NormKind::kOnePlus ? 1.0f : 0.0f,
                      .rotary = rotates ? args.cos_sin.size(1) : 0,
                      .interleaved = args.interleaved};
  const float* table = rotates ? args.cos_sin.data<float>() : nullptr;
  const float* q_weight = optional_data(args.q_weight);
  const float* k_weight = optional_data(args.k_weight);
  const int32_t* position = positions.data<int32_t>();
  const int32_t* slot = slots.data<int32_t>();
  const float* input = qkv.data<float>();
  float* output = q.data<float>();
  const int64_t grain = 8192 / qkv.size(1) + 1;
  compute_pool().parallel_for(q.size(0), grain, [&](int64_t begin, int64_t end) {
    float* key = scratch(dims);
    for (int64_t t = begin; t < end; ++t) {
      const float* in = input + t * qkv.stride(0);
      HeadRule of_token = rule;
      of_token.cos_sin = rotates ? table + position[t] * rule.rotary : nullptr;
      of_token.weight = q_weight;
      for (int64_t h = 0; h < heads; ++h) {
        simd.norm_rope(output + (t * heads + h) * dims, in + h * dims, dims, of_token);
      }
      if (slot[t] < 0) continue;
      of_token.weight = k_weight;
      const int64_t block = slot[t] / page, offset = slot[t] % page;
      for (int64_t h = 0; h < kv_heads; ++h) {
        const int64_t at = ((block * kv_heads + h) * page + offset) * dims;
        simd.norm_rope(key, in + (heads + h) * dims, dims, of_token);
        store_row(kv.k, at, key, dims);
        store_row(kv.v, at, in + (heads + kv_heads + h) * dims, dims);
      }
    }
  });
}

// One token's keys are cut at multiples of this, whatever the batch and the threads: results stay
// the same.
constexpr int64_t kSpanKeys = 256;

// A piece of work: a tile of rows of a sequence with several tokens, or a span of keys of one with
// one token.
struct Piece {
  int64_t sequence, kv_head;
  int64_t begin, end;
  int64_t partial;  // −1: the result goes straight out
};

// Spans [first, first + count) of partial results that make one result.
struct Merge {
  int64_t sequence, kv_head;
  int64_t first, count;
};

class PagedAttention {
 public:
  PagedAttention(Tensor& out, const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
                 const AttentionArgs& args)
      : kv_(kv),
        batch_(batch),
        args_(args),
        tokens_(q.size(0)),
        heads_(q.size(1)),
        dims_(q.size(2)),
        kv_heads_(kv.k.size(1)),
        page_(kv.k.size(2)),
        group_(heads_ / kv_heads_),
        q_(q.data<float>()),
        out_(out.data<float>()),
        start_(batch.query_start.data<int32_t>()),
        context_(batch.context_len.data<int32_t>()) {}

  void run() {
    plan();
    if (num_partials_ > 0) {
      partials_ = Tensor::empty({num_partials_, group_ * (dims_ + 2)}, DType::kF32);
      partial_data_ = partials_.data<float>();
    }
    const auto pieces = static_cast<int64_t>(pieces_.size());
    // Below about 10 us of work, handing it out costs more than it gains.
    if (work_ < 200'000) {
      for (int64_t i = 0; i < pieces; ++i) do_piece(pieces_[static_cast<size_t>(i)]);
    } else {
      std::atomic<int64_t> next{0};
      compute_pool().run([&](int, int) {
        for (int64_t i = next++; i < pieces; i = next++) do_piece(pieces_[static_cast<size_t>(i)]);
      });
    }
    for (const Merge& merge : merges_) do_merge(merge);
  }

 private:
  // Checks the indices and cuts the work; the longest pieces come first.
  void plan() {
    check(start_[0] == 0, "paged_attention: query_start begins with {}, not 0", start_[0]);
    const int64_t sequences = batch_.context_len.size(0);
    for (int64_t b = 0; b < sequences; ++b) {
      const int64_t queries = start_[b + 1] - start_[b], context = context_[b];
      check(queries >= 0 && start_[b + 1] <= tokens_,
            "paged_attention: sequence {} has tokens {} to {} of {}", b, start_[b], start_[b + 1],
            tokens_);
      if (queries == 0) continue;
      check_sequence(b, queries, context);
      work_ += queries * context * heads_ * dims_;
      if (queries > 1) {
        const int64_t rows = queries * group_;
        for (int64_t h = 0; h < kv_heads_; ++h) {
          for (int64_t row = 0; row < rows; row += kTileRows) {
            pieces_.push_back({b, h, row, std::min(rows, row + kTileRows), -1});
          }
        }
      } else {
        plan_token(b, first_key(context - 1), context);
      }
    }
    std::ranges::stable_sort(pieces_,
                             [&](const Piece& a, const Piece& b) { return cost(a) > cost(b); });
    std::fill(out_ + start_[sequences] * heads_ * dims_, out_ + tokens_ * heads_ * dims_, 0.0f);
  }

  void plan_token(int64_t b, int64_t first, int64_t context) {
    const int64_t spans = (context - 1) / kSpanKeys - first / kSpanKeys + 1;
    for (int64_t h = 0; h < kv_heads_; ++h) {
      if (spans > 1) merges_.push_back({b, h, num_partials_, spans});
      for (int64_t key = first; key < context;) {
        const int64_t end = std::min(context, (key / kSpanKeys + 1) * kSpanKeys);
        pieces_.push_back({b, h, key, end, spans > 1 ? num_partials_++ : -1});
        key = end;
      }
    }
  }

  void check_sequence(int64_t b, int64_t queries, int64_t context) const {
    const int64_t max_blocks = batch_.block_table.size(1);
    check(context >= queries && context <= max_blocks * page_,
          "paged_attention: sequence {} has {} keys for {} query tokens and {} blocks of {}", b,
          context, queries, max_blocks, page_);
    const int32_t* blocks = blocks_of(b);
    for (int64_t i = first_key(context - queries) / page_; i <= (context - 1) / page_; ++i) {
      check(blocks[i] >= 0 && blocks[i] < kv_.k.size(0),
            "paged_attention: block {} of sequence {} is {}, outside a cache of {}", i, b,
            blocks[i], kv_.k.size(0));
    }
  }

  bool is_span(const Piece& piece) const {
    return start_[piece.sequence + 1] - start_[piece.sequence] == 1;
  }

  int64_t cost(const Piece& piece) const {
    if (is_span(piece)) return (piece.end - piece.begin) * group_;
    const int64_t queries = start_[piece.sequence + 1] - start_[piece.sequence];
    const int64_t last = context_[piece.sequence] - queries + (piece.end - 1) / group_;
    return (last + 1 - first_key(last)) * (piece.end - piece.begin);
  }

  // First key that a query at key index `last` sees.
  int64_t first_key(int64_t last) const {
    return args_.window > 0 ? std::max<int64_t>(0, last - args_.window + 1) : 0;
  }
  const int32_t* blocks_of(int64_t b) const {
    return batch_.block_table.data<int32_t>() + b * batch_.block_table.size(1);
  }
  int64_t offset_of(int64_t b, int64_t kv_head) const {
    return (start_[b] * heads_ + kv_head * group_) * dims_;
  }
  KvRows rows_of(int64_t b, int64_t kv_head) const {
    return {kv_.k.raw(), kv_.v.raw(), kv_.k.dtype(), blocks_of(b),
            kv_heads_,   kv_head,     page_,         dims_};
  }
  const float* sinks_of(int64_t kv_head) const {
    return args_.sinks.defined() ? args_.sinks.data<float>() + kv_head * group_ : nullptr;
  }

  void do_piece(const Piece& piece) {
    const int64_t b = piece.sequence, at = offset_of(b, piece.kv_head);
    const ScoreRule rule{args_.scale, args_.soft_cap, sinks_of(piece.kv_head)};
    const auto& simd = simd_kernels();
    if (!is_span(piece)) {
      const int64_t first = context_[b] - (start_[b + 1] - start_[b]);
      const AttentionTile tile{.kv = rows_of(b, piece.kv_head),
                               .rule = rule,
                               .q = q_ + at,
                               .out = out_ + at,
                               .q_stride = heads_ * dims_,
                               .out_stride = heads_ * dims_,
                               .group = group_,
                               .row_begin = piece.begin,
                               .row_end = piece.end,
                               .first_key = first,
                               .window = args_.window};
      return simd.attend_tile(tile, scratch(simd.tile_scratch(dims_)));
    }
    float* memory = scratch(simd.span_scratch(group_, dims_) + 2 * group_);
    float* own = memory + simd.span_scratch(group_, dims_);
    AttentionSpan span{rows_of(b, piece.kv_head),
                       rule,
                       q_ + at,
                       out_ + at,
                       own,
                       own + group_,
                       group_,
                       piece.begin,
                       piece.end};
    if (piece.partial >= 0) {
      span.out = partial_data_ + piece.partial * group_ * (dims_ + 2);
      span.top = span.out + group_ * dims_;
      span.sum = span.top + group_;
    }
    simd.attend_span(span, memory);
    if (piece.partial >= 0) return;
    for (int64_t g = 0; g < group_; ++g) {
      const float scale = factor(rule.sinks, g, span.top[g], span.sum[g]);
      for (int64_t d = 0; d < dims_; ++d) span.out[g * dims_ + d] *= scale;
    }
  }

  // 1 / (sum + exp(sink − top)).
  static float factor(const float* sinks, int64_t g, float top, float sum) {
    return 1.0f / (sinks ? sum + std::exp(sinks[g] - top) : sum);
  }

  void do_merge(const Merge& merge) {
    const int64_t size = group_ * (dims_ + 2);
    const float* parts = partial_data_ + merge.first * size;
    const float* sinks = sinks_of(merge.kv_head);
    float* out = out_ + offset_of(merge.sequence, merge.kv_head);
    for (int64_t g = 0; g < group_; ++g) {
      const auto top_of = [&](int64_t i) { return parts[i * size + group_ * dims_ + g]; };
      float top = top_of(0), sum = 0;
      for (int64_t i = 1; i < merge.count; ++i) top = std::max(top, top_of(i));
      float* row = out + g * dims_;
      std::fill(row, row + dims_, 0.0f);
      for (int64_t i = 0; i < merge.count; ++i) {
        const float weight = std::exp(top_of(i) - top);
        const float* part = parts + i * size + g * dims_;
        for (int64_t d = 0; d < dims_; ++d) row[d] += weight * part[d];
        sum += weight * parts[i * size + group_ * (dims_ + 1) + g];
      }
      const float scale = factor(sinks, g, top, sum);
      for (int64_t d = 0; d < dims_; ++d) row[d] *= scale;
    }
  }

  const PagedKv& kv_;
  const AttentionBatch& batch_;
  const AttentionArgs& args_;
  const int64_t tokens_, heads_, dims_, kv_heads_, page_, group_;
  const float* const q_;
  float* const out_;
  const int32_t* const start_;
  const int32_t* const context_;
  std::vector<Piece> pieces_;
  std::vector<Merge> merges_;
  int64_t num_partials_ = 0;
  int64_t work_ = 0;
  Tensor partials_;
  float* partial_data_ = nullptr;
};

void paged_attention_cpu(Tensor& out, const Tensor& q, const PagedKv& kv,
                         const AttentionBatch& batch, const AttentionArgs& args) {
  PagedAttention(out, q, kv, batch, args).run();
}

const RegisterKernel qk_norm_rope_cache_entry(qk_norm_rope_cache_kernel, DeviceType::kCpu,
                                              &qk_norm_rope_cache_cpu);
const RegisterKernel paged_attention_entry(paged_attention_kernel, DeviceType::kCpu,
                                           &paged_attention_cpu);

}  // namespace
}  // namespace reft
