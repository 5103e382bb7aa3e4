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

#ifdef __CUDACC__

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
