#include "nn/kv_cache.h"

namespace reft {

KvCache::KvCache(const std::vector<LayerCacheSpec>& layers, int64_t num_blocks, int64_t block_size,
                 DType dtype, Device device)
    : num_blocks_(num_blocks), block_size_(block_size), dtype_(dtype) {
  check(num_blocks > 0 && block_size > 0, "KV cache of {} blocks of {} tokens", num_blocks,
        block_size);
  layers_.reserve(layers.size());
  for (const LayerCacheSpec& spec : layers) {
    const Shape shape{num_blocks, spec.num_kv_heads, block_size, spec.head_dim};
    layers_.push_back({Tensor::empty(shape, dtype, device), Tensor::empty(shape, dtype, device)});
  }
}

int64_t KvCache::nbytes() const {
  int64_t total = 0;
  for (const PagedKv& kv : layers_) total += kv.k.nbytes() + kv.v.nbytes();
  return total;
}

int64_t KvCache::block_bytes(const std::vector<LayerCacheSpec>& layers, int64_t block_size,
                             DType dtype) {
  int64_t total = 0;
  for (const LayerCacheSpec& spec : layers) {
    total += 2 * spec.num_kv_heads * block_size * row_bytes(dtype, spec.head_dim);
  }
  return total;
}

}  // namespace reft
