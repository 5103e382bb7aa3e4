// What encoders and encoder-decoder models need besides the ops of decoders: layer norm, a plain
// activation, windows of a sequence for convolutions, and attention without a causal mask. No
// gradients.
#pragma once

#include <vector>

#include "ops/activation.h"
#include "ops/attention.h"

namespace reft {

// y = (x − mean) / sqrt(variance + eps) · weight + bias over the last dimension, in fp32; the
// variance divides by D. x: [T, D] (rows may be strided); weight, bias: [D] float32. Returns [T, D]
// in x's dtype. Follows torch.nn.functional.layer_norm.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps);
extern Kernel<void(Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps)>
    layer_norm_kernel;

// x = act(x), element by element, in place. x: contiguous, any float dtype.
void activate_(Tensor& x, Activation activation);
extern Kernel<void(Tensor& x, Activation activation)> activate_kernel;

struct Unfold {
  int64_t sequences = 1;  // B
  int64_t kernel = 3;     // K
  int64_t stride = 1;
  int64_t padding = 1;  // zeros before and after every sequence
};
// The windows of a one-dimensional convolution: row b T' + t of the result holds the rows
// t · stride − padding + [0, K) of sequence b, end to end. x: [B T, C], contiguous. Returns
// [B T', K C] in `out_dtype`, T' = (T + 2 padding − K) / stride + 1. A convolution is `linear` of
// this with the weight [N, C, K] laid out as [N, K C]. Follows torch.nn.Conv1d.
Tensor unfold(const Tensor& x, const Unfold& options, DType out_dtype);
extern Kernel<void(Tensor& y, const Tensor& x, const Unfold& options)> unfold_kernel;

// Writes the keys and values of T tokens to the cache: kv: [T, 2 Hk Dh], k heads before v heads,
// slots: [T] int32 = block · P + offset.
void write_kv(const Tensor& kv, const Tensor& slots, PagedKv& cache);
extern Kernel<void(const Tensor& kv, const Tensor& slots, PagedKv& cache)> write_kv_kernel;

// As paged_attention without its mask: all queries of sequence b see the keys [0, context_len[b]),
// which may be more or fewer than its queries. q: [T, H, Dh]. Returns [T, H Dh]. Soft caps, windows
// and sinks are refused. Follows WhisperAttention.
Tensor full_attention(const Tensor& q, const PagedKv& kv, const AttentionBatch& batch, float scale);
extern Kernel<void(Tensor& out, const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
                   float scale)>
    full_attention_kernel;

// The weights of full_attention for one head of one sequence, whose tokens are all of q:
// out[t] = softmax over [0, keys) of scale q[t, head] · K. blocks: [n] int32, the sequence's
// blocks. Returns [T, keys] float32. For word timestamps.
Tensor attention_weights(const Tensor& q, const PagedKv& kv, const Tensor& blocks, int64_t head,
                         int64_t keys, float scale);
extern Kernel<void(Tensor& out, const Tensor& q, const PagedKv& kv, const Tensor& blocks,
                   int64_t head, float scale)>
    attention_weights_kernel;

}  // namespace reft
