// Sampling. Greedy rows without further wishes are decided on the device; a step that has any other
// row is sampled by the CPU kernel on a copy of the logits, so that both devices draw the same
// tokens.
#include <algorithm>

#include "backends/cuda/common.h"
#include "ops/sampling.h"

namespace reft {
namespace {

struct GreedyResult {
  int32_t token;
  float logprob;
};

// NaN counts as −inf; ties go to the lowest id.
__device__ __forceinline__ bool better(float a, int32_t a_id, float b, int32_t b_id) {
  return a > b || (a == b && a_id < b_id);
}

__global__ void greedy_kernel(GreedyResult* __restrict__ out, const float* __restrict__ logits,
                              int64_t vocab) {
  __shared__ float best_values[32], sums[32];
  __shared__ int32_t best_ids[32];
  const float* row = logits + blockIdx.x * vocab;
  float best = -INFINITY, sum = 0.0f;  // sum of exp(x − best)
  int32_t best_id = 0x7fffffff;
  for (int64_t i = threadIdx.x; i < vocab; i += blockDim.x) {
    const float x = isnan(row[i]) ? -INFINITY : row[i];
    if (better(x, static_cast<int32_t>(i), best, best_id)) {
      sum = best == -INFINITY ? (x == -INFINITY ? 0.0f : 1.0f) : sum * expf(best - x) + 1.0f;
      best = x;
      best_id = static_cast<int32_t>(i);
    } else if (x != -INFINITY) {
      sum += expf(x - best);
    }
  }
  const auto merge = [&](float other, int32_t other_id, float other_sum) {
    const float top = fmaxf(best, other);
    const float own_part = best == -INFINITY ? 0.0f : sum * expf(best - top);
    const float other_part = other == -INFINITY ? 0.0f : other_sum * expf(other - top);
    sum = own_part + other_part;
    if (better(other, other_id, best, best_id)) {
      best = other;
      best_id = other_id;
    }
  };
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_down_sync(0xffffffffu, best, offset);
    const int32_t other_id = __shfl_down_sync(0xffffffffu, best_id, offset);
    const float other_sum = __shfl_down_sync(0xffffffffu, sum, offset);
    merge(other, other_id, other_sum);
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (lane == 0) {
    best_values[warp] = best;
    best_ids[warp] = best_id;
    sums[warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < warps; ++w) merge(best_values[w], best_ids[w], sums[w]);
  // A row without any number at all has no most likely token: id 0, as the CPU kernel says.
  out[blockIdx.x] = {best_id == 0x7fffffff ? 0 : best_id, -logf(sum)};
}

bool plain_greedy(const SampleRow& row) {
  return row.temperature < 1e-5f && row.repetition_penalty == 1.0f &&
         row.presence_penalty == 0.0f && row.frequency_penalty == 0.0f &&
         (row.bias == nullptr || row.bias->empty()) &&
         (row.allowed_ids == nullptr || row.allowed_ids->empty()) &&
         (row.banned_ids == nullptr || row.banned_ids->empty()) && row.num_logprobs <= 0;
}

void sample_cuda(std::vector<SampleResult>& out, Tensor& logits,
                 const std::vector<SampleRow>& rows) {
  if (!std::all_of(rows.begin(), rows.end(), plain_greedy)) {
    Tensor host = logits.to(kCpuDevice);
    sample_kernel(kCpuDevice, out, host, rows);
    return;
  }
  const auto count = static_cast<int64_t>(rows.size());
  const Tensor results = Tensor::empty({count, 2}, DType::kF32, logits.device());
  greedy_kernel<<<static_cast<unsigned>(count), 1024, 0, stream_of(logits)>>>(
      reinterpret_cast<GreedyResult*>(results.raw()), ptr<float>(logits), logits.size(1));
  check_launch("sample");
  const Tensor host = results.to(kCpuDevice);
  const auto* values = reinterpret_cast<const GreedyResult*>(host.raw());
  for (size_t i = 0; i < rows.size(); ++i)
    out[i] = {.token = values[i].token, .logprob = values[i].logprob, .rank = 1};
}

void score_cuda(std::vector<SampleResult>& out, const Tensor& logits,
                const std::vector<int32_t>& targets, int32_t top) {
  score_kernel(kCpuDevice, out, logits.to(kCpuDevice), targets, top);
}

const RegisterKernel r1(sample_kernel, DeviceType::kCuda, &sample_cuda);
const RegisterKernel r2(score_kernel, DeviceType::kCuda, &score_cuda);

}  // namespace
}  // namespace reft
