// Attention of a packed batch without a cache. Forward: the tiles of paged attention, with pages of
// one token that lie in qkv itself. Backward: five small matrix products for each block of queries.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "backends/cpu/gemm.h"
#include "backends/cpu/simd.h"
#include "base/thread_pool.h"
#include "ops/attention.h"

namespace reft {
namespace {

using cpu::Matrix;

const float* optional_data(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }

void check_positions(const Tensor& positions, const Tensor& table) {
  if (!table.defined() || table.size(1) == 0) return;
  const int32_t* position = positions.data<int32_t>();
  for (int64_t t = 0; t < positions.size(0); ++t) {
    check(position[t] >= 0 && position[t] < table.size(0),
          "qk_norm_rope: position {} is outside a rotary table of {}", position[t], table.size(0));
  }
}

// The rule of head h (q heads, then k heads) of a token at `position`.
HeadRule rule_of(const QkNormRopeArgs& args, const HeadCounts& heads, int64_t h, int32_t position) {
  const bool rotates = args.cos_sin.defined() && args.cos_sin.size(1) > 0;
  const int64_t rotary = rotates ? args.cos_sin.size(1) : 0;
  return {.weight = optional_data(h < heads.num_heads ? args.q_weight : args.k_weight),
          .eps = args.eps,
          .weight_offset = args.kind == NormKind::kOnePlus ? 1.0f : 0.0f,
          .cos_sin = rotates ? args.cos_sin.data<float>() + position * rotary : nullptr,
          .rotary = rotary,
          .interleaved = args.interleaved};
}

void qk_norm_rope_cpu(Tensor& out, const Tensor& qkv, const Tensor& positions,
                      const HeadCounts& heads, const QkNormRopeArgs& args) {
  check_positions(positions, args.cos_sin);
  const auto& simd = simd_kernels();
  const int64_t width = qkv.size(1), dims = heads.head_dim;
  const int64_t rotated = heads.num_heads + heads.num_kv_heads;
  compute_pool().parallel_for(qkv.size(0), 8192 / width + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* in = qkv.data<float>() + t * width;
      float* to = out.data<float>() + t * width;
      const int32_t position = positions.data<int32_t>()[t];
      for (int64_t h = 0; h < rotated; ++h)
        simd.norm_rope(to + h * dims, in + h * dims, dims, rule_of(args, heads, h, position));
      std::copy(in + rotated * dims, in + width, to + rotated * dims);
    }
  });
}

// Weights' gradients are summed over pieces of this many tokens, then over the pieces in order.
constexpr int64_t kPieceTokens = 64;

void qk_norm_rope_backward_cpu(const GradientSlot& dqkv, const GradientSlot& dq_weight,
                               const GradientSlot& dk_weight, const Tensor& dy, const Tensor& qkv,
                               const Tensor& positions, const HeadCounts& heads,
                               const QkNormRopeArgs& args) {
  const auto& simd = simd_kernels();
  const int64_t tokens = dy.size(0), width = dy.size(1), dims = heads.head_dim;
  const int64_t rotated = heads.num_heads + heads.num_kv_heads;
  const int64_t pieces = (tokens + kPieceTokens - 1) / kPieceTokens;
  const Tensor partial = Tensor::zeros({pieces, 2, dims}, DType::kF32);
  const float* x = optional_data(qkv);
  compute_pool().parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(dims));
    for (int64_t t = begin * kPieceTokens; t < std::min(tokens, end * kPieceTokens); ++t) {
      float* sums = partial.data<float>() + t / kPieceTokens * 2 * dims;
      const float* from = dy.data<float>() + t * dy.stride(0);
      float* to = dqkv ? dqkv.tensor.data<float>() + t * dqkv.tensor.stride(0) : nullptr;
      for (int64_t h = 0; h < rotated; ++h) {
        const bool is_query = h < heads.num_heads;
        float* dweight = is_query    ? (dq_weight ? sums : nullptr)
                         : dk_weight ? sums + dims
                                     : nullptr;
        simd.norm_rope_backward(to ? to + h * dims : nullptr, dqkv.accumulate, dweight,
                                from + h * dims, x ? x + t * width + h * dims : nullptr, dims,
                                rule_of(args, heads, h, positions.data<int32_t>()[t]),
                                scratch.data());
      }
      if (to == nullptr) continue;
      if (!dqkv.accumulate) std::fill(to + rotated * dims, to + width, 0.0f);
      simd.add(to + rotated * dims, from + rotated * dims, width - rotated * dims);
    }
  });
  for (const auto& [slot, at] : {std::pair(&dq_weight, 0), {&dk_weight, 1}}) {
    if (!*slot) continue;
    if (!slot->accumulate) slot->tensor.fill_zero();
    for (int64_t p = 0; p < pieces; ++p)
      simd.add(slot->tensor.data<float>(), partial.data<float>() + (2 * p + at) * dims, dims);
  }
}

