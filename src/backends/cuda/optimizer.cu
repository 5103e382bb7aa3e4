// The optimizers' updates: one pass over a parameter. The random bits of an element are those of
// the CPU (backends/cpu/optimizer_loops.inc).
#include <algorithm>
#include <cmath>

#include "backends/cuda/common.h"
#include "ops/optimizer.h"
#include "ops/philox.h"

namespace reft {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 64;     // neighbours that share 16 random counters
constexpr int kPerThread = 4;  // neighbours that a thread takes at once

// Random words of elements i, i + 1 …: word (j / 16) of counter 16 group + j % 16, for the j-th
// element of a group.
struct RandomStream {
  uint64_t seed, stream;
  __device__ __forceinline__ uint32_t word(int64_t element) const {
    const auto group = static_cast<uint64_t>(element / kGroup);
    const auto j = static_cast<unsigned>(element % kGroup);
    return philox(seed, group * 16 + j % 16, stream)[j / 16];
  }
};
// The states draw from the stream itself, the value from its twin.
RandomStream of_states(const RoundingRng& rng) { return {rng.seed, rng.stream}; }
RandomStream of_value(const RoundingRng& rng) {
  return {rng.seed, rng.stream ^ (uint64_t{1} << 63)};
}

// Up with the probability of the part that is cut off; `random` is below 2^16. NaN stays NaN.
__device__ __forceinline__ __nv_bfloat16 round_randomly(float x, uint32_t random) {
  const uint32_t bits = __float_as_uint(x);
  const uint32_t rounded = (bits + random) >> 16;
  const auto result = static_cast<unsigned short>(x != x ? (bits >> 16) | 0x40u : rounded);
  return __ushort_as_bfloat16(result);
}

// The float32 value or master, null when there is only `rounded`, the bfloat16 value.
struct ParameterData {
  float* exact;
  __nv_bfloat16* rounded;
  RandomStream rng;

  __device__ __forceinline__ float load(int64_t i) const {
    return exact != nullptr ? exact[i] : __bfloat162float(rounded[i]);
  }
  __device__ __forceinline__ void store(int64_t i, float x) const {
    if (exact != nullptr) {
      exact[i] = x;
      if (rounded != nullptr) rounded[i] = __float2bfloat16_rn(x);
    } else {
      rounded[i] = round_randomly(x, rng.word(i) & 0xffffu);
    }
  }
};

ParameterData data_of(const Tensor& value, const Tensor& master, const RoundingRng& rng) {
  if (value.dtype() == DType::kF32) return {ptr<float>(value), nullptr, of_value(rng)};
  return {master.defined() ? ptr<float>(master) : nullptr, ptr<__nv_bfloat16>(value),
          of_value(rng)};
}

struct AdamRates {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2;
  float decay;      // 1 − lr weight_decay
  float step_size;  // lr / (1 − β1^t)
  float v_scale;    // 1 / sqrt(1 − β2^t)
  float eps;
};

AdamRates rates_of(const AdamWArgs& args) {
  const auto t = static_cast<double>(args.step);
  const double correction1 = 1 - std::pow(args.beta1, t), correction2 = 1 - std::pow(args.beta2, t);
  return {.grad_scale = static_cast<float>(args.grad_scale),
          .one_minus_beta1 = static_cast<float>(1 - args.beta1),
          .beta2 = static_cast<float>(args.beta2),
          .one_minus_beta2 = static_cast<float>(1 - args.beta2),
          .decay = static_cast<float>(1 - args.learning_rate * args.weight_decay),
          .step_size = static_cast<float>(args.learning_rate / correction1),
          .v_scale = static_cast<float>(1 / std::sqrt(correction2)),
          .eps = static_cast<float>(args.eps)};
}

__device__ __forceinline__ void adam_step(float& p, float& m, float& v, float grad,
                                          const AdamRates& r) {
  const float g = grad * r.grad_scale;
  m += r.one_minus_beta1 * (g - m);
  v = r.beta2 * v + r.one_minus_beta2 * g * g;
  p = p * r.decay - r.step_size * (m / (sqrtf(v) * r.v_scale + r.eps));
}

// Elements i, i + stride … of [0, n).
#define REFT_EACH(i, n)                                                     \
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < (n); \
       i += int64_t{gridDim.x} * blockDim.x)

