// One row of logits on a cluster of blocks: modified, filtered, drawn from, described. Each block
// keeps its slice of the row in shared memory, so the row is read from global memory once; nothing
// is sorted: top_k and top_p look for the least likely id that stays, by counts and masses above
// four thresholds at a time, until few enough ids are left to compare one by one.
//
// Sums run in a fixed order, so a row gives the same token in every batch. Weights are fp32 as on
// the CPU and sums fp64; the exponential may differ from the CPU's in the last bit, so a draw or a
// boundary of top_p within some 1e-7 of the total mass of the next id may go the other way there.
#pragma once

#include <cstdint>

#include "backends/cuda/common.h"

namespace reft::sampling {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxCluster = 8;  // what every chip with clusters can do
constexpr int kFew = 128;       // ids that are compared one by one
constexpr float kLargest = 3.402823466e38f;

enum class Kind : int32_t { kGreedy, kDraw, kScore };

// What is to be done with a row. Lists of ids follow each other from `ids` on: allowed, banned,
// bias (ids, then values), prompt, output.
struct RowTask {
  double share;  // uniform in [0, 1): where the draw falls
  Kind kind;
  int32_t token;  // of kScore; else what a row gives whose ids are all masked
  float inverse_temperature;
  int32_t top_k;  // 0: off
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  int32_t pending;  // row of the step before whose token is one more output; −1: none
  int32_t ids;
  int32_t num_allowed;  // −1: all are
  int32_t num_banned;
  int32_t num_bias;
  int32_t num_prompt;
  int32_t num_output;
  int32_t num_top;    // −1: not described
  int32_t top_begin;  // of its most likely ids in the list of all rows
};

struct RowResult {
  double lse;  // log Σ exp(logit); 0 where there is no number
  int32_t token;
  float logprob;
  int32_t rank;
  int32_t num_top;
};
struct TopEntry {
  int32_t id;
  float logit;
};

// Ids in the order of likelihood, ties by the lower id first, as integers that grow with it.
using Place = unsigned long long;
constexpr Place kMasked = (Place{0x007fffff} << 32) | 0xffffffff;  // of the likeliest −inf

// NaN counts as −inf, +inf as the largest finite number, −0 as 0.
__device__ __forceinline__ float sane(float x) {
  return x > kLargest ? kLargest : x >= -INFINITY ? x + 0.0f : -INFINITY;
}
__device__ __forceinline__ uint32_t ordered(float x) {
  const auto bits = static_cast<uint32_t>(__float_as_int(x));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t ordered_bits) {
  const uint32_t bits =
      (ordered_bits & 0x80000000u) != 0 ? ordered_bits & 0x7fffffffu : ~ordered_bits;
  return __int_as_float(static_cast<int>(bits));
}
__device__ __forceinline__ Place place_of(float x, int id) {
  return (Place{ordered(x)} << 32) | static_cast<uint32_t>(~id);
}
__device__ __forceinline__ int id_of(Place place) { return ~static_cast<int>(place & 0xffffffffu); }

// A block's shared memory beside its slice of the row.
struct Shared {
  Place maxima[kMaxCluster * kWarps];  // of every warp of the cluster
  Place few[kFew];
  double few_weights[kFew];
  // Read by the other blocks; the two are taken in turn.
  double published[2][4];
  unsigned published_counts[2][4];
  double warps[4][kWarps];
  unsigned counts[4][kWarps];
  double result[4];
  unsigned result_counts[4];
  double scan[kWarps];
  Place boundary;
  int token;
  int last;  // the last id that can be drawn
};

// The same variable in block `rank` of the cluster.
template <class T>
__device__ __forceinline__ T* peer(T* p, int rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return p;
#endif
}
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

// One block's part of the work on a row. All members are called by all threads of the cluster.
class RowSampler {
 public:
  // `x` and `marks` [slice] are this block's to write; `marks` is null when no row needs them.
  __device__ RowSampler(Shared& shared, float* x, unsigned* marks, const float* logits, int vocab,
                        int slice, int rank, int cluster)
      : s_(shared),
        x_(x),
        marks_(marks),
        logits_(logits),
        begin_(rank * slice),
        count_(min(max(vocab - rank * slice, 0), slice)),
        rank_(rank),
        cluster_(cluster),
        tid_(static_cast<int>(threadIdx.x)) {}

