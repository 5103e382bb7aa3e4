// Hopper instructions (sm_90a): mbarriers, clusters, the bulk tensor copy (TMA) and warpgroup
// matrix products (WGMMA). Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions",
// "Data Movement: Tensor Copy" and "barrier.cluster".
#pragma once

#include <cuda.h>

#include <type_traits>

#include "backends/cuda/common.h"

namespace reft {

// A tensor of 16-bit elements as TMA sees it, with the 128-byte swizzle. sizes and box: innermost
// first; strides in bytes, from the second dimension.
CUtensorMap tensor_map(const Tensor& t, unsigned rank, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const cuuint32_t* box);
// Whether the tensor's card is a Hopper one and its driver makes such maps.
bool has_hopper(const Tensor& t);

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// One arrival that also announces `bytes` of bulk copies.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, unsigned bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// Waits until the phase of this parity has ended.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Blocks of a cluster wait for each other; what they wrote to shared memory before is visible.
// Threads that have ended count as arrived.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
// Reads shared memory of block `rank` of the cluster, where p points to in this one.
__device__ __forceinline__ float2 load_peer(const float* p, int rank) {
  float2 v = {};
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %2, %3;\n"
      "ld.shared::cluster.v2.f32 {%0, %1}, [there];\n"
      "}\n"
      : "=f"(v.x), "=f"(v.y)
      : "r"(shared_address(p)), "r"(rank)
      : "memory");
#endif
  return v;
}

// Bulk copies of one box into shared memory; they complete on the barrier. Coordinates in elements,
// innermost first; what lies outside the tensor becomes zeros.
__device__ __forceinline__ void tma_load_2d(void* to, const CUtensorMap* map, uint64_t* barrier,
                                            int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%3, %4}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void tma_load_3d(void* to, const CUtensorMap* map, uint64_t* barrier,
                                            int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
// Ordinary stores to shared memory become visible to bulk copies and matrix products.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A barrier of `threads` threads of the block; 0 is __syncthreads'.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of the registers across this point.
template <int kCount>
__device__ __forceinline__ void pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// The descriptor of an operand in shared memory with the 128-byte swizzle: rows of 128 bytes (64
// elements), groups of 8 rows of 1024 bytes, everything aligned to 1024. `leading` is the distance
// in bytes between slabs of 64 elements where the contiguous dimension is not the one summed over;
// unused otherwise.
__device__ __forceinline__ uint64_t swizzled_operand(const void* p, unsigned leading) {
  return static_cast<uint64_t>((shared_address(p) & 0x3ffff) >> 4) |
         (static_cast<uint64_t>(leading >> 4) << 16) | (uint64_t{1024 >> 4} << 32) |
         (uint64_t{1} << 62);
}

#define REFT_R8(d, i)                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define REFT_R32(d, i) REFT_R8(d, i), REFT_R8(d, i + 8), REFT_R8(d, i + 16), REFT_R8(d, i + 24)
#define REFT_N32                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,%28,%29,%30,%31"
#define REFT_N64                                                                                   \
  REFT_N32                                                                                         \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%" \
  "55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REFT_N128                                                                                 \
  REFT_N64                                                                                        \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86," \
  "%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,"  \
  "%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,"    \
  "%126,%127"

// D[64 × N] (+)= A[64 × 16] B[16 × N], both in shared memory, both with the sum's dimension
// contiguous ("0", "0"), or both with the other one ("1", "1").
#define REFT_WGMMA_SHARED(n, type, list, da, db, dp, other, ...)                              \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " dp                                     \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" list \
               "}, " da ", " db ", add, 1, 1, " other ", " other ";\n}\n"                     \
               : __VA_ARGS__                                                                  \
               : "l"(a), "l"(b), "r"(add))

