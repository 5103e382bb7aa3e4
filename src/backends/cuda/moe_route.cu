// Routing of tokens to experts: the choice, the rows sorted by expert, and the tiles that the
// products of moe_linear.cu work by. Few tokens take one kernel.
#include <algorithm>

#include "backends/cuda/common.h"
#include "backends/cuda/moe.h"

namespace reft {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxTopK = 32;     // one for each lane
constexpr int kMaxPerLane = 16;  // experts
constexpr int kMaxGroups = 32;
constexpr int64_t kFewTokens = 32;  // that one block routes and sorts
constexpr int kTokenWarps = 8;      // tokens of a block otherwise
constexpr int kPlaceWarps = 8;

struct RouteArgs {
  const float* logits;
  const float* bias;  // or null
  int64_t tokens;
  int experts;
  RouterOptions options;
  int32_t* chosen;
  float* weights;
  int32_t* offsets;
  int32_t* pairs;
  int32_t* rows;
  int2* tiles;
  int num_tiles;
  int tile_rows;
};

// The largest value of the warp and where it is; of equal ones the lowest. index < 0: none.
__device__ __forceinline__ void warp_best(float& value, int& index) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, offset);
    const int place = __shfl_xor_sync(kAllLanes, index, offset);
    const bool better =
        place >= 0 && (index < 0 || other > value || (other == value && place < index));
    value = better ? other : value;
    index = better ? place : index;
  }
}

// Bit i of `open` says whether the lane's i-th expert, lane + 32 i, may be chosen.
template <int kPerLane>
__device__ __forceinline__ int take_best(const float (&choice)[kPerLane], uint32_t& open,
                                         int lane) {
  float value = 0.0f;
  int index = -1;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if ((open >> i & 1u) != 0 && (index < 0 || choice[i] > value)) {
      value = choice[i];
      index = lane + 32 * i;
    }
  }
  warp_best(value, index);
  if (index >= 0 && index % 32 == lane) open &= ~(1u << (index / 32));
  return index;
}

// Closes the experts of all groups but the best. `scratch`: [experts] of this warp.
template <int kPerLane>
__device__ void exclude_groups(const float (&choice)[kPerLane], uint32_t& open, int lane,
                               float* scratch, const RouteArgs& args) {
  const RouterOptions& o = args.options;
  const int groups = static_cast<int>(o.num_groups), size = args.experts / groups;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if ((open >> i & 1u) != 0) scratch[lane + 32 * i] = choice[i];
  }
  __syncwarp();
  float score[1] = {0.0f};
  uint32_t candidate = lane < groups ? 1u : 0u;
  if (lane < groups) {
    const float* own = scratch + lane * size;
    int last = -1;  // the members so far are those not below (value, place) of the last one
    float last_value = 0.0f;
    for (int b = 0; b < o.group_best; ++b) {
      int best = -1;
      for (int i = 0; i < size; ++i) {
        const bool after = last < 0 || own[i] < last_value || (own[i] == last_value && i > last);
        if (after && (best < 0 || own[i] > own[best])) best = i;
      }
      score[0] += own[best];
      last = best;
      last_value = own[best];
    }
  }
  uint32_t kept = 0;
  for (int i = 0; i < o.top_groups; ++i) kept |= 1u << take_best<1>(score, candidate, lane);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    if (e < args.experts && (kept >> (e / size) & 1u) == 0) open &= ~(1u << i);
  }
}