  __device__ void load() {
    if ((reinterpret_cast<uintptr_t>(logits_ + begin_) % 16) == 0) {
      const auto* from = reinterpret_cast<const float4*>(logits_ + begin_);
#pragma unroll 4
      for (int i = tid_; i < count_ / 4; i += kThreads) {
        const float4 v = from[i];
        reinterpret_cast<float4*>(x_)[i] = {sane(v.x), sane(v.y), sane(v.z), sane(v.w)};
      }
      for (int i = count_ / 4 * 4 + tid_; i < count_; i += kThreads)
        x_[i] = sane(logits_[begin_ + i]);
    } else {
      for (int i = tid_; i < count_; i += kThreads) x_[i] = sane(logits_[begin_ + i]);
    }
    cluster_sync();  // of the cluster: from here on the others' memory may be written
  }

  // Whether the row was changed.
  __device__ bool modify(const RowTask& task, const int32_t* ids, const int32_t* previous) {
    const int32_t* list = ids + task.ids;
    bool changed = false;
    if (task.num_allowed >= 0) {
      changed = true;
      clear_marks();
      for (int i = tid_; i < task.num_allowed; i += kThreads) {
        if (here(list[i])) marks_[list[i] - begin_] = 1;
      }
      __syncthreads();
      for (int i = tid_; i < count_; i += kThreads) {
        if (marks_[i] == 0) x_[i] = -INFINITY;
      }
      __syncthreads();
      list += task.num_allowed;
    }
    if (task.num_banned > 0) {
      changed = true;
      for (int i = tid_; i < task.num_banned; i += kThreads) {
        if (here(list[i])) x_[list[i] - begin_] = -INFINITY;
      }
      __syncthreads();
      list += task.num_banned;
    }
    if (task.num_bias > 0) {
      changed = true;
      for (int i = tid_; i < task.num_bias; i += kThreads) {
        if (!here(list[i])) continue;
        float& x = x_[list[i] - begin_];
        x = sane(x + __int_as_float(list[task.num_bias + i]));
      }
      __syncthreads();
      list += 2 * task.num_bias;
    }
    if (task.num_prompt + task.num_output > 0 || task.pending >= 0) {
      changed = true;
      penalize(task, list, previous);
    }
    return changed;
  }

  // The likeliest id of the row.
  __device__ Place find_top() {
    Place best = 0;
    for (int i = tid_; i < count_; i += kThreads) {
      const Place place = place_of(x_[i], begin_ + i);
      best = best > place ? best : place;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const Place other = __shfl_xor_sync(0xffffffffu, best, offset);
      best = best > other ? best : other;
    }
    // Lane r tells block r.
    const int lane = tid_ % 32;
    if (lane < cluster_) *peer(&s_.maxima[rank_ * kWarps + tid_ / 32], lane) = best;
    cluster_sync();
    best = 0;
    for (int i = lane; i < cluster_ * kWarps; i += 32)
      best = best > s_.maxima[i] ? best : s_.maxima[i];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const Place other = __shfl_xor_sync(0xffffffffu, best, offset);
      best = best > other ? best : other;
    }
    return best;
  }

  // After find_top(); `top` is not masked.
  __device__ int draw(const RowTask& task, Place top) {
    top_ = value_of(static_cast<uint32_t>(top >> 32));
    inverse_temperature_ = task.inverse_temperature;
    min_p_ = task.min_p;
    Place end = kMasked + 1;  // ids from here on stay
    if (task.top_k > 0) end = kth(task.top_k, top);
    if (task.top_p < 1.0f) {
      double mass[1] = {0};
      for (int i = tid_; i < count_; i += kThreads) {
        if (place_of(x_[i], begin_ + i) >= end) mass[0] += weight(x_[i]);
      }
      add_up(mass);
      const unsigned inside = task.top_k > 0 && task.top_k <= kFew ? task.top_k : 0xffffffffu;
      end = boundary(task.top_p * mass[0], true, end - 1, top, inside);
    }
    return pick(task.share, end);
  }

  // Log-softmax value and rank of the token and the likeliest ids, of x as it is now.
  __device__ RowResult describe(int token, float own, int num_top, int vocab, TopEntry* out) {
    cluster_sync();  // all have read the maxima of before
    const Place top = find_top();
    top_ = value_of(static_cast<uint32_t>(top >> 32));
    inverse_temperature_ = 1.0f;
    min_p_ = 0.0f;
    const Place place = place_of(own, token);
    double sums[2] = {0, 0};
    for (int i = tid_; i < count_; i += kThreads) {
      if (top > kMasked) sums[0] += weight(x_[i]);
      sums[1] += place_of(x_[i], begin_ + i) > place ? 1.0 : 0.0;
    }
    add_up(sums);
    const double lse = top > kMasked ? top_ + log(sums[0]) : 0.0;
    RowResult result{lse, token, static_cast<float>(own - lse), 1 + static_cast<int>(sums[1]), 0};
    if (num_top <= 0 || top <= kMasked) return result;

    const Place end = num_top < vocab ? kth(num_top, top) : kMasked + 1;
    unsigned mine = 0;
    for (int i = tid_; i < count_; i += kThreads) mine += place_of(x_[i], begin_ + i) >= end;
    double total = 0;
    int at = static_cast<int>(position_of(mine, total));
    for (int i = tid_; i < count_; i += kThreads) {
      if (place_of(x_[i], begin_ + i) < end) continue;
      out[at++] = {begin_ + i, x_[i]};
    }
    result.num_top = static_cast<int>(total);
    return result;
  }