// What both directions know of a batch.
class Packed {
 public:
  Packed(const char* op, const Tensor& qkv, const HeadCounts& heads, const AttentionBatch& batch,
         const AttentionArgs& args)
      : tokens_(qkv.size(0)),
        heads_(heads.num_heads),
        kv_heads_(heads.num_kv_heads),
        dims_(heads.head_dim),
        group_(heads_ / kv_heads_),
        width_(qkv.size(1)),
        args_(args),
        qkv_(qkv.data<float>()),
        sequences_(batch.query_start.size(0) - 1),
        start_(batch.query_start.data<int32_t>()) {
    check(start_[0] == 0, "{}: query_start begins with {}, not 0", op, start_[0]);
    for (int64_t b = 0; b < sequences_; ++b) {
      check(start_[b] <= start_[b + 1] && start_[b + 1] <= tokens_,
            "{}: sequence {} has tokens {} to {} of {}", op, b, start_[b], start_[b + 1], tokens_);
    }
  }

 protected:
  int64_t length(int64_t b) const { return start_[b + 1] - start_[b]; }
  ScoreRule rule_of(int64_t head) const {
    return {args_.scale, args_.soft_cap,
            args_.sinks.defined() ? args_.sinks.data<float>() + head : nullptr};
  }
  // First key that a query sees, both counted from the begin of the sequence.
  int64_t first_key(int64_t query) const {
    return args_.window > 0 ? std::max<int64_t>(0, query - args_.window + 1) : 0;
  }

  const int64_t tokens_, heads_, kv_heads_, dims_, group_, width_;
  const AttentionArgs& args_;
  const float* const qkv_;
  const int64_t sequences_;
  const int32_t* const start_;
};

class Forward : Packed {
 public:
  using Packed::Packed;

  void run(Tensor& out, const Tensor& lse) {
    struct Piece {
      int64_t sequence, kv_head, begin, end;
    };
    std::vector<Piece> pieces;
    for (int64_t b = 0; b < sequences_; ++b) {
      const int64_t rows = length(b) * group_;
      for (int64_t row = (rows - 1) / kTileRows * kTileRows; row >= 0; row -= kTileRows) {
        for (int64_t h = 0; h < kv_heads_ && rows > 0; ++h)
          pieces.push_back({b, h, row, std::min(rows, row + kTileRows)});
      }
    }
    std::vector<int32_t> pages(static_cast<size_t>(tokens_));
    std::iota(pages.begin(), pages.end(), 0);
    const auto& simd = simd_kernels();
    const int64_t scratch_size = simd.tile_scratch(dims_);
    compute_pool().parallel_for(
        static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
          const Tensor scratch = Tensor::empty({scratch_size}, DType::kF32);
          for (int64_t i = begin; i < end; ++i) {
            const Piece& piece = pieces[static_cast<size_t>(i)];
            const int64_t start = start_[piece.sequence], head = piece.kv_head * group_;
            const float* keys = qkv_ + heads_ * dims_;
            simd.attend_tile(
                {.kv = {.k = keys,
                        .v = keys + kv_heads_ * dims_,
                        .dtype = DType::kF32,
                        .blocks = pages.data() + start,
                        .kv_heads = width_ / dims_,
                        .kv_head = piece.kv_head,
                        .page = 1,
                        .head_dim = dims_},
                 .rule = rule_of(head),
                 .q = qkv_ + start * width_ + head * dims_,
                 .out = out.data<float>() + (start * heads_ + head) * dims_,
                 .q_stride = width_,
                 .out_stride = heads_ * dims_,
                 .group = group_,
                 .row_begin = piece.begin,
                 .row_end = piece.end,
                 .first_key = 0,
                 .window = args_.window,
                 .lse = lse.defined() ? lse.data<float>() + start * heads_ + head : nullptr,
                 .lse_stride = heads_},
                scratch.data<float>());
          }
        });
    const int64_t used = start_[sequences_] * heads_ * dims_;
    std::fill(out.data<float>() + used, out.data<float>() + out.numel(), 0.0f);
  }
};

