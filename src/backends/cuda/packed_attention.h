// What the kernels for attention of packed batches share: forward with the softmax's denominators,
// and gradients.
#pragma once

#include "backends/cuda/attention.h"

namespace reft {

// Keys and values lie in qkv itself: [T, H + 2 Hk, Dh].
struct PackedShape {
  const int32_t* query_start;  // [B + 1]
  int num_sequences;
  int64_t num_tokens;
  int num_heads, num_kv_heads, head_dim;
  float scale, soft_cap;
  int64_t window;      // 0: all
  const float* sinks;  // may be null

  __host__ __device__ int group() const { return num_heads / num_kv_heads; }
  // Elements of a token of qkv.
  __host__ __device__ int64_t width() const {
    return int64_t{num_heads + 2 * num_kv_heads} * head_dim;
  }
};

PackedShape packed_shape(const Tensor& qkv, const HeadCounts& heads, const AttentionBatch& batch,
                         const AttentionArgs& args);

// The longest sequence, or a bound on it where the batch does not say.
inline int64_t longest_sequence(const Tensor& qkv, const AttentionBatch& batch) {
  return batch.max_query_len > 0 ? batch.max_query_len : qkv.size(0);
}

// Head dims that the tensor core kernels pad to; 0: none of them takes it.
inline int padded_head_dim(DType dtype, const Tensor& qkv, int head_dim) {
  if (dtype == DType::kF32 || head_dim % 8 != 0 || !aligned_16(qkv.raw())) return 0;
  for (const int dim : {64, 96, 128, 256}) {
    if (head_dim <= dim) return dim;
  }
  return 0;
}

// What the backward kernels work on. All packed; dqkv is written, not added to.
struct PackedGradient {
  Tensor dqkv, dout;
  PackedAttentionForward forward;
  Tensor delta;  // [T, H] float32: dout · out
};

// Any head dim up to 512 and any float type, without tensor cores.
void plain_packed_attention(Tensor& out, const Tensor& lse, const Tensor& qkv,
                            const PackedShape& shape);
void plain_packed_attention_backward(const PackedGradient& g, const PackedShape& shape);

// Tensor cores, by mma.sync: `dim` is padded_head_dim(…). False, having done nothing, where the
// card has too little shared memory for it.
bool tile_packed_attention_backward(const PackedGradient& g, const PackedShape& shape, int dim,
                                    int64_t longest);

// WGMMA and TMA, for the forms of hopper_attention(). False, having done nothing, elsewhere.
bool hopper_packed_attention(Tensor& out, const Tensor& lse, const Tensor& qkv,
                             const PackedShape& shape, int64_t longest);

// The same for head dim 128 on Hopper. False, having done nothing, elsewhere.
bool hopper_packed_attention_backward(const PackedGradient& g, const PackedShape& shape,
                                      int64_t longest);

#ifdef __CUDACC__

// log of the softmax's denominator, the sink included, from a row's maximum in log2 units and its
// sum relative to that.
__device__ __forceinline__ float log_denominator(float maximum, float total, const float* sinks,
                                                 int head) {
  constexpr float kLn2 = 0.6931471805599453f;
  if (sinks == nullptr) return (maximum + log2f(total)) * kLn2;
  const float sink = sinks[head] * kLog2e, grown = fmaxf(maximum, sink);
  return (grown + log2f(total * exp2f(maximum - grown) + exp2f(sink - grown))) * kLn2;
}

#endif  // __CUDACC__

}  // namespace reft
