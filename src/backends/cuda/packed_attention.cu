// Attention of packed batches, forward, by mma.sync: a block takes 64 queries of a head, a warp 16
// of them; tiles of 64 keys come by cp.async while the tile before is worked on. Hopper has a form
// of its own (attention_hopper.cu).
#include <algorithm>

#include "backends/cuda/attention_tile.h"
#include "backends/cuda/packed_attention.h"
#include "backends/cuda/reduce.h"

namespace reft {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kQueries = kWarps * 16;
constexpr int kKeys = 64;

template <int kDim>
constexpr int kStride = kDim + 8;  // of a row in shared memory
template <class T, int kDim>
constexpr size_t kSharedBytes = size_t{kQueries + 4 * kKeys} * kStride<kDim> * sizeof(T);

// Queues the copy of 64 rows of one head into a tile. Rows from `end` on, and what a head lacks to
// kDim, become zeros.
template <class T, int kDim>
__device__ __forceinline__ void load_rows(T* tile, const T* from, int64_t stride, int head_dim,
                                          int64_t begin, int64_t end) {
  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x; i < 64 * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool inside = begin + row < end && chunk * 8 < head_dim;
    cp_async_16(tile + row * kStride<kDim> + chunk * 8,
                inside ? from + (begin + row) * stride + chunk * 8 : from, inside ? 16 : 0);
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    packed_attention_tiles(T* __restrict__ out, float* __restrict__ lse, const T* __restrict__ qkv,
                           PackedShape p) {
  extern __shared__ __align__(16) unsigned char raw[];
  T* q_tile = reinterpret_cast<T*>(raw);
  const auto k_tile = [&](int stage) {
    return q_tile + (kQueries + stage * 2 * kKeys) * kStride<kDim>;
  };
  const auto v_tile = [&](int stage) { return k_tile(stage) + kKeys * kStride<kDim>; };
  const int head = blockIdx.x, sequence = blockIdx.z;
  const int64_t start = p.query_start[sequence];
  const int64_t length = p.query_start[sequence + 1] - start;
  // The longest rows first, so that the short ones fill the gaps at the end.
  const int64_t query0 = (int64_t{gridDim.y} - 1 - blockIdx.y) * kQueries;
  if (query0 >= length) return;
  const int64_t width = p.width();
  const T* q = qkv + start * width + int64_t{head} * p.head_dim;
  const T* k = qkv + start * width + int64_t{p.num_heads + head / p.group()} * p.head_dim;
  const T* v = k + int64_t{p.num_kv_heads} * p.head_dim;
  const int64_t key_end = min(query0 + kQueries, length);
  const int64_t first_key = p.window > 0 ? max(int64_t{0}, query0 - p.window + 1) : 0;
  const int64_t first_tile = first_key / kKeys;
  const int tiles = static_cast<int>((key_end + kKeys - 1) / kKeys - first_tile);
  const auto load_keys = [&](int i) {
    const int64_t key0 = (first_tile + i) * kKeys;
    load_rows<T, kDim>(k_tile(i % 2), k, width, p.head_dim, key0, key_end);
    load_rows<T, kDim>(v_tile(i % 2), v, width, p.head_dim, key0, key_end);
    cp_async_commit();
  };
  load_rows<T, kDim>(q_tile, q, width, p.head_dim, query0, length);
  load_keys(0);

  AttentionShape s{};  // what attend_tile reads of it
  s.scale = p.scale;
  s.soft_cap = p.soft_cap;
  s.window = p.window;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t row0 = query0 + warp * 16;
  const int64_t position[2] = {row0 + g, row0 + g + 8};
  RowState<kDim> state{.out = {}, .maximum = {-INFINITY, -INFINITY}, .total = {}};
  for (int i = 0; i < tiles; ++i) {
    if (i + 1 < tiles) {
      load_keys(i + 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    attend_tile<T, kDim, kKeys / 8>(state, q_tile + warp * 16 * kStride<kDim>, k_tile(i % 2),
                                    v_tile(i % 2), s, (first_tile + i) * kKeys, position);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float total = state.total[r];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    if (position[r] >= length) continue;
    const int64_t row = (start + position[r]) * p.num_heads + head;
    const float scale = row_scale(state.maximum[r], total, p.sinks, head);
    if (lse != nullptr && t == 0)
      lse[row] = log_denominator(state.maximum[r], total, p.sinks, head);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      if (n * 8 + 2 * t >= p.head_dim) continue;
      *reinterpret_cast<uint32_t*>(out + row * p.head_dim + n * 8 + 2 * t) =
          pack2<T>(state.out[n][2 * r] * scale, state.out[n][2 * r + 1] * scale);
    }
  }
}

// Rows of tokens after the last sequence become zeros. Columns count in units of 2 bytes.
__global__ void clear_rest_kernel(uint16_t* rows, int64_t columns, const int32_t* end,
                                  int64_t num_tokens) {
  const int64_t begin = *end * columns;
  for (int64_t i = begin + blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < num_tokens * columns;
       i += int64_t{gridDim.x} * blockDim.x) {
    rows[i] = 0;
  }
}

void clear_rest(const Tensor& rows, const PackedShape& s) {
  clear_rest_kernel<<<static_cast<unsigned>(cuda_num_sms(rows.device().index)), 256, 0,
                      stream_of(rows)>>>(ptr<uint16_t>(rows), rows.nbytes() / 2 / rows.size(0),
                                         s.query_start + s.num_sequences, s.num_tokens);
  check_launch("packed_attention (rest)");
}

// False, having done nothing, where the card has too little shared memory.
template <class T, int kDim>
bool launch_tiles(Tensor& out, const Tensor& lse, const Tensor& qkv, const PackedShape& s,
                  int64_t longest) {
  constexpr size_t kBytes = kSharedBytes<T, kDim>;
  static const bool fits =
      cudaFuncSetAttribute(packed_attention_tiles<T, kDim>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) == cudaSuccess;
  if (!fits) {
    cudaGetLastError();
    return false;
  }
  const dim3 grid(static_cast<unsigned>(s.num_heads), blocks_for(longest, kQueries),
                  static_cast<unsigned>(s.num_sequences));
  packed_attention_tiles<T, kDim><<<grid, kThreads, kBytes, stream_of(qkv)>>>(
      ptr<T>(out), lse.defined() ? ptr<float>(lse) : nullptr, ptr<T>(qkv), s);
  check_launch("packed_attention");
  return true;
}

void packed_attention_cuda(Tensor& out, const Tensor& lse, const Tensor& qkv,
                           const HeadCounts& heads, const AttentionBatch& batch,
                           const AttentionArgs& args) {
  const PackedShape s = packed_shape(qkv, heads, batch, args);
  if (s.num_sequences == 0) return out.fill_zero();
  const int64_t longest = longest_sequence(qkv, batch);
  clear_rest(out, s);
  const int dim = padded_head_dim(qkv.dtype(), qkv, s.head_dim);
  if (dim > 0 && hopper_packed_attention(out, lse, qkv, s, longest)) return;
  bool done = false;
  if (dim > 0) {
    dispatch_half(qkv.dtype(), "packed_attention", [&](auto type) {
      using T = decltype(type);
      done = dim == 64    ? launch_tiles<T, 64>(out, lse, qkv, s, longest)
             : dim == 96  ? launch_tiles<T, 96>(out, lse, qkv, s, longest)
             : dim == 128 ? launch_tiles<T, 128>(out, lse, qkv, s, longest)
                          : launch_tiles<T, 256>(out, lse, qkv, s, longest);
    });
  }
  if (!done) plain_packed_attention(out, lse, qkv, s);
}

// delta = dout · out of every token and head, a warp each.
template <class T>
__global__ void delta_kernel(float* __restrict__ delta, const T* __restrict__ dout,
                             const T* __restrict__ out, int64_t items, int head_dim) {
  const int64_t item = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / 32;
  if (item >= items) return;
  float sum = 0.0f;
  for (int d = threadIdx.x % 32 * 2; d < head_dim; d += 64) {
    const int64_t at = item * head_dim + d;
    sum += as_float(dout[at]) * as_float(out[at]);
    if (d + 1 < head_dim) sum += as_float(dout[at + 1]) * as_float(out[at + 1]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[item] = sum;
}

// pieces[block, h] = −Σ exp(sink − lse) delta over the block's tokens.
__global__ void sinks_kernel(float* pieces, const float* lse, const float* delta, PackedShape s) {
  const int64_t used = s.query_start[s.num_sequences];
  for (int head = threadIdx.x; head < s.num_heads; head += blockDim.x) {
    float sum = 0.0f;
    for (int64_t token = blockIdx.x; token < used; token += gridDim.x) {
      const int64_t at = token * s.num_heads + head;
      sum -= expf(s.sinks[head] - lse[at]) * delta[at];
    }
    pieces[blockIdx.x * int64_t{s.num_heads} + head] = sum;
  }
}

template <class To, class From>
__global__ void add_rows_kernel(To* to, int64_t stride, const From* __restrict__ from,
                                int64_t columns, int64_t n, bool accumulate) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  To& place = to[i / columns * stride + i % columns];
  const float value = as_float(from[i]);
  place = as<To>(accumulate ? as_float(place) + value : value);
}

void packed_attention_backward_cuda(const GradientSlot& dqkv, const GradientSlot& dsinks,
                                    const Tensor& dout, const PackedAttentionForward& forward,
                                    const HeadCounts& heads, const AttentionBatch& batch,
                                    const AttentionArgs& args) {
  const char* op = "packed_attention_backward";
  const Tensor& qkv = forward.qkv;
  const PackedShape s = packed_shape(qkv, heads, batch, args);
  const Device device = qkv.device();
  const cudaStream_t stream = stream_of(qkv);
  if (s.num_tokens == 0 || s.num_sequences == 0) {
    for (const GradientSlot* slot : {&dqkv, &dsinks}) {
      if (*slot && !slot->accumulate) slot->tensor.fill_zero();
    }
    return;
  }
  check(dout.is_contiguous() && dout.dtype() == qkv.dtype(), "{}: dout is {}", op, dout);
  PackedGradient g{.dqkv = {}, .dout = dout, .forward = forward, .delta = {}};
  g.delta = Tensor::empty({s.num_tokens, s.num_heads}, DType::kF32, device);
  dispatch_float(qkv.dtype(), op, [&](auto type) {
    using T = decltype(type);
    delta_kernel<T><<<blocks_for(g.delta.numel(), 8), 256, 0, stream>>>(
        ptr<float>(g.delta), ptr<T>(dout), ptr<T>(forward.out), g.delta.numel(), s.head_dim);
    check_launch(op);
  });
  if (dsinks) {
    const int64_t blocks = num_pieces(s.num_tokens, 64, device.index);
    const Tensor pieces = Tensor::empty({blocks, s.num_heads}, DType::kF32, device);
    sinks_kernel<<<static_cast<unsigned>(blocks), 32, 0, stream>>>(
        ptr<float>(pieces), ptr<float>(forward.lse), ptr<float>(g.delta), s);
    check_launch(op);
    add_pieces(dsinks, pieces);
  }
  if (!dqkv) return;
  const bool direct =
      !dqkv.accumulate && dqkv.tensor.is_contiguous() && dqkv.tensor.dtype() == qkv.dtype();
  g.dqkv = direct ? dqkv.tensor : Tensor::empty(qkv.shape(), qkv.dtype(), device);
  clear_rest(g.dqkv, s);
  const int dim = padded_head_dim(qkv.dtype(), qkv, s.head_dim);
  const int64_t longest = longest_sequence(qkv, batch);
  const bool done = dim > 0 && (hopper_packed_attention_backward(g, s, longest) ||
                                tile_packed_attention_backward(g, s, dim, longest));
  if (!done) plain_packed_attention_backward(g, s);
  if (direct) return;
  dispatch_float(qkv.dtype(), op, [&](auto from) {
    dispatch_float(dqkv.tensor.dtype(), op, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      add_rows_kernel<To, From><<<blocks_for(qkv.numel(), 256), 256, 0, stream>>>(
          ptr<To>(dqkv.tensor), dqkv.tensor.stride(0), ptr<From>(g.dqkv), qkv.size(1), qkv.numel(),
          dqkv.accumulate);
      check_launch(op);
    });
  });
}

const RegisterKernel r1(packed_attention_kernel, DeviceType::kCuda, &packed_attention_cuda);
const RegisterKernel r2(packed_attention_backward_kernel, DeviceType::kCuda,
                        &packed_attention_backward_cuda);

}  // namespace

PackedShape packed_shape(const Tensor& qkv, const HeadCounts& heads, const AttentionBatch& batch,
                         const AttentionArgs& args) {
  return {.query_start = ptr<int32_t>(batch.query_start),
          .num_sequences = static_cast<int>(batch.query_start.size(0) - 1),
          .num_tokens = qkv.size(0),
          .num_heads = static_cast<int>(heads.num_heads),
          .num_kv_heads = static_cast<int>(heads.num_kv_heads),
          .head_dim = static_cast<int>(heads.head_dim),
          .scale = args.scale,
          .soft_cap = args.soft_cap,
          .window = args.window,
          .sinks = args.sinks.defined() ? ptr<float>(args.sinks) : nullptr};
}

}  // namespace reft