// One warp, one token.
template <int kPerLane>
__device__ void route_token(const RouteArgs& args, int64_t token, int lane, float* scratch) {
  const RouterOptions& o = args.options;
  const float* logits = args.logits + token * args.experts;
  const float lowest = -INFINITY;
  float score[kPerLane], choice[kPerLane];
  uint32_t open = 0;
  float top = lowest;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    score[i] = e < args.experts ? logits[e] : lowest;
    if (e < args.experts) open |= 1u << i;
    top = fmaxf(top, score[i]);
  }
  if (o.score == RouterScore::kSoftmax) {
    top = warp_max(top);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      score[i] = (open >> i & 1u) != 0 ? expf(score[i] - top) : 0.0f;
      sum += score[i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) score[i] /= sum;
  } else if (o.score == RouterScore::kSigmoid) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) score[i] = 1.0f / (1.0f + expf(-score[i]));
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    choice[i] = score[i] + (args.bias != nullptr && e < args.experts ? args.bias[e] : 0.0f);
    if (isnan(choice[i])) choice[i] = lowest;
  }
  if (o.num_groups > 1) exclude_groups(choice, open, lane, scratch, args);

  const int k = static_cast<int>(o.top_k);
  float weight = 0.0f;  // lane j: of the j-th choice
  int mine = 0;
  for (int j = 0; j < k; ++j) {
    const int e = take_best(choice, open, lane);
    float value = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) value = i == e / 32 ? score[i] : value;
    value = __shfl_sync(kAllLanes, value, e % 32);
    if (lane == j) {
      weight = value;
      mine = e;
    }
  }
  const bool softmax_of_chosen = o.score == RouterScore::kSoftmaxOfTopK;
  if (softmax_of_chosen) {
    const float largest = warp_max(lane < k ? weight : lowest);
    weight = expf(weight - largest);
  }
  if (o.renormalize || softmax_of_chosen) {
    const float sum = warp_sum(lane < k ? weight : 0.0f);
    weight /= sum + (o.score == RouterScore::kSigmoid ? 1e-20f : 0.0f);
  }
  if (lane < k) {
    args.weights[token * k + lane] = weight * o.scale;
    args.chosen[token * k + lane] = mine;
  }
}

// One warp, one expert: its rows are the pairs that chose it, in order. `chosen` was written by
// other warps or kernels, so it is not read through the read-only cache.
__device__ void place_rows(const RouteArgs& args, int expert, int lane, const int32_t* chosen) {
  const int pairs = static_cast<int>(args.tokens * args.options.top_k);
  int before = 0;
  for (int base = 0; base < pairs; base += 32) {
    const int p = base + lane;
    const bool less = p < pairs && chosen[p] < expert;
    before += __popc(__ballot_sync(kAllLanes, less));
  }
  if (lane == 0) {
    args.offsets[expert] = before;
    if (expert == args.experts - 1) args.offsets[args.experts] = pairs;
  }
  for (int base = 0; base < pairs; base += 32) {
    const int p = base + lane;
    const bool own = p < pairs && chosen[p] == expert;
    const uint32_t mask = __ballot_sync(kAllLanes, own);
    if (own) {
      const int row = before + __popc(mask & ((1u << lane) - 1));
      args.rows[p] = row;
      args.pairs[row] = p;
    }
    before += __popc(mask);
  }
}

// One warp: cuts the experts' rows into tiles, in order; the rest of the table is -1.
__device__ void list_tiles(const RouteArgs& args, int lane, const int32_t* offsets) {
  int next = 0;
  for (int base = 0; base < args.experts; base += 32) {
    const int e = base + lane;
    const int begin = e < args.experts ? offsets[e] : 0;
    const int end = e < args.experts ? offsets[e + 1] : 0;
    const int count = (end - begin + args.tile_rows - 1) / args.tile_rows;
    int sum = count;  // of the lanes up to this one
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += other;
    }
    for (int i = 0; i < count; ++i)
      args.tiles[next + sum - count + i] = make_int2(e, begin + i * args.tile_rows);
    next += __shfl_sync(kAllLanes, sum, 31);
  }
  for (int i = next + lane; i < args.num_tiles; i += 32) args.tiles[i] = make_int2(-1, 0);
}

extern __shared__ float group_scratch[];  // [warps, experts], where there are groups

template <int kPerLane>
__global__ void __launch_bounds__(1024) route_few_kernel(RouteArgs args) {
  allow_next();
  await_inputs();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int64_t token = warp; token < args.tokens; token += warps)
    route_token<kPerLane>(args, token, lane, group_scratch + warp * args.experts);
  __syncthreads();
  for (int expert = warp; expert < args.experts; expert += warps)
    place_rows(args, expert, lane, args.chosen);
  __syncthreads();
  if (warp == 0) list_tiles(args, lane, args.offsets);
}

