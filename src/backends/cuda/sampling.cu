// Sampling. Greedy rows without further wishes are decided on the device; a step that has any other
// row is sampled by the CPU kernel on a copy of the logits, so that both devices draw the same
// tokens.
#include <algorithm>

#include "backends/cuda/common.h"
#include "ops/sampling.h"

namespace reft {
namespace {

// The most likely token of a stretch of a row, and Σ exp(x − best) over it.
struct Best {
  float value;
  int32_t id;
  float sum;
};

struct GreedyResult {
  int32_t token;
  float logprob;
};

constexpr int kGreedyThreads = 256;
constexpr int kGreedyParts = 64;  // blocks of a row

// NaN counts as −inf; ties go to the lowest id.
__device__ __forceinline__ void merge(Best& a, const Best& b) {
  const float top = fmaxf(a.value, b.value);
  const float own = a.value == -INFINITY ? 0.0f : a.sum * expf(a.value - top);
  const float other = b.value == -INFINITY ? 0.0f : b.sum * expf(b.value - top);
  if (b.value > a.value || (b.value == a.value && b.id < a.id)) a = b;
  a.sum = own + other;
}

__device__ __forceinline__ Best merge_warp(Best best) {
  for (int offset = 16; offset > 0; offset /= 2) {
    merge(best, {__shfl_xor_sync(0xffffffffu, best.value, offset),
                 __shfl_xor_sync(0xffffffffu, best.id, offset),
                 __shfl_xor_sync(0xffffffffu, best.sum, offset)});
  }
  return best;
}

// parts: [R, kGreedyParts].
__global__ void greedy_parts_kernel(Best* __restrict__ parts, const float* __restrict__ logits,
                                    int64_t vocab) {
  __shared__ Best warps[kGreedyThreads / 32];
  const float* row = logits + blockIdx.y * vocab;
  Best best{-INFINITY, 0x7fffffff, 0.0f};
  for (int64_t i = blockIdx.x * int64_t{kGreedyThreads} + threadIdx.x; i < vocab;
       i += int64_t{kGreedyParts} * kGreedyThreads) {
    if (!isnan(row[i])) merge(best, {row[i], static_cast<int32_t>(i), 1.0f});
  }
  best = merge_warp(best);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kGreedyThreads / 32; ++w) merge(best, warps[w]);
  parts[blockIdx.y * kGreedyParts + blockIdx.x] = best;
}

// One warp per row.
__global__ void greedy_final_kernel(GreedyResult* __restrict__ out,
                                    const Best* __restrict__ parts) {
  const Best* row = parts + blockIdx.x * kGreedyParts;
  Best best = row[threadIdx.x];
  for (int p = threadIdx.x + 32; p < kGreedyParts; p += 32) merge(best, row[p]);
  best = merge_warp(best);
  // A row without any number at all has no most likely token: id 0, as the CPU kernel says.
  if (threadIdx.x == 0) out[blockIdx.x] = {best.id == 0x7fffffff ? 0 : best.id, -logf(best.sum)};
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
  const Tensor parts =
      Tensor::empty({count * kGreedyParts * int64_t{sizeof(Best)}}, DType::kU8, logits.device());
  greedy_parts_kernel<<<dim3(kGreedyParts, static_cast<unsigned>(count)), kGreedyThreads, 0,
                        stream_of(logits)>>>(ptr<Best>(parts), ptr<float>(logits), logits.size(1));
  greedy_final_kernel<<<static_cast<unsigned>(count), 32, 0, stream_of(logits)>>>(
      reinterpret_cast<GreedyResult*>(results.raw()), ptr<Best>(parts));
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