// A thread takes four neighbours of each quarter of a group: sixteen elements whose random words
// are those of four counters. Threads in fours have a group; `n` counts threads. M: float or
// bfloat16.
template <class M>
__global__ void __launch_bounds__(kThreads)
    adamw_groups_kernel(ParameterData parameter, M* moments1, M* moments2, RandomStream rng,
                        const float* __restrict__ grad, AdamRates rates, int64_t n) {
  constexpr bool kRounded = sizeof(M) < sizeof(float);
  using Floats = Vector<float, kPerThread>;
  using Halves = Vector<__nv_bfloat16, kPerThread>;
  using Moments = Vector<M, kPerThread>;
  REFT_EACH(item, n) {
    std::array<uint32_t, 4> state_words[kPerThread], value_words[kPerThread];
    const auto counter = static_cast<uint64_t>(item) * kPerThread;
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      if constexpr (kRounded) state_words[e] = philox(rng.seed, counter + e, rng.stream);
      if (parameter.exact == nullptr)
        value_words[e] = philox(parameter.rng.seed, counter + e, parameter.rng.stream);
    }
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      // In fours of elements.
      const int64_t i = item / 4 * (kGroup / kPerThread) + quarter * 4 + item % 4;
      const Floats g = reinterpret_cast<const Floats*>(grad)[i];
      Moments m = reinterpret_cast<Moments*>(moments1)[i];
      Moments v = reinterpret_cast<Moments*>(moments2)[i];
      Floats p;
      Halves rounded;
      if (parameter.exact != nullptr) {
        p = reinterpret_cast<const Floats*>(parameter.exact)[i];
      } else {
        rounded = reinterpret_cast<const Halves*>(parameter.rounded)[i];
#pragma unroll
        for (int e = 0; e < kPerThread; ++e) p.v[e] = __bfloat162float(rounded.v[e]);
      }
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) {
        float first = as_float(m.v[e]), second = as_float(v.v[e]);
        adam_step(p.v[e], first, second, g.v[e], rates);
        if constexpr (kRounded) {
          const uint32_t random = state_words[e][quarter];
          m.v[e] = round_randomly(first, random & 0xffffu);
          v.v[e] = round_randomly(second, random >> 16);
        } else {
          m.v[e] = first;
          v.v[e] = second;
        }
        rounded.v[e] = parameter.exact != nullptr
                           ? __float2bfloat16_rn(p.v[e])
                           : round_randomly(p.v[e], value_words[e][quarter] & 0xffffu);
      }
      reinterpret_cast<Moments*>(moments1)[i] = m;
      reinterpret_cast<Moments*>(moments2)[i] = v;
      if (parameter.exact != nullptr) reinterpret_cast<Floats*>(parameter.exact)[i] = p;
      if (parameter.rounded != nullptr) reinterpret_cast<Halves*>(parameter.rounded)[i] = rounded;
    }
  }
}

// Elements [begin, n) one by one.
template <class M>
__global__ void adamw_kernel_cuda(ParameterData parameter, M* moments1, M* moments2,
                                  RandomStream rng, const float* __restrict__ grad, AdamRates rates,
                                  int64_t begin, int64_t n) {
  REFT_EACH(j, n - begin) {
    const int64_t i = begin + j;
    float p = parameter.load(i), m = as_float(moments1[i]), v = as_float(moments2[i]);
    adam_step(p, m, v, grad[i], rates);
    if constexpr (sizeof(M) == sizeof(float)) {
      moments1[i] = m;
      moments2[i] = v;
    } else {
      const uint32_t random = rng.word(i);
      moments1[i] = round_randomly(m, random & 0xffffu);
      moments2[i] = round_randomly(v, random >> 16);
    }
    parameter.store(i, p);
  }
}

// Blocks for `n` items, a few for each thread.
unsigned grid_for(int64_t n, const Tensor& t) {
  const int64_t most = int64_t{16} * cuda_num_sms(t.device().index);
  return static_cast<unsigned>(std::clamp<int64_t>((n + kThreads - 1) / kThreads, 1, most));
}

