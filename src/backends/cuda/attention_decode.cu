// Decoding in one kernel: head norm, rotary embedding, cache write and attention of sequences that
// compute one token each. A cluster of blocks takes one KV head of one sequence; its warps deal out
// the keys in steps of 16 and add up their results by way of distributed shared memory. Every block
// prepares the group's queries for itself; the one whose last step has the newest key also prepares
// that key and its value, writes them to the cache and uses them from shared memory.
#include <algorithm>
#include <cmath>

#include "backends/cuda/attention_tile.h"
#include "backends/cuda/fp8.h"
#include "backends/cuda/hopper.h"

namespace reft {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kStepKeys = 16;        // the depth of a matrix instruction
constexpr int kMaxGroup = 16;        // its rows
constexpr unsigned kMaxCluster = 8;  // what every chip with clusters can do
constexpr unsigned kFullWarp = 0xffffffffu;

struct RopeInputs {
  const int32_t *positions, *slots;
  int64_t qkv_stride;
  const float *q_weight, *k_weight;  // null: no norm
  float eps, weight_offset;
  const float* cos_sin;  // null: no rotary embedding
  int rotary_dim;
  bool interleaved;
};

// Shared memory: a ring of key and value tiles for each warp (with fp8 in the cache, behind one
// pair of tiles in which they are widened), the queries, the newest key and value, and 8 floats for
// each thread (9, so that they lie in different banks). C: the element of the cache.
template <class T, class C, int kDim>
struct Layout {
  static constexpr bool kWiden = !std::is_same_v<T, C>;
  static constexpr int kStride = kDim + 8;  // elements of a row; 8 more for different banks
  static constexpr int kTile = kStepKeys * kStride;
  static constexpr int kStages = kDim <= 64 ? 4 : kDim <= 128 ? 3 : 2;
  static constexpr int kPerChunk = 16 / sizeof(C);  // elements of the cache
  static constexpr int kCacheStride = kDim + kPerChunk;
  static constexpr int kCacheTile = kStepKeys * kCacheStride;
  static constexpr int kCacheChunks = kDim / kPerChunk;
  static constexpr int kRing = (kWiden ? 2 * kTile : 0) +  // elements of T
                               kStages * 2 * kCacheTile / int{sizeof(T) / sizeof(C)};
  static constexpr int kQueries = kMaxGroup * kStride;
  static constexpr size_t kBytes =
      (kWarps * kRing + kQueries + 2 * kDim) * sizeof(T) + kThreads * 9 * sizeof(float);
  static constexpr int kBlocksPerSm = kDim <= 128 ? 2 : 1;
  static constexpr int kChunks = kDim / 8;  // of 16 bytes in a row
  // A warp's results take the place of a stage: rows of kStride floats, the maximum and the sum
  // behind the kDim elements.
  static_assert(2 * kTile * sizeof(T) == kMaxGroup * kStride * sizeof(float) && kStages >= 2);
};

// Keys of one sequence that its token sees, and the warp's share of them: steps first_step,
// first_step + stride, …
struct WarpKeys {
  int old_begin, old_end;  // keys that are read from the cache
  int first_step, stride, num_steps;
};

// The copies of a warp's keys and values into its ring.
template <class T, class C, int kDim>
class KeyStream {
  using L = Layout<T, C, kDim>;

 public:
  __device__ __forceinline__ KeyStream(T* ring, const C* k_cache, const C* v_cache,
                                       const AttentionShape& s, const WarpKeys& keys)
      : ring_(ring),
        k_cache_(k_cache),
        v_cache_(v_cache),
        table_(s.block_table + blockIdx.z * s.table_stride),
        kv_heads_(s.num_kv_heads),
        block_size_(static_cast<unsigned>(s.block_size)),
        keys_(keys) {}

  // Where the lane's key of the i-th step lies.
  struct Place {
    int block;   // −1: not to be read
    int offset;  // in the block
  };
  __device__ __forceinline__ Place place(int i) const {
    const int key = key_of(i);
    const int index = static_cast<int>(static_cast<unsigned>(key) / block_size_);
    const bool wanted = key >= keys_.old_begin && key < keys_.old_end;
    return {wanted ? table_[index] : -1, key - index * static_cast<int>(block_size_)};
  }

