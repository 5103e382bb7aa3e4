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

constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, const HeadCounts&,
                      const QkNormRopeArgs&)>
    qk_norm_rope_kernel{"qk_norm_rope"};
constinit Kernel<void(const GradientSlot&, const GradientSlot&, const GradientSlot&, const Tensor&,
                      const Tensor&, const Tensor&, const HeadCounts&, const QkNormRopeArgs&)>
    qk_norm_rope_backward_kernel{"qk_norm_rope_backward"};
constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, const HeadCounts&,
                      const AttentionBatch&, const AttentionArgs&)>
    packed_attention_kernel{"packed_attention"};
constinit Kernel<void(const GradientSlot&, const GradientSlot&, const Tensor&,
                      const PackedAttentionForward&, const HeadCounts&, const AttentionBatch&,
                      const AttentionArgs&)>
    packed_attention_backward_kernel{"packed_attention_backward"};

namespace {

void check_kv(const char* op, const PagedKv& kv, Device device) {
  check(kv.k.defined() && kv.v.defined() && kv.k.dims() == 4 && kv.k.shape() == kv.v.shape() &&
            kv.k.dtype() == kv.v.dtype() && is_cache_dtype(kv.k.dtype()) && kv.k.is_contiguous() &&
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

void check_norm_rope(const char* op, const QkNormRopeArgs& args, int64_t head_dim, Device device) {
  check_head_weight(op, "q_weight", args.q_weight, head_dim, device);
  check_head_weight(op, "k_weight", args.k_weight, head_dim, device);
  if (!args.cos_sin.defined()) return;
  const Tensor& table = args.cos_sin;
  check(table.dims() == 2 && table.dtype() == DType::kF32 && table.is_contiguous() &&
            table.device() == device && table.size(1) % 2 == 0 && table.size(1) <= head_dim,
        "{}: cos_sin must be float32 [positions, R] with R even and at most {}, got {}", op,
        head_dim, table);
}

void check_attention_args(const char* op, const AttentionArgs& args, int64_t heads, Device device) {
  check(args.window >= 0 && args.soft_cap >= 0,
        "{}: window {} and soft cap {} must not be negative", op, args.window, args.soft_cap);
  if (!args.sinks.defined()) return;
  check(args.sinks.dtype() == DType::kF32 && args.sinks.shape() == Shape{heads} &&
            args.sinks.is_contiguous() && args.sinks.device() == device,
        "{}: sinks must be float32 [{}], got {}", op, heads, args.sinks);
}

void check_packed(const char* op, const Tensor& qkv, const HeadCounts& heads) {
  check(heads.num_kv_heads > 0 && heads.head_dim > 0 && heads.num_heads > 0 &&
            heads.num_heads % heads.num_kv_heads == 0,
        "{}: {} heads and {} KV heads of {}", op, heads.num_heads, heads.num_kv_heads,
        heads.head_dim);
  const int64_t width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
  check(qkv.dims() == 2 && qkv.size(1) == width && is_float(qkv.dtype()) && qkv.is_contiguous(),
        "{}: qkv must be contiguous [T, {}], got {}", op, width, qkv);
}

// A cache outlives the step, and so has no gradient.
void refuse_gradient(const char* op, const Tensor& x) {
  check(Tape::recording({&x}) == nullptr,
        "{} has no gradient; train with a batch that has no block table", op);
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
  check_norm_rope(op, args, head_dim, device);
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
  check_attention_args(op, args, heads, device);
}

}  // namespace

Tensor qk_norm_rope_cache(const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                          PagedKv& kv, const QkNormRopeArgs& args) {
  const int64_t heads = check_rope("qk_norm_rope_cache", qkv, positions, slots, kv, args);
  refuse_gradient("qk_norm_rope_cache", qkv);
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
  refuse_gradient(op, q);
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

Tensor qk_norm_rope(const Tensor& qkv, const Tensor& positions, const HeadCounts& heads,
                    const QkNormRopeArgs& args) {
  const char* op = "qk_norm_rope";
  const Device device = qkv.device();
  check_packed(op, qkv, heads);
  check_indices(op, "positions", positions, {qkv.size(0)}, device);
  check_norm_rope(op, args, heads.head_dim, device);
  Tensor out = Tensor::empty(qkv.shape(), qkv.dtype(), device);
  if (out.numel() > 0) qk_norm_rope_kernel(device, out, qkv, positions, heads, args);
  if (Tape* tape = Tape::recording({&qkv, &args.q_weight, &args.k_weight})) {
    // Rotation alone is undone without its input.
    const bool normed = args.q_weight.defined() || args.k_weight.defined();
    tape->record("qk_norm_rope", {qkv, args.q_weight, args.k_weight}, {out},
                 [=, x = normed ? qkv : Tensor()](Tape::Gradients& g) {
                   qk_norm_rope_backward_kernel(device, g.input(0), g.input(1), g.input(2),
                                                g.output(), x, positions, heads, args);
                 });
  }
  return out;
}

Tensor packed_attention(const Tensor& qkv, const HeadCounts& heads, const AttentionBatch& batch,
                        const AttentionArgs& args) {
  const char* op = "packed_attention";
  const Device device = qkv.device();
  check_packed(op, qkv, heads);
  check(
      batch.query_start.defined() && batch.query_start.dims() == 1 && batch.query_start.size(0) > 0,
      "{}: query_start must be [B + 1], got {}", op, batch.query_start);
  check_indices(op, "query_start", batch.query_start, batch.query_start.shape(), device);
  check_attention_args(op, args, heads.num_heads, device);
  const int64_t tokens = qkv.size(0);
  Tape* tape = Tape::recording({&qkv, &args.sinks});
  Tensor out = Tensor::empty({tokens, heads.num_heads * heads.head_dim}, qkv.dtype(), device);
  const Tensor lse =
      tape != nullptr ? Tensor::empty({tokens, heads.num_heads}, DType::kF32, device) : Tensor();
  if (out.numel() > 0) packed_attention_kernel(device, out, lse, qkv, heads, batch, args);
  if (tape != nullptr) {
    const PackedAttentionForward forward{qkv, out, lse};
    tape->record(op, {qkv, args.sinks}, {out}, [=](Tape::Gradients& g) {
      packed_attention_backward_kernel(device, g.input(0), g.input(1), g.output(), forward, heads,
                                       batch, args);
    });
  }
  return out;
}

}  // namespace reft