class Backward : Packed {
 public:
  Backward(const GradientSlot& dqkv, const GradientSlot& dsinks, const Tensor& dout,
           const PackedAttentionForward& forward, const HeadCounts& heads,
           const AttentionBatch& batch, const AttentionArgs& args)
      : Packed("packed_attention_backward", forward.qkv, heads, batch, args),
        dqkv_(dqkv),
        dsinks_(dsinks),
        dout_(dout),
        out_(forward.out.data<float>()),
        lse_(forward.lse.data<float>()),
        delta_(Tensor::empty({tokens_, heads_}, DType::kF32)),
        partial_(group_ > 1 ? Tensor::empty({heads_, tokens_, 2 * dims_}, DType::kF32) : Tensor()) {
  }

  void run() {
    find_delta();
    if (dsinks_) add_sinks();
    if (!dqkv_) return;
    if (!dqkv_.accumulate) dqkv_.tensor.fill_zero();
    // A task owns a head of a sequence, so that nothing is added to by two threads.
    std::vector<std::pair<int64_t, int64_t>> tasks;
    for (int64_t b = 0; b < sequences_; ++b) {
      for (int64_t h = 0; h < heads_ && length(b) > 0; ++h) tasks.emplace_back(b, h);
    }
    std::ranges::stable_sort(
        tasks, [&](const auto& a, const auto& b) { return length(a.first) > length(b.first); });
    compute_pool().parallel_for(static_cast<int64_t>(tasks.size()), 1,
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t i = begin; i < end; ++i) {
                                    const auto [b, h] = tasks[static_cast<size_t>(i)];
                                    run_head(b, h);
                                  }
                                });
    if (partial_.defined()) add_groups();
  }

 private:
  static constexpr int64_t kQueries = 128;  // of a block

  const float* dout_of(int64_t token, int64_t head) const {
    return dout_.data<float>() + token * dout_.stride(0) + head * dims_;
  }

  // dout · out of every token and head.
  void find_delta() {
    const int64_t used = start_[sequences_];
    compute_pool().parallel_for(used, 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t h = 0; h < heads_; ++h) {
          const float *d = dout_of(t, h), *o = out_ + (t * heads_ + h) * dims_;
          delta_.data<float>()[t * heads_ + h] = std::inner_product(d, d + dims_, o, 0.0f);
        }
      }
    });
  }

  void add_sinks() const {
    float* to = dsinks_.tensor.data<float>();
    for (int64_t h = 0; h < heads_; ++h) {
      double sum = 0;
      const float sink = args_.sinks.data<float>()[h];
      for (int64_t t = 0; t < start_[sequences_]; ++t) {
        const int64_t at = t * heads_ + h;
        sum -= double{std::exp(sink - lse_[at])} * delta_.data<float>()[at];
      }
      to[h] = static_cast<float>(sum) + (dsinks_.accumulate ? to[h] : 0.0f);
    }
  }

  // Gradients of the keys that a query head sees: rows of dqkv, or of its own where heads share
  // keys.
  struct Keys {
    float *dk, *dv;
    int64_t stride;
  };
  Keys keys_of(int64_t token, int64_t head) const {
    if (partial_.defined()) {
      float* dk = partial_.data<float>() + (head * tokens_ + token) * 2 * dims_;
      return {dk, dk + dims_, 2 * dims_};
    }
    const int64_t stride = dqkv_.tensor.stride(0);
    float* dk = dqkv_.tensor.data<float>() + token * stride + (heads_ + head) * dims_;
    return {dk, dk + kv_heads_ * dims_, stride};
  }

  void run_head(int64_t b, int64_t head) const {
    const int64_t size = kQueries * length(b);
    const Tensor memory = Tensor::empty({2, size}, DType::kF32);
    if (partial_.defined()) {
      float* own = keys_of(start_[b], head).dk;
      std::fill(own, own + length(b) * 2 * dims_, 0.0f);
    }
    for (int64_t query = 0; query < length(b); query += kQueries) {
      run_block(b, head, query, std::min(length(b), query + kQueries), memory.data<float>(),
                memory.data<float>() + size);
    }
  }

  // In the order of the heads.
  void add_groups() const {
    const auto& simd = simd_kernels();
    const int64_t stride = dqkv_.tensor.stride(0);
    compute_pool().parallel_for(start_[sequences_], 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t h = 0; h < heads_; ++h) {
          const Keys from = keys_of(t, h);
          float* dk = dqkv_.tensor.data<float>() + t * stride + (heads_ + h / group_) * dims_;
          simd.add(dk, from.dk, dims_);
          simd.add(dk + kv_heads_ * dims_, from.dv, dims_);
        }
      }
    });
  }

  // Queries [begin, end) of one head against the keys they see. p and ds: [queries, keys].
  void run_block(int64_t b, int64_t head, int64_t begin, int64_t end, float* p, float* ds) const {
    const int64_t first = first_key(begin), keys = end - first, queries = end - begin;
    const int64_t token = start_[b] + begin;  // of the first query
    const int64_t kv_head = heads_ + head / group_, from = start_[b] + first;
    const Matrix q = Matrix::of(qkv_ + token * width_ + head * dims_, width_);
    const Matrix k = Matrix::of(qkv_ + from * width_ + kv_head * dims_, width_);
    const Matrix v = Matrix::of(k.data + kv_heads_ * dims_, width_);
    const Matrix d_out = Matrix::of(dout_of(token, head), dout_.stride(0));
    cpu::gemm(p, keys, q, k.transposed(), queries, keys, dims_, false);
    cpu::gemm(ds, keys, d_out, v.transposed(), queries, keys, dims_, false);
    const auto& simd = simd_kernels();
    const ScoreRule rule = rule_of(head);
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t left = first_key(begin + i) - first, right = begin + i + 1 - first;
      const int64_t at = (token + i) * heads_ + head;
      for (float* row : {p + i * keys, ds + i * keys}) {
        std::fill(row, row + left, 0.0f);
        std::fill(row + right, row + keys, 0.0f);
      }
      simd.attend_backward(p + i * keys + left, ds + i * keys + left, right - left, rule, lse_[at],
                           delta_.data<float>()[at]);
    }
    const int64_t stride = dqkv_.tensor.stride(0);
    float* dq = dqkv_.tensor.data<float>() + token * stride + head * dims_;
    const Keys to = keys_of(from, head);
    const Matrix weights = Matrix::of(p, keys), slopes = Matrix::of(ds, keys);
    cpu::gemm(dq, stride, slopes, k, queries, dims_, keys, true);
    cpu::gemm(to.dk, to.stride, slopes.transposed(), q, keys, dims_, queries, true);
    cpu::gemm(to.dv, to.stride, weights.transposed(), d_out, keys, dims_, queries, true);
  }

  const GradientSlot& dqkv_;
  const GradientSlot& dsinks_;
  const Tensor& dout_;
  const float* const out_;
  const float* const lse_;
  const Tensor delta_;
  const Tensor partial_;  // [H, T, 2 Dh]: dk and dv by query head
};

