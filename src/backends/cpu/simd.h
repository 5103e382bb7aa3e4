// The vectorised inner loops of the CPU backend. One table per instruction set, all in one binary:
// simd_avx512.cpp, simd_avx2.cpp and simd_generic.cpp (SSE2, NEON) define the vector primitives and
// compile the same *.inc files with them. Loops take plain pointers and never throw; the ops around
// them check and share out the work.
#pragma once

#include <cstdint>

#include "ops/activation.h"
#include "tensor/dtype.h"

namespace reft {

// Keys and values of one sequence and one KV head in the paged cache.
struct KvRows {
  const void* k;
  const void* v;
  DType dtype;
  const int32_t* blocks;
  int64_t kv_heads, kv_head, page, head_dim;
};

struct ScoreRule {
  float scale;
  float soft_cap;      // 0: none
  const float* sinks;  // of the `group` heads, or null
};

// Flash-style attention of up to kTileRows rows; row r is head r % group of query token r / group.
struct AttentionTile {
  KvRows kv;
  ScoreRule rule;
  const float* q;  // of token 0 and the group's first head; tokens are q_stride floats apart
  float* out;
  int64_t q_stride, out_stride, group;
  int64_t row_begin, row_end;
  int64_t first_key;  // last key that token 0 sees; token j sees j more
  int64_t window;
  float* lse = nullptr;  // log of the softmax's denominator; tokens are lse_stride floats apart
  int64_t lse_stride = 0;
};
inline constexpr int64_t kTileRows = 64;

// One query token's `group` heads against keys [key_begin, key_end). Leaves the unnormalised sums.
struct AttentionSpan {
  KvRows kv;
  ScoreRule rule;  // sinks are not applied here
  const float* q;  // [group, Dh]
  float* out;      // [group, Dh]: sum of exp(score − top) v
  float* top;      // [group]
  float* sum;      // [group]: sum of exp(score − top)
  int64_t group;
  int64_t key_begin, key_end;
};

struct HeadRule {
  const float* weight;  // null: no norm
  float eps;
  float weight_offset;
  const float* cos_sin;  // null: no rotation
  int64_t rotary;
  bool interleaved;
};

inline constexpr int64_t kMaxLanes = 16;
inline constexpr int kMassCuts = 8;

struct SimdKernels {
  // y = x̂ (weight + offset)
  void (*rms_norm)(float* y, const float* x, const float* weight, int64_t n, float eps,
                   float offset);
  void (*add)(float* a, const float* b, int64_t n);
  void (*gated)(float* y, const float* gate, const float* up, int64_t n, Activation activation);
  void (*soft_cap)(float* x, int64_t n, float cap);

  // Norm and rotation of one head; then float to the cache's dtype.
  void (*norm_rope)(float* y, const float* x, int64_t head_dim, const HeadRule& rule);
  // Its gradient; dweight and, without a norm, x may be null. `scratch`: [head_dim].
  void (*norm_rope_backward)(float* dx, bool accumulate, float* dweight, const float* dy,
                             const float* x, int64_t head_dim, const HeadRule& rule,
                             float* scratch);
  void (*convert)(void* y, DType dtype, const float* x, int64_t n);

  // Gradients. dx (+)=, dweight +=; either may be null.
  void (*rms_norm_backward)(float* dx, bool accumulate, float* dweight, const float* dy,
                            const float* x, const float* weight, int64_t n, float eps,
                            float offset);
  void (*gated_backward)(float* dgate, float* dup, bool accumulate, const float* dy,
                         const float* gate, const float* up, int64_t n, Activation activation);
  // out += scale x
  void (*add_scaled)(float* out, const float* x, float scale, int64_t n);

  // `scratch`: floats, 64-byte aligned, as many as the _scratch function says.
  int64_t (*tile_scratch)(int64_t head_dim);
  void (*attend_tile)(const AttentionTile& tile, float* scratch);
  // Of a row of the packed attention's backward: scores become weights p = exp(score − lse), and
  // dp becomes d loss / d (q·k) = p (dp − delta) times the slope of scale and cap.
  void (*attend_backward)(float* scores, float* dp, int64_t n, const ScoreRule& rule, float lse,
                          float delta);
  int64_t (*span_scratch)(int64_t group, int64_t head_dim);
  void (*attend_span)(const AttentionSpan& span, float* scratch);

  // c[rows, cols] = (c +) Σ over k of a[k][i] b[k][j]; a: [k, gemm_rows], b: [k, gemm_cols], where
  // rows ≤ gemm_rows and cols ≤ gemm_cols.
  int64_t gemm_rows, gemm_cols;
  void (*gemm_tile)(float* c, int64_t c_stride, const float* a, const float* b, int64_t k,
                    int64_t rows, int64_t cols, bool accumulate);

  // Logits. NaN reads as −inf and +inf as the largest finite number.
  float (*largest)(const float* x, int64_t n);
  // Lowest index of the largest value; 0 when all are −inf.
  int64_t (*argmax)(const float* x, int64_t n);
  // p = exp((x − top) inv_t), 0 where below min_p. y may be null. Returns the sum.
  double (*exponentials)(float* y, const float* x, int64_t n, float top, float inv_t, float min_p);
  // Sums of those p with x at least cuts[i], i < kMassCuts.
  void (*masses)(double* sums, const float* cuts, const float* x, int64_t n, float top, float inv_t,
                 float min_p);
  // Writes the indices of x > bound, or ≥ with `equal`, in order, from x[begin] on, until `room` or
  // fewer than a vector's worth are free; returns how many and sets `begin` to where to go on.
  int64_t (*above)(int32_t* ids, int64_t room, const float* x, int64_t& begin, int64_t n,
                   float bound, bool equal);
  int64_t (*count_above)(const float* x, int64_t n, float bound, bool equal);
};

// The best table that this CPU can run (see isa.h).
const SimdKernels& simd_kernels();

extern const SimdKernels kSimdGeneric;
#if defined(__x86_64__)
extern const SimdKernels kSimdAvx2;
extern const SimdKernels kSimdAvx512;
#endif

}  // namespace reft