  // Before a block ends: others may still read its shared memory.
  __device__ void finish() { cluster_sync(); }

 private:
  __device__ bool here(int id) const { return id >= begin_ && id < begin_ + count_; }

  __device__ void clear_marks() {
    for (int i = tid_; i < count_; i += kThreads) marks_[i] = 0;
    __syncthreads();
  }

  __device__ void penalize(const RowTask& task, const int32_t* list, const int32_t* previous) {
    constexpr unsigned kSeen = 0x80000000u;  // in the prompt; the other bits count outputs
    clear_marks();
    for (int i = tid_; i < task.num_prompt; i += kThreads) {
      if (here(list[i])) atomicOr(&marks_[list[i] - begin_], kSeen);
    }
    list += task.num_prompt;
    for (int i = tid_; i < task.num_output; i += kThreads) {
      if (here(list[i])) atomicAdd(&marks_[list[i] - begin_], 1u);
    }
    if (tid_ == 0 && task.pending >= 0 && here(previous[task.pending]))
      atomicAdd(&marks_[previous[task.pending] - begin_], 1u);
    __syncthreads();
    for (int i = tid_; i < count_; i += kThreads) {
      const unsigned mark = marks_[i];
      float x = x_[i];
      if (mark == 0 || x == -INFINITY) continue;
      const unsigned count = mark & ~kSeen;
      x = x > 0 ? x / task.repetition_penalty : __fmul_rn(x, task.repetition_penalty);
      x = __fsub_rn(x, __fmul_rn(task.frequency_penalty, static_cast<float>(count)));
      if (count > 0) x = __fsub_rn(x, task.presence_penalty);
      x_[i] = sane(x);
    }
    __syncthreads();
  }

  __device__ __forceinline__ float weight(float x) const {
    const float p = expf(__fmul_rn(x - top_, inverse_temperature_));
    return p >= min_p_ ? p : 0.0f;
  }

  // Sums over the cluster; all threads get them. `counts` [kCounts] likewise.
  template <int kSums, int kCounts = 0>
  __device__ void add_up(double (&sums)[kSums], unsigned* counts = nullptr) {
    static_assert(kSums + kCounts <= 8 && kSums <= 4 && kCounts <= 4);
    const int warp = tid_ / 32, lane = tid_ % 32;
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2)
        sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], offset);
      if (lane == 0) s_.warps[j][warp] = sums[j];
    }
#pragma unroll
    for (int j = 0; j < kCounts; ++j) {
      const unsigned n = __reduce_add_sync(0xffffffffu, counts[j]);
      if (lane == 0) s_.counts[j][warp] = n;
    }
    __syncthreads();
    double* mine = s_.published[turn_];
    unsigned* mine_counts = s_.published_counts[turn_];
    if (tid_ < kSums) {
      double sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += s_.warps[tid_][w];
      mine[tid_] = sum;
    } else if (tid_ >= 32 && tid_ < 32 + kCounts) {
      unsigned n = 0;
      for (int w = 0; w < kWarps; ++w) n += s_.counts[tid_ - 32][w];
      mine_counts[tid_ - 32] = n;
    }
    cluster_sync();
    if (tid_ < kSums) {
      double sum = 0;
      for (int r = 0; r < cluster_; ++r) sum += *peer(&mine[tid_], r);
      s_.result[tid_] = sum;
    } else if (tid_ >= 32 && tid_ < 32 + kCounts) {
      unsigned n = 0;
      for (int r = 0; r < cluster_; ++r) n += *peer(&mine_counts[tid_ - 32], r);
      s_.result_counts[tid_ - 32] = n;
    }
    turn_ ^= 1;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kSums; ++j) sums[j] = s_.result[j];