  // Queues the i-th step; one group of copies, empty after the last step. What is not to be seen
  // becomes zeros: behind a window it may be gone from the block table, and zero times what lies
  // there may be no number.
  __device__ __forceinline__ void copy(int i, Place place) const {
    if (i < keys_.num_steps) {
      const int lane = threadIdx.x % 32, head = blockIdx.y;
      const int block_row = (place.block * kv_heads_ + head) * static_cast<int>(block_size_);
      const int row = place.block < 0 ? -1 : block_row + place.offset;
      C* to = stage(i);
#pragma unroll
      for (int c = 0; c < kStepKeys * L::kCacheChunks / 32; ++c) {
        const int tile_row = (c * 32 + lane) / L::kCacheChunks;
        const int column = (c * 32 + lane) % L::kCacheChunks * L::kPerChunk;
        const int from = __shfl_sync(kFullWarp, row, tile_row);
        const int64_t offset = from < 0 ? 0 : int64_t{from} * kDim + column;
        C* at = to + tile_row * L::kCacheStride + column;
        cp_async_16(at, k_cache_ + offset, from < 0 ? 0 : 16);
        cp_async_16(at + L::kCacheTile, v_cache_ + offset, from < 0 ? 0 : 16);
      }
    }
    cp_async_commit();
  }

  // The i-th step's keys, with its values behind them, once it has arrived. All lanes together.
  __device__ __forceinline__ T* tiles(int i) const {
    if constexpr (!L::kWiden) {
      return stage(i);
    } else {
      const int lane = threadIdx.x % 32;
      const C* from = stage(i);
#pragma unroll
      for (int c = 0; c < 2 * kStepKeys * L::kCacheChunks / 32; ++c) {
        const int row = (c * 32 + lane) / L::kCacheChunks;  // values follow keys in both
        const int column = (c * 32 + lane) % L::kCacheChunks * L::kPerChunk;
        const uint4 codes = *reinterpret_cast<const uint4*>(from + row * L::kCacheStride + column);
        uint4 low, high;
        expand_fp8<T>(codes.x, low.x, low.y);
        expand_fp8<T>(codes.y, low.z, low.w);
        expand_fp8<T>(codes.z, high.x, high.y);
        expand_fp8<T>(codes.w, high.z, high.w);
        auto* to = reinterpret_cast<uint4*>(ring_ + row * L::kStride + column);
        to[0] = low;
        to[1] = high;
      }
      __syncwarp();
      return ring_;
    }
  }
  __device__ __forceinline__ int first_key(int i) const {
    return (keys_.first_step + i * keys_.stride) * kStepKeys;
  }

 private:
  __device__ __forceinline__ C* stage(int i) const {
    return reinterpret_cast<C*>(ring_ + (L::kWiden ? 2 * L::kTile : 0)) +
           i % L::kStages * 2 * L::kCacheTile;
  }
  __device__ __forceinline__ int key_of(int i) const {
    return first_key(i) + static_cast<int>(threadIdx.x) % kStepKeys;
  }

  T* ring_;
  const C *k_cache_, *v_cache_;
  const int32_t* table_;
  int kv_heads_;
  unsigned block_size_;
  WarpKeys keys_;
};

// Heads of qkv on their way to shared memory; kLanes neighbouring lanes take a head, each 8
// elements of it.
template <class T, class C, int kDim>
class HeadRows {
  using L = Layout<T, C, kDim>;
  static constexpr int kLanes = kDim <= 64 ? 8 : kDim <= 128 ? 16 : 32;
  static constexpr int kAtOnce = kThreads / kLanes;
  static constexpr int kRounds = (kMaxGroup + 2 + kAtOnce - 1) / kAtOnce;

