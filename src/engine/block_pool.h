// The KV blocks: who uses which, and which to hand out next.
//
// A block is in use (references > 0) or free. Free blocks form one list: those without reusable
// contents in front, then those whose contents the prefix cache still knows, least recently used
// first. Owner: the scheduling thread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace reft {

class BlockPool {
 public:
  // `on_evict(block)` is called when a cached block is about to be handed out for new contents.
  BlockPool(int64_t num_blocks, std::function<void(int32_t)> on_evict);

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t num_free() const { return num_free_; }
  int32_t references(int32_t block) const { return at(block).references; }
  bool cached(int32_t block) const { return at(block).cached; }

  // A free block with one reference; −1 when there is none.
  int32_t allocate();
  // One more reference; takes a free block out of the list.
  void reference(int32_t block);
  // One reference less; the last one puts the block back. Throws Error on a free block.
  void release(int32_t block);
  // Whether the prefix cache knows the contents.
  void set_cached(int32_t block, bool cached);

  // Throws Error when list, counts and flags disagree. For tests: walks everything.
  void check_integrity() const;

 private:
  struct Block {
    int32_t references = 0;
    int32_t previous = -1;  // neighbours in the free list
    int32_t next = -1;
    bool cached = false;
  };

  const Block& at(int32_t block) const { return blocks_[static_cast<size_t>(block)]; }
  Block& at(int32_t block) { return blocks_[static_cast<size_t>(block)]; }
  void push_front(int32_t block);
  void push_back(int32_t block);
  void unlink(int32_t block);

  std::vector<Block> blocks_;
  std::function<void(int32_t)> on_evict_;
  int32_t first_ = -1;
  int32_t last_ = -1;
  int64_t num_free_ = 0;
};

}  // namespace reft