#pragma unroll
    for (int j = 0; j < kCounts; ++j) counts[j] = s_.result_counts[j];
  }

  // Sum of `value` over the threads of the cluster before this one; `own_end` is the sum with this
  // one, the very number that the next thread of the block gets.
  __device__ double sum_before(double value, double& own_end, double& total) {
    const int warp = tid_ / 32, lane = tid_ % 32;
    double sum = value;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const double other = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (lane == 31) s_.scan[warp] = sum;
    __syncthreads();
    if (tid_ == 0) {
      double block = 0;
      for (int w = 0; w < kWarps; ++w) block += s_.scan[w];
      s_.published[turn_][0] = block;
    }
    cluster_sync();
    if (tid_ == 0) {
      double others = 0, all = 0;
      for (int r = 0; r < cluster_; ++r) {
        if (r == rank_) others = all;
        all += *peer(&s_.published[turn_][0], r);
      }
      s_.result[0] = others;
      s_.result[1] = all;
    }
    turn_ ^= 1;
    __syncthreads();
    total = s_.result[1];
    double base = s_.result[0];
    for (int w = 0; w < warp; ++w) base += s_.scan[w];
    const double previous_lane = __shfl_up_sync(0xffffffffu, sum, 1);
    own_end = base + sum;
    return lane == 0 ? base : base + previous_lane;
  }

  __device__ double position_of(unsigned count, double& total) {
    double end = 0;
    return sum_before(count, end, total);
  }

  // The k-th likeliest id, kMasked + 1 when fewer are there; after find_top().
  __device__ Place kth(int k, Place top) {
    // The k-th largest of the warps' maxima has at least k ids from it on.
    Place bound = kMasked;
    const int warps = cluster_ * kWarps;
    if (tid_ == 0) s_.boundary = kMasked + 1;
    __syncthreads();
    if (k <= warps && tid_ < warps) {
      const Place own = s_.maxima[tid_];
      int rank = 0;
      for (int i = 0; i < warps; ++i) rank += s_.maxima[i] >= own;
      if (rank == k && own > kMasked) s_.boundary = own;
    }
    __syncthreads();
    bound = s_.boundary - 1;
    return boundary(k, false, bound, top, 0xffffffffu);
  }

  // The largest place T in (low, high] such that the ids in [T, high] have the weight `goal` or
  // more (each 1, or its mass); low + 1 when all of them have not. `inside`: ids in (low, high].
  __device__ Place boundary(double goal, bool by_mass, Place low, Place high, unsigned inside) {
    constexpr int kByValue = 8;
    double base = 0;  // weight of the ids above `high`
    for (int round = 0; inside > kFew; ++round) {
      Place t[3];
      const Place quarter = (high - low) / 4 > 0 ? (high - low) / 4 : 1;
      const float x0 = value_of(static_cast<uint32_t>(low >> 32));
      const float x1 = value_of(static_cast<uint32_t>(high >> 32));
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        t[j] = low + 1 + quarter * (j + 1);
        // Logits lie evenly enough for steps in their values; in their bits it always ends.
        if (by_mass && round == 0) {
          const float depth = j == 0 ? 8.0f : j == 1 ? 4.0f : 1.5f;  // in temperatures
          t[j] = Place{ordered(x1 - depth / inverse_temperature_)} << 32;
        } else if (round < kByValue && low > kMasked) {
          t[j] = Place{ordered(x0 + (x1 - x0) * (0.25f * static_cast<float>(j + 1)))} << 32;
        }
        t[j] = t[j] <= low ? low + 1 : t[j] > high ? high : t[j];
      }
      double w[3] = {0, 0, 0};
      unsigned n[4] = {0, 0, 0, 0};
      const auto low_bits = static_cast<uint32_t>(low >> 32);
      const auto high_bits = static_cast<uint32_t>(high >> 32);
      for (int i = tid_; i < count_; i += kThreads) {
        const float x = x_[i];
        const uint32_t bits = ordered(x);
        if (bits < low_bits || bits > high_bits) continue;
        const Place place = place_of(x, begin_ + i);
        if (place <= low || place > high) continue;
        const double p = by_mass ? weight(x) : 0.0f;
        ++n[3];
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          if (place < t[j]) continue;
          w[j] += p;
          ++n[j];
        }
      }
      add_up<3, 4>(w, n);
      if (!by_mass) {
#pragma unroll
        for (int j = 0; j < 3; ++j) w[j] = n[j];
      }
      if (base + w[2] >= goal) {
        low = t[2] - 1;
        inside = n[2];
      } else if (base + w[1] >= goal) {
        low = t[1] - 1;
        high = t[2] - 1;
        base += w[2];
        inside = n[1] - n[2];
      } else if (base + w[0] >= goal) {
        low = t[0] - 1;
        high = t[1] - 1;
        base += w[1];
        inside = n[0] - n[1];
      } else {
        high = t[0] - 1;
        base += w[0];
        inside = n[3] - n[0];
      }
    }
    return among_few(goal, base, by_mass, low, high);
  }

  __device__ Place among_few(double goal, double base, bool by_mass, Place low, Place high) {
    const auto wanted = [&](int i) {
      const Place place = place_of(x_[i], begin_ + i);
      return place > low && place <= high;
    };
    unsigned mine = 0;
    for (int i = tid_; i < count_; i += kThreads) mine += wanted(i) ? 1 : 0;
    double total = 0;
    int at = static_cast<int>(position_of(mine, total));
    if (mine > 0) {
      for (int i = tid_; i < count_; i += kThreads) {
        if (!wanted(i)) continue;
        const double w = by_mass ? weight(x_[i]) : 1.0f;
        for (int r = 0; r < cluster_; ++r) {
          *peer(&s_.few[at], r) = place_of(x_[i], begin_ + i);
          *peer(&s_.few_weights[at], r) = w;
        }
        ++at;
      }
    }
    if (tid_ == 0) s_.boundary = low + 1;
    cluster_sync();
    const int count = static_cast<int>(total);
    if (tid_ < count) {
      const Place own = s_.few[tid_];
      double with = base, without = base;
      for (int i = 0; i < count; ++i) {
        const Place place = s_.few[i];
        const double w = s_.few_weights[i];
        if (place >= own) with += w;
        if (place > own) without += w;
      }
      if (with >= goal && without < goal) s_.boundary = own;
    }
    __syncthreads();
    const Place found = s_.boundary;
    __syncthreads();
    return found;
  }

  // The id at which the running sum of weights, in the order of ids, passes `share` of their total.
  // Only ids from `end` on count.
  __device__ int pick(double share, Place end) {
    const int per = ((count_ + kThreads - 1) / kThreads) | 1;  // odd: no bank conflicts
    const int first = min(tid_ * per, count_), stop = min(first + per, count_);
    double mass = 0;
    int last = -1;
    for (int i = first; i < stop; ++i) {
      if (place_of(x_[i], begin_ + i) < end) continue;
      const float p = weight(x_[i]);
      mass += p;
      if (p > 0) last = i;
    }
    if (tid_ == 0) {
      s_.token = -1;
      s_.last = -1;
    }
    double own_end = 0, total = 0;
    const double before = sum_before(mass, own_end, total);
    const double target = share * total;
    int token = -1;
    if (last >= 0 && target >= before && target < own_end) {
      double left = target - before;
      token = last;
      for (int i = first; i < stop; ++i) {
        if (place_of(x_[i], begin_ + i) < end) continue;
        left -= weight(x_[i]);
        if (left < 0) {
          token = i;
          break;
        }
      }
    }
    for (int r = 0; r < cluster_; ++r) {
      if (token >= 0) atomicMax(peer(&s_.token, r), begin_ + token);
      // Rounding may carry the sum past the last id.
      if (last >= 0) atomicMax(peer(&s_.last, r), begin_ + last);
    }
    cluster_sync();
    return s_.token >= 0 ? s_.token : s_.last;
  }

  Shared& s_;
  float* x_;
  unsigned* marks_;
  const float* logits_;
  int begin_, count_, rank_, cluster_, tid_;
  int turn_ = 0;
  float top_ = 0, inverse_temperature_ = 1, min_p_ = 0;
};

// What a cluster does with its row. `tokens` may be null.
__device__ inline void sample_row(RowSampler& row, const RowTask& task, const float* logits,
                                  int vocab, const int32_t* ids, const int32_t* previous,
                                  RowResult& result, TopEntry* tops, int32_t* token_out,
                                  bool writes) {
  row.load();
  bool changed = false;
  int token = task.token;
  if (task.kind != Kind::kScore) {
    changed = row.modify(task, ids, previous);
    const Place top = row.find_top();
    if (top > kMasked) token = task.kind == Kind::kGreedy ? id_of(top) : row.draw(task, top);
  }
  RowResult found{0.0, token, 0.0f, 0, 0};
  if (task.num_top >= 0) {
    if (changed) row.load();
    found = row.describe(token, sane(logits[token]), task.num_top, vocab, tops + task.top_begin);
  }
  if (writes) {
    result = found;
    if (token_out != nullptr) *token_out = token;
  }
  row.finish();
}

}  // namespace reft::sampling
