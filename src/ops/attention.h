// Attention: over the paged KV cache (serving), and of a packed batch without one (training).
// Letters: T tokens of this step, B sequences, H query heads, Hk KV heads, Dh head dim, P page
// (block) size, N blocks.
#pragma once

#include "ops/kernel.h"
#include "ops/norm.h"
#include "tensor/gradient.h"
#include "tensor/tensor.h"

namespace reft {

// The keys and values of one layer. k, v: [N, Hk, P, Dh] in the cache dtype: float32, float16,
// bfloat16, or float8_e4m3 without a scale (what is above 448 becomes 448).
struct PagedKv {
  Tensor k;
  Tensor v;
};

struct QkNormRopeArgs {
  Tensor q_weight;  // [Dh] float32, or undefined: no norm (Qwen3, Gemma 3 have one)
  Tensor k_weight;
  float eps = 1e-6f;
  NormKind kind = NormKind::kPlain;
  Tensor cos_sin;  // [positions, R] float32: cos of R/2 frequencies, then sin; undefined: no rotary
                   // embedding
  bool interleaved = false;  // pairs (0,1),(2,3)… instead of halves (0,R/2)…
};

// For every token t: splits qkv[t] into q heads, k heads and v heads; normalises q and k per head;
// rotates the first R of their Dh dims by positions[t] (y₁ = x₁cos − x₂sin, y₂ = x₂cos + x₁sin);
// writes k and v to cache slot slots[t] = block * P + offset (skipped where negative). Returns q:
// [T, H, Dh]. qkv: [T, (H + 2Hk) Dh]; positions, slots: [T] int32. H follows from the shapes.
// Follows apply_rotary_pos_emb of modeling_llama and Qwen3Attention.
Tensor qk_norm_rope_cache(const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                          PagedKv& kv, const QkNormRopeArgs& args);
extern Kernel<void(Tensor& q, const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                   PagedKv& kv, const QkNormRopeArgs& args)>
    qk_norm_rope_cache_kernel;

// Which queries see which keys. All int32, on the op's device.
struct AttentionBatch {
  Tensor query_start;           // [B + 1] first token of each sequence in this step
  Tensor context_len;           // [B] keys in the cache, this step's tokens included
  Tensor block_table;           // [B, max_blocks] block of keys [i P, (i+1) P) of each sequence;
                                // undefined: a batch without a cache
  int64_t max_query_len = 0;    // largest of query_start differences
  int64_t max_context_len = 0;  // largest of context_len
};

struct AttentionArgs {
  float scale = 1.0f;     // on q·k
  float soft_cap = 0.0f;  // cap * tanh(score / cap) before the mask; 0: none
  int64_t window = 0;     // a query sees itself and the window−1 keys before it; 0: all
  Tensor sinks;  // [H] float32 logits that join the softmax and are dropped; undefined: none
};

// out[t, h] = softmax(mask(scale q·Kᵀ)) V, causal: the j-th of a sequence's n query tokens sees
// keys [0, context_len − n + j]. q: [T, H, Dh]. Returns [T, H Dh] in q's dtype; softmax in fp32.
// Follows eager_attention_forward of modeling_llama, modeling_gemma2, modeling_gpt_oss.
Tensor paged_attention(const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
                       const AttentionArgs& args);
extern Kernel<void(Tensor& out, const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
                   const AttentionArgs& args)>
    paged_attention_kernel;

// paged_attention(qk_norm_rope_cache(…)), which is also how it runs where the device has no fused
// form for the case and while a tape records. slots[t] is the place of token t's key by the block
// table, or negative: then the cache has that key already.
//
// A fused form may read `positions`, `slots`, the batch's arrays, the rotary table, and keys and
// values of earlier tokens while the ops queued just ahead still run; only qkv may come from those.
// So it is in a forward pass: its embedding starts when everything before has ended, and nothing
// after that writes what is named here but this op, for the tokens of this step.
Tensor rope_attention(const Tensor& qkv, const Tensor& positions, const Tensor& slots, PagedKv& kv,
                      const QkNormRopeArgs& rope, const AttentionBatch& batch,
                      const AttentionArgs& args);
// Returns false, having done nothing, where it has no form for the case.
extern Kernel<bool(Tensor& out, const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                   PagedKv& kv, const QkNormRopeArgs& rope, const AttentionBatch& batch,
                   const AttentionArgs& args)>
    rope_attention_kernel;

// ---- Without a cache: keys and values are those of this step, with gradients.

struct HeadCounts {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};

// As qk_norm_rope_cache, with a result that holds everything: [T, (H + 2Hk) Dh], q and k normalised
// and rotated, v as it was.
Tensor qk_norm_rope(const Tensor& qkv, const Tensor& positions, const HeadCounts& heads,
                    const QkNormRopeArgs& args);
extern Kernel<void(Tensor& out, const Tensor& qkv, const Tensor& positions, const HeadCounts& heads,
                   const QkNormRopeArgs& args)>
    qk_norm_rope_kernel;
// Slots may be empty. dy: as the result.
extern Kernel<void(const GradientSlot& dqkv, const GradientSlot& dq_weight,
                   const GradientSlot& dk_weight, const Tensor& dy, const Tensor& qkv,
                   const Tensor& positions, const HeadCounts& heads, const QkNormRopeArgs& args)>
    qk_norm_rope_backward_kernel;

// As paged_attention for sequences that begin in this step: token j of a sequence sees its tokens
// [0, j]. qkv: contiguous [T, (H + 2Hk) Dh]. Of `batch` only query_start: [B + 1] is used; tokens
// after the last sequence give zeros. Returns [T, H Dh].
Tensor packed_attention(const Tensor& qkv, const HeadCounts& heads, const AttentionBatch& batch,
                        const AttentionArgs& args);
// lse: [T, H] float32, log of the softmax's denominator; undefined where nobody needs it.
extern Kernel<void(Tensor& out, const Tensor& lse, const Tensor& qkv, const HeadCounts& heads,
                   const AttentionBatch& batch, const AttentionArgs& args)>
    packed_attention_kernel;

struct PackedAttentionForward {
  Tensor qkv, out, lse;
};
// Source: Dao, "FlashAttention-2" (2023), algorithm 2. dsinks[h] = −Σ over t of exp(sink − lse)
// (dout · out).
extern Kernel<void(const GradientSlot& dqkv, const GradientSlot& dsinks, const Tensor& dout,
                   const PackedAttentionForward& forward, const HeadCounts& heads,
                   const AttentionBatch& batch, const AttentionArgs& args)>
    packed_attention_backward_kernel;

}  // namespace reft