void adamw_cuda(Tensor& value, Tensor& master, Tensor& m, Tensor& v, const Tensor& grad,
                const AdamWArgs& args) {
  const ParameterData p = data_of(value, master, args.rng);
  const AdamRates rates = rates_of(args);
  const int64_t n = value.numel();
  bool aligned = true;
  for (const Tensor* t : std::initializer_list<const Tensor*>{&value, &master, &m, &v, &grad})
    aligned = aligned && (!t->defined() || aligned_16(t->raw()));
  const int64_t groups = aligned ? n / kGroup : 0, rest = groups * kGroup;
  const cudaStream_t stream = stream_of(value);
  const auto run = [&](auto type) {
    using M = decltype(type);
    if (groups > 0) {
      adamw_groups_kernel<M><<<grid_for(4 * groups, value), kThreads, 0, stream>>>(
          p, ptr<M>(m), ptr<M>(v), of_states(args.rng), ptr<float>(grad), rates, 4 * groups);
      check_launch("adamw");
    }
    if (rest == n) return;
    adamw_kernel_cuda<M><<<grid_for(n - rest, value), kThreads, 0, stream>>>(
        p, ptr<M>(m), ptr<M>(v), of_states(args.rng), ptr<float>(grad), rates, rest, n);
    check_launch("adamw");
  };
  m.dtype() == DType::kF32 ? run(float{}) : run(__nv_bfloat16{});
}

// Of x in [0, 1], or a rounding above: the code below or above x among (c / kTop)^kPower, drawn so
// that x is right on average. `random` is below 2^16.
template <int kTop, int kPower>
__device__ __forceinline__ int power_code(float x, uint32_t random) {
  constexpr float kStep = 1.0f / kTop;
  const float root = kPower == 2 ? sqrtf(x) : sqrtf(sqrtf(x));
  const int code = min(static_cast<int>(root * kTop), kTop - 1);
  const float below = static_cast<float>(code) * kStep, above = below + kStep;
  const auto power = [](float y) { return kPower == 2 ? y * y : y * y * (y * y); };
  const float low = power(below), high = power(above);
  return code + (static_cast<float>(random) * 0x1p-16f * (high - low) < x - low ? 1 : 0);
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_max(threadIdx.x % 32 < kThreads / 32 ? scratch[threadIdx.x % 32] : 0.0f);
}

// A block of the optimizer's per block of threads.
__global__ void __launch_bounds__(kThreads)
    adamw_8bit_kernel_cuda(ParameterData parameter, int8_t* m_codes, uint8_t* v_codes,
                           float* m_scales, float* v_scales, RandomStream rng,
                           const float* __restrict__ grad, AdamRates rates, int64_t n) {
  static_assert(kThreads == kAdam8Block);
  __shared__ float scratch[2][kThreads / 32];
  const int64_t block = blockIdx.x, i = block * kAdam8Block + threadIdx.x;
  const bool inside = i < n;
  float m = 0.0f, v = 0.0f;
  if (inside) {
    const float c = static_cast<float>(m_codes[i]) * (1.0f / 127);
    m = m_scales[block] * c * fabsf(c);
    const float d = static_cast<float>(v_codes[i]) * (1.0f / 255);
    v = v_scales[block] * (d * d * (d * d));
    float p = parameter.load(i);
    adam_step(p, m, v, grad[i], rates);
    parameter.store(i, p);
  }
  const float m_scale = block_max(fabsf(m), scratch[0]);
  const float v_scale = block_max(v, scratch[1]);  // whose barrier all loads of scales precede
  if (threadIdx.x == 0) {
    m_scales[block] = m_scale;
    v_scales[block] = v_scale;
  }
  if (!inside) return;
  const uint32_t random = rng.word(i);
  const int m_code =
      power_code<127, 2>(fabsf(m) * (m_scale > 0 ? 1 / m_scale : 0.0f), random & 0xffffu);
  const int v_code = power_code<255, 4>(v * (v_scale > 0 ? 1 / v_scale : 0.0f), random >> 16);
  m_codes[i] = static_cast<int8_t>(m < 0 ? -m_code : m_code);
  v_codes[i] = static_cast<uint8_t>(v_code + (v_code == 0 && v > 0 ? 1 : 0));
}