 public:
  // Loads what does not depend on qkv, and uses none of it: other loads may follow at once.
  __device__ __forceinline__ HeadRows(const RopeInputs& r, int position)
      : slot_(static_cast<int>(threadIdx.x) / kLanes),
        chunk_(static_cast<int>(threadIdx.x) % kLanes),
        has_q_norm_(r.q_weight != nullptr),
        has_k_norm_(r.k_weight != nullptr) {
    const int half = r.rotary_dim / 2, apart = r.interleaved ? 1 : half;
    const float* table = r.cos_sin + int64_t{position} * r.rotary_dim;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int d = (inside() ? chunk_ : 0) * 8 + j;
      if (has_q_norm_) q_weight_[j] = r.q_weight[d];
      if (has_k_norm_) k_weight_[j] = r.k_weight[d];
      const bool rotated = d < r.rotary_dim, second = r.interleaved ? d % 2 == 1 : d >= half;
      const int frequency = r.interleaved ? d / 2 : second ? d - half : d;
      cosine_[j] = rotated ? table[frequency] : 1.0f;
      sine_[j] = rotated ? table[half + frequency] : 0.0f;
      partner_[j] = spread(!rotated ? d : second ? d - apart : d + apart);
      first_ |= second ? 0u : 1u << j;
    }
  }

  // Queries, and with `with_new` the newest key and value: to shared memory, the latter to the
  // cache too (at element `cache_offset`). scratch: 9 floats a thread.
  __device__ __forceinline__ void prepare(T* queries, T* new_kv, float* scratch, const T* qkv,
                                          C* k_cache, C* v_cache, int64_t cache_offset,
                                          bool with_new, int group, const AttentionShape& s,
                                          const RopeInputs& r) const {
    const int num_rows = group + (with_new ? 2 : 0);
    Vector8<T> raw[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {  // all loads first: one latency, however many heads
      const int row = i * kAtOnce + slot_;
      const int head = row < group    ? blockIdx.y * group + row
                       : row == group ? s.num_heads + blockIdx.y
                                      : s.num_heads + s.num_kv_heads + blockIdx.y;
      raw[i] = {};
      if (row < num_rows && inside()) {
        raw[i] = *reinterpret_cast<const Vector8<T>*>(qkv + int64_t{head} * kDim + chunk_ * 8);
      }
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (i * kAtOnce >= num_rows) break;
      const int row = i * kAtOnce + slot_;
      const Vector8<T> done = transform(raw[i], row < group, scratch + slot_ * kLanes * 9, r);
      if (row >= num_rows || !inside()) continue;
      if (row < group) {
        store(queries + row * L::kStride, done);
      } else if (row == group) {
        store_new(new_kv, k_cache + cache_offset, done);
      } else {
        store_new(new_kv + kDim, v_cache + cache_offset, raw[i]);
      }
    }
  }

 private:
  __device__ __forceinline__ bool inside() const { return chunk_ < L::kChunks; }

  // Index of element d in the scratch memory: 9 floats for 8, so that the banks differ.
  __device__ static __forceinline__ int spread(int d) { return d + d / 8; }

  __device__ __forceinline__ void store(T* head, const Vector8<T>& x) const {
    *reinterpret_cast<Vector8<T>*>(head + chunk_ * 8) = x;
  }

  // To the cache, and what the cache then holds to `head`.
  __device__ __forceinline__ void store_new(T* head, C* cache, const Vector8<T>& x) const {
    Vector<C, 8> kept;
    Vector8<T> read;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      kept.v[j] = as<C>(as_float(x.v[j]));
      read.v[j] = as<T>(as_float(kept.v[j]));
    }
    store(head, read);
    *reinterpret_cast<Vector<C, 8>*>(cache + chunk_ * 8) = kept;
  }

  // Norm and rotation of the lane's elements. Not rounded in between, as in qk_norm_rope_cache.
  // All lanes of a warp together.
  __device__ __forceinline__ Vector8<T> transform(const Vector8<T>& raw, bool is_q, float* head,
                                                  const RopeInputs& r) const {
    float x[8], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      x[j] = as_float(raw.v[j]);
      squares += x[j] * x[j];
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2)
      squares += __shfl_xor_sync(kFullWarp, squares, offset);
    if (is_q ? has_q_norm_ : has_k_norm_) {
      const float scale = rsqrtf(squares / kDim + r.eps);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        x[j] *= scale * (r.weight_offset + (is_q ? q_weight_[j] : k_weight_[j]));
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; ++j) head[spread(chunk_ * 8) + j] = x[j];
    __syncwarp();
    Vector8<T> y;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float other = head[partner_[j]];
      y.v[j] = as<T>(x[j] * cosine_[j] + (first_ >> j & 1 ? -other : other) * sine_[j]);
    }
    return y;
  }

  int slot_, chunk_;
  bool has_q_norm_, has_k_norm_;
  float q_weight_[8], k_weight_[8], cosine_[8], sine_[8];
  int partner_[8];      // the other element of the pair, in scratch memory
  unsigned first_ = 0;  // bit j: element j is the first of its pair
};

