// Sampling. Steps of plain greedy rows spread each row over many blocks; all others go to a cluster
// of blocks a row (sampling_row.h). Rules go up in one copy, results come back in one.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "backends/cuda/sampling_row.h"
#include "backends/cuda/staging.h"
#include "ops/philox.h"
#include "ops/sampling.h"

namespace reft {
namespace {

using sampling::Kind;
using sampling::RowResult;
using sampling::RowTask;
using sampling::sane;
using sampling::TopEntry;

constexpr float kGreedyBelow = 1e-5f;  // temperature

// ---- plain greedy rows ----

// The most likely token of a stretch of a row, and Σ exp(x − best) over it.
struct Best {
  float value;
  int32_t id;
  float sum;
};

constexpr int kGreedyThreads = 256;
constexpr int kGreedyParts = 64;  // blocks of a row

// Ties go to the lowest id.
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
    if (!isnan(row[i])) merge(best, {sane(row[i]), static_cast<int32_t>(i), 1.0f});
  }
  best = merge_warp(best);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kGreedyThreads / 32; ++w) merge(best, warps[w]);
  parts[blockIdx.y * kGreedyParts + blockIdx.x] = best;
}

// One warp per row.
__global__ void greedy_final_kernel(RowResult* __restrict__ out, int32_t* __restrict__ tokens,
                                    const Best* __restrict__ parts) {
  const Best* row = parts + blockIdx.x * kGreedyParts;
  Best best = row[threadIdx.x];
  for (int p = threadIdx.x + 32; p < kGreedyParts; p += 32) merge(best, row[p]);
  best = merge_warp(best);
  if (threadIdx.x != 0) return;
  // A row without any number at all has no most likely token: id 0, as the CPU kernel says.
  const int32_t token = best.value == -INFINITY ? 0 : best.id;
  out[blockIdx.x] = {0.0, token, best.value == -INFINITY ? -INFINITY : -logf(best.sum), 1, 0};
  tokens[blockIdx.x] = token;
}

bool penalizes(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
         row.frequency_penalty != 0.0f;
}

bool plain_greedy(const SampleRow& row) {
  return row.temperature < kGreedyBelow && !penalizes(row) &&
         (row.bias == nullptr || row.bias->empty()) && row.allowed_ids == nullptr &&
         (row.banned_ids == nullptr || row.banned_ids->empty()) && row.num_logprobs <= 0;
}

// ---- all other rows ----

struct ClusterArgs {
  const float* logits;
  const RowTask* tasks;
  const int32_t* ids;
  const int32_t* previous;
  RowResult* results;
  TopEntry* tops;
  int32_t* tokens;
  float* scratch;           // [R, blocks, slice] where shared memory does not hold the slices
  unsigned* marks_scratch;  // likewise
  int vocab;
  int slice;
};

// Grid: (blocks of a cluster, rows).
__global__ void __launch_bounds__(sampling::kThreads, 2) sample_rows_kernel(ClusterArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<sampling::Shared*>(memory);
  const int rank = static_cast<int>(blockIdx.x), cluster = static_cast<int>(gridDim.x);
  const int64_t row = blockIdx.y;
  const int64_t at = (row * cluster + rank) * args.slice;
  auto* x = reinterpret_cast<float*>(memory + sizeof(sampling::Shared));
  auto* marks = reinterpret_cast<unsigned*>(args.scratch == nullptr ? x + args.slice : x);
  if (args.scratch != nullptr) x = args.scratch + at;
  if (args.marks_scratch != nullptr) marks = args.marks_scratch + at;
  await_inputs();
  const RowTask& task = args.tasks[row];
  const float* logits = args.logits + row * args.vocab;
  sampling::RowSampler sampler(shared, x, marks, logits, args.vocab, args.slice, rank, cluster);
  sampling::sample_row(
      sampler, task, logits, args.vocab, args.ids, args.previous, args.results[row], args.tops,
      args.tokens == nullptr ? nullptr : args.tokens + row, rank == 0 && threadIdx.x == 0);
}
static_assert(sizeof(sampling::Shared) % 16 == 0);

// Results on their way to the host: [R] RowResult, then the lists of likely ids.
class CudaSamples final : public PendingSamples {
 public:
  CudaSamples(const Tensor& results, int64_t rows, std::vector<int32_t> top_begin)
      : rows_(rows),
        bytes_(static_cast<size_t>(results.nbytes())),
        top_begin_(std::move(top_begin)) {
    const int index = results.device().index;
    if (bytes_ > Staging::kLargest) {  // a large scored prompt: no use in going on beside it
      far_ = results;
      return;
    }
    staging_ = std::make_unique<Staging>(index, bytes_);
    cuda_check(cudaMemcpyAsync(staging_->data(), results.raw(), bytes_, cudaMemcpyDeviceToHost,
                               cuda_stream(index)),
               "copying results");
    staging_->record();
  }