template <int kPerLane>
__global__ void route_tokens_kernel(RouteArgs args) {
  allow_next();
  await_inputs();
  const int warp = threadIdx.x / 32;
  const int64_t token = blockIdx.x * int64_t{kTokenWarps} + warp;
  if (token < args.tokens)
    route_token<kPerLane>(args, token, threadIdx.x % 32, group_scratch + warp * args.experts);
}

__global__ void place_rows_kernel(RouteArgs args) {
  allow_next();
  await_inputs();
  const int expert = blockIdx.x * kPlaceWarps + threadIdx.x / 32;
  if (expert < args.experts) place_rows(args, expert, threadIdx.x % 32, args.chosen);
}

__global__ void list_tiles_kernel(RouteArgs args) {
  allow_next();
  await_inputs();
  list_tiles(args, threadIdx.x, args.offsets);
}

template <int kPerLane>
void launch_route(const RouteArgs& args, int device) {
  const size_t scratch = args.options.num_groups > 1 ? args.experts * sizeof(float) : 0;
  if (args.tokens <= kFewTokens) {
    // Enough warps for the tokens and, a few each, the experts.
    const int64_t wanted = std::max<int64_t>(args.tokens, (args.experts + 3) / 4);
    const auto warps = static_cast<unsigned>(std::min<int64_t>(32, wanted));
    launch_dependent("route (few)", route_few_kernel<kPerLane>, device, dim3(1), warps * 32,
                     warps * scratch, args);
    return;
  }
  launch_dependent("route (tokens)", route_tokens_kernel<kPerLane>, device,
                   dim3(blocks_for(args.tokens, kTokenWarps)), kTokenWarps * 32,
                   kTokenWarps * scratch, args);
  launch_dependent("route (rows)", place_rows_kernel, device,
                   dim3(blocks_for(args.experts, kPlaceWarps)), kPlaceWarps * 32, 0, args);
  launch_dependent("route (tiles)", list_tiles_kernel, device, dim3(1), 32, 0, args);
}

void route_cuda(Routing& routing, const Tensor& logits, const Tensor& bias,
                const RouterOptions& options) {
  const int64_t pairs = routing.num_rows(), experts = routing.num_experts;
  if (pairs == 0) {
    routing.offsets.fill_zero();
    return;
  }
  check(options.top_k <= kMaxTopK && experts <= 32 * kMaxPerLane,
        "route: {} of {} experts on CUDA, where at most {} of {} are supported", options.top_k,
        experts, kMaxTopK, 32 * kMaxPerLane);
  check(options.num_groups <= kMaxGroups,
        "route: {} groups on CUDA, where at most {} are supported", options.num_groups, kMaxGroups);
  check(pairs < int64_t{1} << 31, "route: {} rows on CUDA", pairs);
  routing.tile_rows = moe_tile_rows(pairs, experts);
  const int64_t tiles = moe_max_tiles(pairs, experts, routing.tile_rows);
  routing.tiles = Tensor::empty({tiles, 2}, DType::kI32, logits.device());
  const RouteArgs args{.logits = ptr<float>(logits),
                       .bias = bias.defined() ? ptr<float>(bias) : nullptr,
                       .tokens = routing.num_tokens(),
                       .experts = static_cast<int>(experts),
                       .options = options,
                       .chosen = ptr<int32_t>(routing.experts),
                       .weights = ptr<float>(routing.weights),
                       .offsets = ptr<int32_t>(routing.offsets),
                       .pairs = ptr<int32_t>(routing.pairs),
                       .rows = ptr<int32_t>(routing.rows),
                       .tiles = ptr<int2>(routing.tiles),
                       .num_tiles = static_cast<int>(tiles),
                       .tile_rows = static_cast<int>(routing.tile_rows)};
  const int device = logits.device().index;
  if (experts <= 32) return launch_route<1>(args, device);
  if (experts <= 64) return launch_route<2>(args, device);
  if (experts <= 128) return launch_route<4>(args, device);
  if (experts <= 256) return launch_route<8>(args, device);
  launch_route<kMaxPerLane>(args, device);
}

const RegisterKernel r(route_kernel, DeviceType::kCuda, &route_cuda);

}  // namespace
}  // namespace reft