// Two neighbouring elements of a row, summed over kParts partial results, with the row's maximum
// and sum. load(part, column) gives two floats of the row; columns as in Layout.
struct Merged {
  float2 sum;
  float maximum, total;
};
template <int kDim, int kParts, class Load>
__device__ __forceinline__ Merged merge_parts(int parts, int column, Load load) {
  float2 value[kParts], scale[kParts];
  Merged m{{0.0f, 0.0f}, -INFINITY, 0.0f};
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    value[p] = p < parts ? load(p, column) : make_float2(0.0f, 0.0f);
    scale[p] = p < parts ? load(p, kDim) : make_float2(-INFINITY, 0.0f);
  }
#pragma unroll
  for (int p = 0; p < kParts; ++p) m.maximum = fmaxf(m.maximum, scale[p].x);
  const float base = m.maximum == -INFINITY ? 0.0f : m.maximum;
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    const float weight = exp2f(scale[p].x - base);
    m.total += scale[p].y * weight;
    m.sum.x += value[p].x * weight;
    m.sum.y += value[p].y * weight;
  }
  return m;
}

// Adds up the warps of the block, then the first `active` blocks of the cluster, and stores the
// group's outputs at `out`. `rings`: the warps' rings, no longer in use.
template <class T, class C, int kDim>
__device__ __forceinline__ void merge_and_store(T* out, RowState<kDim>& state, T* rings, int group,
                                                int active, const AttentionShape& s) {
  using L = Layout<T, C, kDim>;
  constexpr int kPairs = kDim / 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto results = [&](int w) { return reinterpret_cast<float*>(rings + w * L::kRing); };
  // Behind the first warp's results: the rest of its ring has room for as much again.
  static_assert(L::kRing >= 4 * L::kTile);
  float* merged = reinterpret_cast<float*>(rings + 2 * L::kTile);
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    state.total[r] += __shfl_xor_sync(kFullWarp, state.total[r], 1);
    state.total[r] += __shfl_xor_sync(kFullWarp, state.total[r], 2);
    if (g + 8 * r >= group) continue;
    float* row = results(warp) + (g + 8 * r) * L::kStride;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      *reinterpret_cast<float2*>(row + d * 8 + 2 * t) =
          make_float2(state.out[d][2 * r], state.out[d][2 * r + 1]);
    }
    if (t == 0)
      *reinterpret_cast<float2*>(row + kDim) = make_float2(state.maximum[r], state.total[r]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * kPairs; i += kThreads) {
    const int row = i / kPairs, column = i % kPairs * 2;
    const Merged m = merge_parts<kDim, kWarps>(kWarps, column, [&](int w, int at) {
      return *reinterpret_cast<const float2*>(results(w) + row * L::kStride + at);
    });
    float* to = merged + row * L::kStride;
    *reinterpret_cast<float2*>(to + column) = m.sum;
    if (column == 0) *reinterpret_cast<float2*>(to + kDim) = make_float2(m.maximum, m.total);
  }
  if (active > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < group * kPairs; i += active * kThreads) {
    const int row = i / kPairs, column = i % kPairs * 2;
    const Merged m = merge_parts<kDim, kMaxCluster>(active, column, [&](int rank, int at) {
      return load_peer(merged + row * L::kStride + at, rank);
    });
    const float scale = row_scale(m.maximum, m.total, s.sinks, blockIdx.y * group + row);
    *reinterpret_cast<uint32_t*>(out + row * kDim + column) =
        pack2<T>(m.sum.x * scale, m.sum.y * scale);
  }
  if (active > 1) {  // no block may end before the others have read its results
    cluster_arrive();
    cluster_wait();
  }
}

