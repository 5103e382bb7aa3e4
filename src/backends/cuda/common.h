// What every .cu file of the CUDA backend uses: error checks, the stream, type dispatch, small
// device helpers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "base/check.h"
#include "tensor/tensor.h"

namespace reft {

inline void cuda_check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) [[unlikely]] {
    fail("CUDA: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
  }
}

// The stream that all ops of a device are queued on.
cudaStream_t cuda_stream(int device_index);
inline cudaStream_t stream_of(const Tensor& t) { return cuda_stream(t.device().index); }
// Streaming multiprocessors of the device.
int cuda_num_sms(int device_index);

// While one lives, blocks come from a pool that only recorded graphs use, and go back to it: graphs
// run one after another, so they may share temporaries with each other, but never with what runs
// between them.
class GraphMemory {
 public:
  explicit GraphMemory(int device_index);
  ~GraphMemory();
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

 private:
  int device_index_;
};

// Major compute capability: 9 on Hopper.
int cuda_compute_major(int device_index);

// After every launch: a bad configuration is an Error that names the kernel.
inline void check_launch(const char* kernel) { cuda_check(cudaGetLastError(), kernel); }

inline unsigned blocks_for(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

// Calls f with a value of the CUDA type of a float dtype.
template <class F>
void dispatch_float(DType dtype, const char* op, F f) {
  switch (dtype) {
    case DType::kF32:
      return f(float{});
    case DType::kF16:
      return f(__half{});
    case DType::kBF16:
      return f(__nv_bfloat16{});
    default:
      fail("{}: {} is not supported on CUDA", op, dtype_name(dtype));
  }
}

// The same for the two 16-bit types only.
template <class F>
void dispatch_half(DType dtype, const char* op, F f) {
  switch (dtype) {
    case DType::kF16:
      return f(__half{});
    case DType::kBF16:
      return f(__nv_bfloat16{});
    default:
      fail("{}: {} is not supported on CUDA", op, dtype_name(dtype));
  }
}

template <class T>
T* ptr(const Tensor& t) {
  return reinterpret_cast<T*>(t.raw());
}

// Neighbouring elements that are loaded and stored together, 16 bytes at a time.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Vector {
  T v[kWidth];
};
template <class T>
using Vector8 = Vector<T, 8>;
inline bool aligned_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

#ifdef __CUDACC__

// Launches a kernel that may begin before the one queued ahead of it has ended (programmatic
// dependent launch, from Hopper on): it must call await_inputs() before it reads what another
// kernel writes, and before it writes anything. What it reads so must not be both const and
// __restrict__: such loads may take a cache that the wait does not refresh. `cluster` neighbouring
// blocks in x run together (more than 1: from Hopper on).
template <class... Parameters, class... Args>
void launch_clusters(const char* name, void (*kernel)(Parameters...), int device_index, dim3 grid,
                     unsigned cluster, unsigned threads, size_t shared_bytes, Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = cuda_stream(device_index);
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (cuda_compute_major(device_index) >= 9) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& together = attributes[config.numAttrs++];
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {cluster, 1, 1};
  }
  cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), name);
}
template <class... Parameters, class... Args>
void launch_dependent(const char* name, void (*kernel)(Parameters...), int device_index, dim3 grid,
                      unsigned threads, size_t shared_bytes, Args... args) {
  launch_clusters(name, kernel, device_index, grid, 1, threads, shared_bytes, args...);
}

// Lets the next kernel of the stream begin.
__device__ __forceinline__ void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Returns when the kernels before this one have ended and their writes are visible.
__device__ __forceinline__ void await_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ float as_float(float x) { return x; }
__device__ __forceinline__ float as_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T as(float x);
template <>
__device__ __forceinline__ float as<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half as<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 as<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// Sum over a block of up to 1024 threads; `scratch` holds 32 floats of shared memory. All threads
// get it.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  const int warps = (blockDim.x + 31) / 32;
  x = lane < warps ? scratch[lane] : 0.0f;
  return warp_sum(x);
}

#endif  // __CUDACC__

}  // namespace reft