template <class T, int kN>
__device__ __forceinline__ void wgmma_shared(float (&d)[kN / 2], uint64_t a, uint64_t b, int add) {
  static_assert(kN == 64 || kN == 128);
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (kN == 64) {
      REFT_WGMMA_SHARED("64", "f16", REFT_N32, "%32", "%33", "%34", "0", REFT_R32(d, 0));
    } else {
      REFT_WGMMA_SHARED("128", "f16", REFT_N64, "%64", "%65", "%66", "0", REFT_R32(d, 0),
                        REFT_R32(d, 32));
    }
  } else {
    if constexpr (kN == 64) {
      REFT_WGMMA_SHARED("64", "bf16", REFT_N32, "%32", "%33", "%34", "0", REFT_R32(d, 0));
    } else {
      REFT_WGMMA_SHARED("128", "bf16", REFT_N64, "%64", "%65", "%66", "0", REFT_R32(d, 0),
                        REFT_R32(d, 32));
    }
  }
}

// D[64 × 64] (+)= A[64 × 16] B[16 × 64] with rows of A's and columns of B's numbers contiguous.
template <class T>
__device__ __forceinline__ void wgmma_shared_transposed(float (&d)[32], uint64_t a, uint64_t b,
                                                        int add) {
  if constexpr (std::is_same_v<T, __half>) {
    REFT_WGMMA_SHARED("64", "f16", REFT_N32, "%32", "%33", "%34", "1", REFT_R32(d, 0));
  } else {
    REFT_WGMMA_SHARED("64", "bf16", REFT_N32, "%32", "%33", "%34", "1", REFT_R32(d, 0));
  }
}

// D[64 × N] += A[64 × 16] B[16 × N] with A in registers (the layout of mma.h's `a`, 16 rows a warp)
// and B in shared memory with N contiguous.
#define REFT_WGMMA_REGISTERS(n, type, list, a0, a1, a2, a3, db, ...)                              \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" list "}, {" a0 \
               "," a1 "," a2 "," a3 "}, " db ", 1, 1, 1, 1;\n"                                    \
               : __VA_ARGS__                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <class T, int kN>
__device__ __forceinline__ void wgmma_registers(float (&d)[kN / 2], const uint32_t (&a)[4],
                                                uint64_t b) {
  static_assert(kN == 64 || kN == 128 || kN == 256);
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (kN == 64) {
      REFT_WGMMA_REGISTERS("64", "f16", REFT_N32, "%32", "%33", "%34", "%35", "%36",
                           REFT_R32(d, 0));
    } else if constexpr (kN == 128) {
      REFT_WGMMA_REGISTERS("128", "f16", REFT_N64, "%64", "%65", "%66", "%67", "%68",
                           REFT_R32(d, 0), REFT_R32(d, 32));
    } else {
      REFT_WGMMA_REGISTERS("256", "f16", REFT_N128, "%128", "%129", "%130", "%131", "%132",
                           REFT_R32(d, 0), REFT_R32(d, 32), REFT_R32(d, 64), REFT_R32(d, 96));
    }
  } else {
    if constexpr (kN == 64) {
      REFT_WGMMA_REGISTERS("64", "bf16", REFT_N32, "%32", "%33", "%34", "%35", "%36",
                           REFT_R32(d, 0));
    } else if constexpr (kN == 128) {
      REFT_WGMMA_REGISTERS("128", "bf16", REFT_N64, "%64", "%65", "%66", "%67", "%68",
                           REFT_R32(d, 0), REFT_R32(d, 32));
    } else {
      REFT_WGMMA_REGISTERS("256", "bf16", REFT_N128, "%128", "%129", "%130", "%131", "%132",
                           REFT_R32(d, 0), REFT_R32(d, 32), REFT_R32(d, 64), REFT_R32(d, 96));
    }
  }
}

#undef REFT_WGMMA_REGISTERS
#undef REFT_WGMMA_SHARED
#undef REFT_N128
#undef REFT_N64
#undef REFT_N32
#undef REFT_R32
#undef REFT_R8

#endif  // __CUDACC__

}  // namespace reft
