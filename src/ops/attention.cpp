#include "ops/attention.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, const Tensor&, PagedKv&,
                      const QkNormRopeArgs&)>
    qk_norm_rope_cache_kernel{"qk_norm_rope_cache"};
constinit Kernel<void(Tensor&, const Tensor&, const PagedKv&, const AttentionBatch&,
                      const AttentionArgs&)>
    paged_attention_kernel{"paged_attention"};
constinit Kernel<bool(Tensor&, const Tensor&, const Tensor&, const Tensor&, PagedKv&,
                      const QkNormRopeArgs&, const AttentionBatch&, const AttentionArgs&)>
    rope_attention_kernel{"rope_attention"};

namespace {

void check_kv(const char* op, const PagedKv& kv, Device device) {
  check(kv.k.defined() && kv.v.defined() && kv.k.dims() == 4 && kv.k.shape() == kv.v.shape() &&
            kv.k.dtype() == kv.v.dtype() && is_float(kv.k.dtype()) && kv.k.is_contiguous() &&
            kv.v.is_contiguous() && kv.k.device() == device && kv.v.device() == device,
        "{}: the cache must be two contiguous float tensors [N, Hk, P, Dh] on {}, got {} and {}",
        op, device, kv.k, kv.v);
  check(kv.k.size(1) > 0 && kv.k.size(2) > 0 && kv.k.size(3) > 0,
        "{}: the cache has no heads, positions or dims: {}", op, kv.k);
}

void check_indices(const char* op, const char* name, const Tensor& t, const Shape& shape,
                   Device device) {
  check(t.defined() && t.dtype() == DType::kI32 && t.shape() == shape && t.is_contiguous() &&
            t.device() == device,
        "{}: {} must be contiguous int32 {} on {}, got {}", op, name, shape, device, t);
}

void check_head_weight(const char* op, const char* name, const Tensor& w, int64_t head_dim,
                       Device device) {
  if (!w.defined()) return;
  check(w.dtype() == DType::kF32 && w.shape() == Shape{head_dim} && w.is_contiguous() &&
            w.device() == device,
        "{}: {} must be float32 [{}], got {}", op, name, head_dim, w);
}

// Returns H.
int64_t check_rope(const char* op, const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                   const PagedKv& kv, const QkNormRopeArgs& args) {
  const Device device = qkv.device();
  check_kv(op, kv, device);
  const int64_t kv_heads = kv.k.size(1);
  const int64_t head_dim = kv.k.size(3);
  check(qkv.dims() == 2 && is_float(qkv.dtype()) && (qkv.size(1) == 0 || qkv.stride(1) == 1) &&
            qkv.size(1) % head_dim == 0 && qkv.size(1) > 2 * kv_heads * head_dim,
        "{}: qkv must be [T, (H + 2*{}) * {}] with packed rows, got {} for the cache {}", op,
        kv_heads, head_dim, qkv, kv.k);
  const int64_t tokens = qkv.size(0);
  check_indices(op, "positions", positions, {tokens}, device);
  check_indices(op, "slots", slots, {tokens}, device);
  check_head_weight(op, "q_weight", args.q_weight, head_dim, device);
  check_head_weight(op, "k_weight", args.k_weight, head_dim, device);
  if (args.cos_sin.defined()) {
    const Tensor& table = args.cos_sin;
    check(table.dims() == 2 && table.dtype() == DType::kF32 && table.is_contiguous() &&
              table.device() == device && table.size(1) % 2 == 0 && table.size(1) <= head_dim,
          "{}: cos_sin must be float32 [positions, R] with R even and at most {}, got {}", op,
          head_dim, table);
  }
  return qkv.size(1) / head_dim - 2 * kv_heads;
}

void check_attention(const char* op, int64_t heads, const PagedKv& kv, const AttentionBatch& batch,
                     const AttentionArgs& args) {
  const Device device = kv.k.device();
  check(heads > 0 && heads % kv.k.size(1) == 0,
        "{}: {} query heads are no multiple of the heads of the cache {}", op, heads, kv.k);
  check(batch.context_len.defined() && batch.context_len.dims() == 1,
        "{}: context_len must be [B], got {}", op, batch.context_len);
  const int64_t sequences = batch.context_len.size(0);
  check_indices(op, "context_len", batch.context_len, {sequences}, device);
  check_indices(op, "query_start", batch.query_start, {sequences + 1}, device);
  check(batch.block_table.defined() && batch.block_table.dims() == 2,
        "{}: block_table must be [B, max_blocks], got {}", op, batch.block_table);
  check_indices(op, "block_table", batch.block_table, {sequences, batch.block_table.size(1)},
                device);
  check(batch.max_context_len <= batch.block_table.size(1) * kv.k.size(2),
        "{}: a context of {} keys needs more than the {} blocks of {} of the block table", op,
        batch.max_context_len, batch.block_table.size(1), kv.k.size(2));
  check(args.window >= 0 && args.soft_cap >= 0,
        "{}: window {} and soft cap {} must not be negative", op, args.window, args.soft_cap);
  if (args.sinks.defined()) {
    check(args.sinks.dtype() == DType::kF32 && args.sinks.shape() == Shape{heads} &&
              args.sinks.is_contiguous() && args.sinks.device() == device,
          "{}: sinks must be float32 [{}], got {}", op, heads, args.sinks);
  }
}

}  // namespace

Tensor qk_norm_rope_cache(const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                          PagedKv& kv, const QkNormRopeArgs& args) {
  const int64_t heads = check_rope("qk_norm_rope_cache", qkv, positions, slots, kv, args);
  Tensor q = Tensor::empty({qkv.size(0), heads, kv.k.size(3)}, qkv.dtype(), qkv.device());
  if (qkv.size(0) > 0) {
    qk_norm_rope_cache_kernel(qkv.device(), q, qkv, positions, slots, kv, args);
  }
  return q;
}

Tensor paged_attention(const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
                       const AttentionArgs& args) {
  const char* op = "paged_attention";
  const Device device = q.device();
  check_kv(op, kv, device);
  check(q.dims() == 3 && is_float(q.dtype()) && q.is_contiguous() && q.size(2) == kv.k.size(3),
        "{}: q must be contiguous [T, H, {}], got {} for the cache {}", op, kv.k.size(3), q, kv.k);
  check_attention(op, q.size(1), kv, batch, args);
  Tensor out = Tensor::empty({q.size(0), q.size(1) * q.size(2)}, q.dtype(), device);
  if (out.numel() > 0) paged_attention_kernel(device, out, q, kv, batch, args);
  return out;
}

Tensor rope_attention(const Tensor& qkv, const Tensor& positions, const Tensor& slots, PagedKv& kv,
                      const QkNormRopeArgs& rope, const AttentionBatch& batch,
                      const AttentionArgs& args) {
  const Device device = qkv.device();
  if (Tape::current() == nullptr && rope_attention_kernel.has(device.type) && qkv.size(0) > 0) {
    const char* op = "rope_attention";
    const int64_t heads = check_rope(op, qkv, positions, slots, kv, rope);
    check_attention(op, heads, kv, batch, args);
    Tensor out = Tensor::empty({qkv.size(0), heads * kv.k.size(3)}, qkv.dtype(), device);
    if (rope_attention_kernel(device, out, qkv, positions, slots, kv, rope, batch, args))
      return out;
  }
  const Tensor q = qk_norm_rope_cache(qkv, positions, slots, kv, rope);
  return paged_attention(q, kv, batch, args);
}

}  // namespace reft
