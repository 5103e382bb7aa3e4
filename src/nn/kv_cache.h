// What the layers keep per sequence between steps. A model describes it layer by layer
// (`LayerCacheSpec`); the engine allocates it once for a number of blocks, and only ever talks
// about block ids.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/attention.h"

namespace reft {

struct LayerCacheSpec {
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;  // keys older than this are never read again; 0: all are
};

class KvCache {
 public:
  // Allocates for every layer k and v of [num_blocks, Hk, block_size, Dh]. Block 0 … num_blocks−1.
  KvCache(const std::vector<LayerCacheSpec>& layers, int64_t num_blocks, int64_t block_size,
          DType dtype, Device device);

  PagedKv& layer(int64_t i) { return layers_[static_cast<size_t>(i)]; }
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t block_size() const { return block_size_; }
  DType dtype() const { return dtype_; }
  int64_t nbytes() const;

  // Bytes that one block takes over all layers.
  static int64_t block_bytes(const std::vector<LayerCacheSpec>& layers, int64_t block_size,
                             DType dtype);

 private:
  std::vector<PagedKv> layers_;
  int64_t num_blocks_;
  int64_t block_size_;
  DType dtype_;
};

}  // namespace reft