// Grid: (blocks of a cluster, KV heads, sequences). The batch's arrays, the keys and values of
// earlier tokens and the weights are read before await_inputs(): see rope_attention() for what
// makes that right. Only qkv is made by the kernels just ahead.
template <class T, class C, int kDim>
__global__ void __launch_bounds__(kThreads, Layout<T, C, kDim>::kBlocksPerSm)
    decode_attention_kernel(T* out, const T* qkv, C* k_cache, C* v_cache, AttentionShape s,
                            RopeInputs r) {
  using L = Layout<T, C, kDim>;
  extern __shared__ __align__(16) unsigned char shared[];
  T* rings = reinterpret_cast<T*>(shared);
  T* queries = rings + kWarps * L::kRing;
  T* new_kv = queries + L::kQueries;
  float* scratch = reinterpret_cast<float*>(new_kv + 2 * kDim);
  allow_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = blockIdx.x, sequence = blockIdx.z;
  const int group = s.num_heads / s.num_kv_heads;
  const int context = s.context_len[sequence], slot = r.slots[sequence];
  const int position = r.positions[sequence];
  const bool is_new = slot >= 0;  // else the newest key is in the cache already, or there is none
  const int old_begin =
      s.window > 0 && s.window < context ? context - static_cast<int>(s.window) : 0;
  const int step0 = old_begin / kStepKeys;
  const int steps = (context + kStepKeys - 1) / kStepKeys - step0;
  // In a graph the grid is that of the longest context: blocks without keys end at once. Rank 0
  // never does, so that the kernel does not end before those ahead of it have.
  const int active = min(max((steps + kWarps - 1) / kWarps, 1), static_cast<int>(gridDim.x));
  if (rank >= active) return;
  const int worker = rank * kWarps + warp, workers = active * kWarps;
  const int newest_worker = (steps - 1) % workers;
  const WarpKeys keys{.old_begin = old_begin,
                      .old_end = context - (is_new ? 1 : 0),
                      .first_step = step0 + worker,
                      .stride = workers,
                      .num_steps = worker < steps ? (steps - 1 - worker) / workers + 1 : 0};

  const KeyStream<T, C, kDim> stream(rings + warp * L::kRing, k_cache, v_cache, s, keys);
  typename KeyStream<T, C, kDim>::Place places[L::kStages];
#pragma unroll
  for (int i = 0; i < L::kStages; ++i) places[i] = stream.place(i);
  const HeadRows<T, C, kDim> heads(r, position);
#pragma unroll
  for (int i = 0; i < L::kStages; ++i) stream.copy(i, places[i]);
  auto next = stream.place(L::kStages);
  for (int i = group * L::kStride / 8 + threadIdx.x; i < L::kQueries / 8; i += kThreads)
    reinterpret_cast<uint4*>(queries)[i] = make_uint4(0, 0, 0, 0);
  const int64_t cache_offset =
      ((int64_t{slot / s.block_size} * s.num_kv_heads + blockIdx.y) * s.block_size +
       slot % s.block_size) *
      kDim;
  await_inputs();
  heads.prepare(queries, new_kv, scratch, qkv + sequence * r.qkv_stride, k_cache, v_cache,
                cache_offset, is_new && newest_worker / kWarps == rank, group, s, r);
  __syncthreads();

  RowState<kDim> state;
#pragma unroll
  for (int d = 0; d < kDim / 8; ++d)
    state.out[d][0] = state.out[d][1] = state.out[d][2] = state.out[d][3] = 0.0f;
  state.maximum[0] = state.maximum[1] = -INFINITY;
  state.total[0] = state.total[1] = 0.0f;
  const int64_t last[2] = {context - 1, context - 1};
  for (int i = 0; i < keys.num_steps; ++i) {
    cp_async_wait<L::kStages - 1>();
    __syncwarp();
    T* k_tile = stream.tiles(i);
    if (is_new && worker == newest_worker && i == keys.num_steps - 1 && lane < L::kChunks) {
      T* row = k_tile + (context - 1) % kStepKeys * L::kStride + lane * 8;
      *reinterpret_cast<uint4*>(row) = *reinterpret_cast<const uint4*>(new_kv + lane * 8);
      *reinterpret_cast<uint4*>(row + L::kTile) =
          *reinterpret_cast<const uint4*>(new_kv + kDim + lane * 8);
    }
    __syncwarp();
    attend_tile<T, kDim, kStepKeys / 8>(state, queries, k_tile, k_tile + L::kTile, s,
                                        stream.first_key(i), last);
    __syncwarp();
    stream.copy(i + L::kStages, next);
    next = stream.place(i + L::kStages + 1);
  }
  cp_async_wait<0>();
  merge_and_store<T, C, kDim>(out + (int64_t{sequence} * s.num_heads + blockIdx.y * group) * kDim,
                              state, rings, group, active, s);
}

