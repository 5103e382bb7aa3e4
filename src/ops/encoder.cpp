#include "ops/encoder.h"

#include "tensor/tape.h"

namespace reft {

constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, const Tensor&, float)>
    layer_norm_kernel{"layer_norm"};
constinit Kernel<void(Tensor&, Activation)> activate_kernel{"activate"};
constinit Kernel<void(Tensor&, const Tensor&, const Unfold&)> unfold_kernel{"unfold"};
constinit Kernel<void(const Tensor&, const Tensor&, PagedKv&)> write_kv_kernel{"write_kv"};
constinit Kernel<void(Tensor&, const Tensor&, const PagedKv&, const AttentionBatch&, float)>
    full_attention_kernel{"full_attention"};
constinit Kernel<void(Tensor&, const Tensor&, const PagedKv&, const Tensor&, int64_t, float)>
    attention_weights_kernel{"attention_weights"};

namespace {

void refuse_gradient(const char* op, std::initializer_list<const Tensor*> inputs) {
  check(Tape::recording(inputs) == nullptr, "{} has no gradient", op);
}

void check_indices(const char* op, const char* name, const Tensor& t, Shape shape, Device device) {
  check(t.defined() && t.dtype() == DType::kI32 && t.shape() == shape && t.is_contiguous() &&
            t.device() == device,
        "{}: {} must be contiguous int32 {} on {}, got {}", op, name, shape, device, t);
}

void check_cache(const char* op, const PagedKv& kv, Device device) {
  check(kv.k.defined() && kv.v.defined() && kv.k.dims() == 4 && kv.k.shape() == kv.v.shape() &&
            kv.k.dtype() == kv.v.dtype() && is_float(kv.k.dtype()) && kv.k.is_contiguous() &&
            kv.v.is_contiguous() && kv.k.device() == device && kv.k.size(1) > 0 &&
            kv.k.size(2) > 0 && kv.k.size(3) > 0,
        "{}: the cache must be two contiguous float tensors [N, Hk, P, Dh] on {}, got {} and {}",
        op, device, kv.k, kv.v);
}

void check_queries(const char* op, const Tensor& q, const PagedKv& kv) {
  check(q.dims() == 3 && is_float(q.dtype()) && q.is_contiguous() && q.size(2) == kv.k.size(3) &&
            q.size(1) > 0 && q.size(1) % kv.k.size(1) == 0,
        "{}: q must be contiguous [T, H, {}] with H a multiple of {}, got {}", op, kv.k.size(3),
        kv.k.size(1), q);
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) {
  const char* op = "layer_norm";
  check(x.dims() == 2 && is_float(x.dtype()) && (x.size(1) == 0 || x.stride(1) == 1),
        "{}: x must be [T, D] with packed rows, got {}", op, x);
  for (const Tensor* w : {&weight, &bias}) {
    check(w->defined() && w->dtype() == DType::kF32 && w->shape() == Shape{x.size(1)} &&
              w->is_contiguous() && w->device() == x.device(),
          "{}: weight and bias must be float32 [{}] beside x, got {}", op, x.size(1), *w);
  }
  refuse_gradient(op, {&x, &weight, &bias});
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() > 0) layer_norm_kernel(x.device(), y, x, weight, bias, eps);
  return y;
}

void activate_(Tensor& x, Activation activation) {
  check(is_float(x.dtype()) && x.is_contiguous(),
        "activate_: a contiguous float tensor wanted, got {}", x);
  refuse_gradient("activate_", {&x});
  if (x.numel() > 0) activate_kernel(x.device(), x, activation);
}

Tensor unfold(const Tensor& x, const Unfold& options, DType out_dtype) {
  const char* op = "unfold";
  check(options.sequences > 0 && options.kernel > 0 && options.stride > 0 && options.padding >= 0,
        "{}: {} sequences, kernel {}, stride {}, padding {}", op, options.sequences, options.kernel,
        options.stride, options.padding);
  check(x.dims() == 2 && is_float(x.dtype()) && is_float(out_dtype) && x.is_contiguous() &&
            x.size(0) % options.sequences == 0,
        "{}: x must be contiguous float [{} T, C], got {}", op, options.sequences, x);
  refuse_gradient(op, {&x});
  const int64_t padded = x.size(0) / options.sequences + 2 * options.padding;
  check(padded >= options.kernel, "{}: sequences of {} are shorter than the kernel of {}", op,
        padded, options.kernel);
  const int64_t rows = (padded - options.kernel) / options.stride + 1;
  Tensor y =
      Tensor::empty({options.sequences * rows, options.kernel * x.size(1)}, out_dtype, x.device());
  if (y.numel() > 0) unfold_kernel(x.device(), y, x, options);
  return y;
}

void write_kv(const Tensor& kv, const Tensor& slots, PagedKv& cache) {
  const char* op = "write_kv";
  check_cache(op, cache, kv.device());
  const int64_t width = 2 * cache.k.size(1) * cache.k.size(3);
  check(kv.dims() == 2 && is_float(kv.dtype()) && kv.is_contiguous() && kv.size(1) == width,
        "{}: kv must be contiguous [T, {}], got {}", op, width, kv);
  check_indices(op, "slots", slots, {kv.size(0)}, kv.device());
  refuse_gradient(op, {&kv});
  if (kv.numel() > 0) write_kv_kernel(kv.device(), kv, slots, cache);
}

Tensor full_attention(const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
                      float scale) {
  const char* op = "full_attention";
  const Device device = q.device();
  check_cache(op, kv, device);
  check_queries(op, q, kv);
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
        "{}: {} keys need more than the {} blocks of {} of the block table", op,
        batch.max_context_len, batch.block_table.size(1), kv.k.size(2));
  refuse_gradient(op, {&q});
  // One query a sequence: there is nothing to mask.
  if (batch.max_query_len <= 1) return paged_attention(q, kv, batch, {.scale = scale});
  Tensor out = Tensor::empty({q.size(0), q.size(1) * q.size(2)}, q.dtype(), device);
  if (out.numel() > 0) full_attention_kernel(device, out, q, kv, batch, scale);
  return out;
}

Tensor attention_weights(const Tensor& q, const PagedKv& kv, const Tensor& blocks, int64_t head,
                         int64_t keys, float scale) {
  const char* op = "attention_weights";
  check_cache(op, kv, q.device());
  check_queries(op, q, kv);
  check(blocks.dims() == 1, "{}: blocks must be [n], got {}", op, blocks);
  check_indices(op, "blocks", blocks, {blocks.size(0)}, q.device());
  check(head >= 0 && head < q.size(1) && keys > 0 && keys <= blocks.size(0) * kv.k.size(2),
        "{}: head {} of {}, {} keys in {} blocks of {}", op, head, q.size(1), keys, blocks.size(0),
        kv.k.size(2));
  Tensor out = Tensor::empty({q.size(0), keys}, DType::kF32, q.device());
  if (out.numel() > 0) attention_weights_kernel(q.device(), out, q, kv, blocks, head, scale);
  return out;
}

}  // namespace reft