  bool ready() const override { return staging_ == nullptr || staging_->done(); }

  std::vector<SampleResult> wait() override {
    const std::byte* data = nullptr;
    if (staging_ != nullptr) {
      staging_->wait();
      data = static_cast<const std::byte*>(staging_->data());
    } else {
      far_ = far_.to(kCpuDevice);
      data = far_.raw();
    }
    const auto* rows = reinterpret_cast<const RowResult*>(data);
    const auto* tops = reinterpret_cast<const TopEntry*>(data + sizeof(RowResult) * rows_);
    std::vector<SampleResult> out(static_cast<size_t>(rows_));
    for (size_t r = 0; r < out.size(); ++r) {
      out[r] = {.token = rows[r].token, .logprob = rows[r].logprob, .rank = rows[r].rank};
      if (rows[r].num_top == 0) continue;
      const TopEntry* top = tops + top_begin_[r];
      for (int i = 0; i < rows[r].num_top; ++i) out[r].top.emplace_back(top[i].id, top[i].logit);
      std::ranges::sort(out[r].top, [](const auto& a, const auto& b) {
        return a.second != b.second ? a.second > b.second : a.first < b.first;
      });
      for (auto& [id, value] : out[r].top) value = static_cast<float>(value - rows[r].lse);
    }
    return out;
  }

 private:
  int64_t rows_;
  size_t bytes_;
  std::vector<int32_t> top_begin_;
  std::unique_ptr<Staging> staging_;
  Tensor far_;
};

// Rows and their lists of ids, as they are sent to the device.
struct Tasks {
  std::vector<RowTask> rows;
  std::vector<int32_t> ids;
  std::vector<int32_t> top_begin;
  int64_t num_tops = 0;
  bool marks = false;  // some row needs them

  void add(RowTask task, int64_t vocab) {
    top_begin.push_back(static_cast<int32_t>(num_tops));
    task.num_top = static_cast<int32_t>(std::min<int64_t>(task.num_top, vocab));
    task.top_begin = top_begin.back();
    num_tops += std::max(0, task.num_top);
    rows.push_back(task);
  }
};

RowTask task_of(const SampleRow& row, int64_t vocab, Tasks& tasks) {
  RowTask task{.share = philox_uniform(row.seed, row.position),
               .kind = row.temperature < kGreedyBelow ? Kind::kGreedy : Kind::kDraw,
               .token = 0,
               .inverse_temperature = 1.0f / row.temperature,
               .top_k = row.top_k > 0 && row.top_k < vocab ? row.top_k : 0,
               .top_p = row.top_p,
               .min_p = row.min_p,
               .repetition_penalty = row.repetition_penalty,
               .presence_penalty = row.presence_penalty,
               .frequency_penalty = row.frequency_penalty,
               .pending = -1,
               .ids = static_cast<int32_t>(tasks.ids.size()),
               .num_allowed = -1,
               .num_top = row.num_logprobs};
  std::vector<int32_t>& ids = tasks.ids;
  const auto append = [&](const std::vector<int32_t>* list) {
    if (list == nullptr) return 0;
    ids.insert(ids.end(), list->begin(), list->end());
    return static_cast<int32_t>(list->size());
  };
  if (row.allowed_ids != nullptr) {
    task.num_allowed = append(row.allowed_ids);
    int32_t lowest = std::numeric_limits<int32_t>::max();
    for (const int32_t id : *row.allowed_ids) {
      if (id >= 0 && id < vocab) lowest = std::min(lowest, id);
    }
    if (lowest < vocab) task.token = lowest;
  }
  task.num_banned = append(row.banned_ids);
  if (row.bias != nullptr) {
    task.num_bias = static_cast<int32_t>(row.bias->size());
    for (const auto& [id, value] : *row.bias) ids.push_back(id);
    for (const auto& [id, value] : *row.bias) ids.push_back(std::bit_cast<int32_t>(value));
  }
  if (penalizes(row)) {
    if (row.repetition_penalty != 1.0f) task.num_prompt = append(row.prompt_ids);
    task.num_output = append(row.output_ids);
    task.pending = row.pending;
  }
  tasks.marks |= task.num_allowed >= 0 || penalizes(row);
  return task;
}

// Shared memory that a block may have.
size_t most_shared(int device_index) {
  int bytes = 0;
  cuda_check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_index),
             "reading the shared memory size");
  return static_cast<size_t>(bytes);
}