void packed_attention_cpu(Tensor& out, const Tensor& lse, const Tensor& qkv,
                          const HeadCounts& heads, const AttentionBatch& batch,
                          const AttentionArgs& args) {
  Forward("packed_attention", qkv, heads, batch, args).run(out, lse);
}

void packed_attention_backward_cpu(const GradientSlot& dqkv, const GradientSlot& dsinks,
                                   const Tensor& dout, const PackedAttentionForward& forward,
                                   const HeadCounts& heads, const AttentionBatch& batch,
                                   const AttentionArgs& args) {
  Backward(dqkv, dsinks, dout, forward, heads, batch, args).run();
}

const RegisterKernel qk_norm_rope_entry(qk_norm_rope_kernel, DeviceType::kCpu, &qk_norm_rope_cpu);
const RegisterKernel qk_norm_rope_backward_entry(qk_norm_rope_backward_kernel, DeviceType::kCpu,
                                                 &qk_norm_rope_backward_cpu);
const RegisterKernel packed_attention_entry(packed_attention_kernel, DeviceType::kCpu,
                                            &packed_attention_cpu);
const RegisterKernel packed_attention_backward_entry(packed_attention_backward_kernel,
                                                     DeviceType::kCpu,
                                                     &packed_attention_backward_cpu);

}  // namespace
}  // namespace reft