void adamw_8bit_cuda(Tensor& value, Tensor& master, Adam8State& state, const Tensor& grad,
                     const AdamWArgs& args) {
  const int64_t n = value.numel();
  adamw_8bit_kernel_cuda<<<blocks_for(n, kAdam8Block), kThreads, 0, stream_of(value)>>>(
      data_of(value, master, args.rng), ptr<int8_t>(state.m), ptr<uint8_t>(state.v),
      ptr<float>(state.m_scale), ptr<float>(state.v_scale), of_states(args.rng), ptr<float>(grad),
      rates_of(args), n);
  check_launch("adamw_8bit");
}

struct SgdRates {
  float grad_scale, momentum, weight_decay, learning_rate;
};

// `buffer` null: no momentum.
__global__ void sgd_kernel_cuda(ParameterData parameter, float* buffer,
                                const float* __restrict__ grad, SgdRates r, int64_t n) {
  REFT_EACH(i, n) {
    float p = parameter.load(i);
    const float before = buffer != nullptr ? buffer[i] : 0.0f;
    const float b = r.momentum * before + (grad[i] * r.grad_scale + r.weight_decay * p);
    if (buffer != nullptr) buffer[i] = b;
    p -= r.learning_rate * b;
    parameter.store(i, p);
  }
}

void sgd_cuda(Tensor& value, Tensor& master, Tensor& buffer, const Tensor& grad,
              const SgdArgs& args) {
  const SgdRates rates = {static_cast<float>(args.grad_scale), static_cast<float>(args.momentum),
                          static_cast<float>(args.weight_decay),
                          static_cast<float>(args.learning_rate)};
  sgd_kernel_cuda<<<grid_for(value.numel(), value), kThreads, 0, stream_of(value)>>>(
      data_of(value, master, args.rng), buffer.defined() ? ptr<float>(buffer) : nullptr,
      ptr<float>(grad), rates, value.numel());
  check_launch("sgd");
}

__global__ void muon_momentum_kernel_cuda(float* __restrict__ update, float* __restrict__ buffer,
                                          const float* __restrict__ grad, float momentum,
                                          float grad_scale, int64_t n) {
  REFT_EACH(i, n) {
    const float g = grad[i] * grad_scale;
    const float b = buffer[i] + (1 - momentum) * (g - buffer[i]);
    buffer[i] = b;
    update[i] = g + momentum * (b - g);
  }
}

void muon_momentum_cuda(Tensor& update, Tensor& buffer, const Tensor& grad, double momentum,
                        double grad_scale) {
  const int64_t n = update.numel();
  muon_momentum_kernel_cuda<<<grid_for(n, update), kThreads, 0, stream_of(update)>>>(
      ptr<float>(update), ptr<float>(buffer), ptr<float>(grad), static_cast<float>(momentum),
      static_cast<float>(grad_scale), n);
  check_launch("muon_momentum");
}

__global__ void apply_update_kernel_cuda(ParameterData parameter, const float* __restrict__ update,
                                         float rate, float decay, int64_t n) {
  REFT_EACH(i, n) parameter.store(i, decay * parameter.load(i) - rate * update[i]);
}

void apply_update_cuda(Tensor& value, Tensor& master, const Tensor& update, double rate,
                       double decay, const RoundingRng& rng) {
  const int64_t n = value.numel();
  apply_update_kernel_cuda<<<grid_for(n, value), kThreads, 0, stream_of(value)>>>(
      data_of(value, master, rng), ptr<float>(update), static_cast<float>(rate),
      static_cast<float>(decay), n);
  check_launch("apply_update");
}

const RegisterKernel r1(adamw_kernel, DeviceType::kCuda, &adamw_cuda);
const RegisterKernel r2(adamw_8bit_kernel, DeviceType::kCuda, &adamw_8bit_cuda);
const RegisterKernel r3(sgd_kernel, DeviceType::kCuda, &sgd_cuda);
const RegisterKernel r4(muon_momentum_kernel, DeviceType::kCuda, &muon_momentum_cuda);
const RegisterKernel r5(apply_update_kernel, DeviceType::kCuda, &apply_update_cuda);

}  // namespace
}  // namespace reft