PendingSamplesPtr run_tasks(Tensor* tokens, const Tensor& logits, const Tasks& tasks,
                            const Tensor& previous) {
  const Device device = logits.device();
  const auto rows = static_cast<int64_t>(tasks.rows.size());
  const int64_t vocab = logits.size(1);
  check(rows <= 65535 && vocab <= 1 << 24, "sample: too many rows or ids in {}", logits);
  const unsigned cluster = cuda_compute_major(device.index) >= 9 ? sampling::kMaxCluster : 1;
  const int64_t slice = ((vocab + cluster - 1) / cluster + 3) / 4 * 4;

  // One copy up: the tasks, then the ids.
  const size_t task_bytes = sizeof(RowTask) * tasks.rows.size();
  const size_t id_bytes = sizeof(int32_t) * tasks.ids.size();
  const Tensor packed = Tensor::empty({static_cast<int64_t>(task_bytes + id_bytes)}, DType::kU8);
  std::memcpy(packed.raw(), tasks.rows.data(), task_bytes);
  if (id_bytes > 0) std::memcpy(packed.raw() + task_bytes, tasks.ids.data(), id_bytes);
  const Tensor sent = packed.to(device);
  const Tensor results = Tensor::empty({static_cast<int64_t>(sizeof(RowResult)) * rows +
                                        static_cast<int64_t>(sizeof(TopEntry)) * tasks.num_tops},
                                       DType::kU8, device);

  // The slices lie in shared memory as far as it goes.
  const size_t most = most_shared(device.index), slice_bytes = static_cast<size_t>(slice) * 4;
  size_t shared_bytes = sizeof(sampling::Shared);
  Tensor scratch, marks;
  const auto place = [&](Tensor& far) {
    if (shared_bytes + slice_bytes <= most) {
      shared_bytes += slice_bytes;
    } else {
      far = Tensor::empty({rows * cluster * slice}, DType::kF32, device);
    }
  };
  place(scratch);
  if (tasks.marks) place(marks);
  cuda_check(cudaFuncSetAttribute(sample_rows_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes)),
             "sample");
  const ClusterArgs args{
      .logits = ptr<float>(logits),
      .tasks = ptr<RowTask>(sent),
      .ids = reinterpret_cast<const int32_t*>(sent.raw() + task_bytes),
      .previous = previous.defined() ? ptr<int32_t>(previous) : nullptr,
      .results = ptr<RowResult>(results),
      .tops = reinterpret_cast<TopEntry*>(results.raw() + sizeof(RowResult) * tasks.rows.size()),
      .tokens = tokens != nullptr ? ptr<int32_t>(*tokens) : nullptr,
      .scratch = scratch.defined() ? ptr<float>(scratch) : nullptr,
      .marks_scratch = marks.defined() ? ptr<unsigned>(marks) : nullptr,
      .vocab = static_cast<int>(vocab),
      .slice = static_cast<int>(slice)};
  launch_clusters("sample", sample_rows_kernel, device.index,
                  dim3(cluster, static_cast<unsigned>(rows)), cluster, sampling::kThreads,
                  shared_bytes, args);
  return std::make_unique<CudaSamples>(results, rows, tasks.top_begin);
}

PendingSamplesPtr sample_cuda(Tensor& tokens, Tensor& logits, const std::vector<SampleRow>& rows,
                              const Tensor& previous) {
  const auto count = static_cast<int64_t>(rows.size());
  if (!std::all_of(rows.begin(), rows.end(), plain_greedy)) {
    Tasks tasks;
    for (const SampleRow& row : rows)
      tasks.add(task_of(row, logits.size(1), tasks), logits.size(1));
    return run_tasks(&tokens, logits, tasks, previous);
  }
  const Tensor results =
      Tensor::empty({count * int64_t{sizeof(RowResult)}}, DType::kU8, logits.device());
  if (count == 0) return std::make_unique<CudaSamples>(results, 0, std::vector<int32_t>());
  const Tensor parts =
      Tensor::empty({count * kGreedyParts * int64_t{sizeof(Best)}}, DType::kU8, logits.device());
  greedy_parts_kernel<<<dim3(kGreedyParts, static_cast<unsigned>(count)), kGreedyThreads, 0,
                        stream_of(logits)>>>(ptr<Best>(parts), ptr<float>(logits), logits.size(1));
  greedy_final_kernel<<<static_cast<unsigned>(count), 32, 0, stream_of(logits)>>>(
      ptr<RowResult>(results), ptr<int32_t>(tokens), ptr<Best>(parts));
  check_launch("sample");
  return std::make_unique<CudaSamples>(results, count, std::vector<int32_t>(rows.size()));
}

PendingSamplesPtr score_cuda(const Tensor& logits, const std::vector<int32_t>& targets,
                             int32_t top) {
  Tasks tasks;
  for (const int32_t target : targets) {
    tasks.add({.kind = Kind::kScore,
               .token = target,
               .pending = -1,
               .num_allowed = -1,
               .num_top = std::max(0, top)},
              logits.size(1));
  }
  return run_tasks(nullptr, logits, tasks, {});
}

const RegisterKernel r1(sample_kernel, DeviceType::kCuda, &sample_cuda);
const RegisterKernel r2(score_kernel, DeviceType::kCuda, &score_cuda);

}  // namespace
}  // namespace reft