template <class T, class C, int kDim>
void launch_decode(Tensor& out, const Tensor& qkv, const PagedKv& kv, const AttentionShape& s,
                   const RopeInputs& r) {
  using L = Layout<T, C, kDim>;
  static const cudaError_t raised = cudaFuncSetAttribute(
      decode_attention_kernel<T, C, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kBytes);
  cuda_check(raised, "raising the shared memory of rope_attention");
  const auto sequences = static_cast<unsigned>(qkv.size(0));
  const auto kv_heads = static_cast<unsigned>(s.num_kv_heads);
  // As many blocks as run at once.
  const unsigned most = L::kBlocksPerSm * static_cast<unsigned>(cuda_num_sms(qkv.device().index));
  unsigned cluster = 1;
  while (cluster < kMaxCluster && 2 * cluster * sequences * kv_heads <= most) cluster *= 2;
  launch_clusters("rope_attention", decode_attention_kernel<T, C, kDim>, qkv.device().index,
                  dim3(cluster, kv_heads, sequences), cluster, kThreads, L::kBytes, ptr<T>(out),
                  ptr<T>(qkv), ptr<C>(kv.k), ptr<C>(kv.v), s, r);
}

bool rope_attention_cuda(Tensor& out, const Tensor& qkv, const Tensor& positions,
                         const Tensor& slots, PagedKv& kv, const QkNormRopeArgs& rope,
                         const AttentionBatch& batch, const AttentionArgs& args) {
  const int64_t head_dim = kv.k.size(3), heads = out.size(1) / head_dim;
  const int major = cuda_compute_major(qkv.device().index);
  const bool fp8 = kv.k.dtype() == DType::kF8E4M3;
  if ((major != 9 && major != 10) ||  // clusters, and the shared memory
      qkv.dtype() == DType::kF32 || (!fp8 && qkv.dtype() != kv.k.dtype()) ||
      batch.max_query_len != 1 || qkv.size(0) != batch.context_len.size(0) ||
      heads > kMaxGroup * kv.k.size(1) || qkv.stride(0) % 8 != 0 || !aligned_16(qkv.raw()) ||
      !aligned_16(kv.k.raw()) || !aligned_16(kv.v.raw())) {
    return false;
  }
  const auto optional = [](const Tensor& t) { return t.defined() ? ptr<float>(t) : nullptr; };
  const RopeInputs r{
      .positions = ptr<int32_t>(positions),
      .slots = ptr<int32_t>(slots),
      .qkv_stride = qkv.stride(0),
      .q_weight = optional(rope.q_weight),
      .k_weight = optional(rope.k_weight),
      .eps = rope.eps,
      .weight_offset = rope.kind == NormKind::kOnePlus ? 1.0f : 0.0f,
      .cos_sin = optional(rope.cos_sin),
      .rotary_dim = rope.cos_sin.defined() ? static_cast<int>(rope.cos_sin.size(1)) : 0,
      .interleaved = rope.interleaved};
  const AttentionShape s = attention_shape(kv, heads, batch, args);
  bool done = true;
  const auto launch = [&]<class T, class C>() {
    switch (head_dim) {
      case 64:
        return launch_decode<T, C, 64>(out, qkv, kv, s, r);
      case 96:
        return launch_decode<T, C, 96>(out, qkv, kv, s, r);
      case 128:
        return launch_decode<T, C, 128>(out, qkv, kv, s, r);
      case 256:
        return launch_decode<T, C, 256>(out, qkv, kv, s, r);
      default:
        done = false;
    }
  };
  dispatch_half(qkv.dtype(), "rope_attention", [&](auto type) {
    using T = decltype(type);
    fp8 ? launch.template operator()<T, __nv_fp8_e4m3>() : launch.template operator()<T, T>();
  });
  return done;
}

const RegisterKernel r(rope_attention_kernel, DeviceType::kCuda, &rope_attention_cuda);

}  // namespace
}  // namespace reft
