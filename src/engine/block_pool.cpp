#include "engine/block_pool.h"

#include <limits>

#include "base/check.h"

namespace reft {

BlockPool::BlockPool(int64_t num_blocks, std::function<void(int32_t)> on_evict)
    : on_evict_(std::move(on_evict)) {
  check(num_blocks > 0 && num_blocks < std::numeric_limits<int32_t>::max(),
        "a pool of {} KV blocks", num_blocks);
  blocks_.resize(static_cast<size_t>(num_blocks));
  for (int32_t b = 0; b < static_cast<int32_t>(num_blocks); ++b) push_back(b);
}

int32_t BlockPool::allocate() {
  const int32_t block = first_;
  if (block < 0) return -1;
  if (at(block).cached) {
    on_evict_(block);
    at(block).cached = false;
  }
  unlink(block);
  at(block).references = 1;
  return block;
}

void BlockPool::reference(int32_t block) {
  if (at(block).references++ == 0) unlink(block);
}

void BlockPool::release(int32_t block) {
  Block& b = at(block);
  check(b.references > 0, "KV block {} is released twice", block);
  if (--b.references > 0) return;
  if (b.cached) {
    push_back(block);
  } else {
    push_front(block);
  }
}

void BlockPool::set_cached(int32_t block, bool cached) {
  Block& b = at(block);
  if (b.cached == cached) return;
  b.cached = cached;
  if (b.references > 0) return;
  unlink(block);
  if (cached) {
    push_back(block);
  } else {
    push_front(block);
  }
}

void BlockPool::push_front(int32_t block) {
  Block& b = at(block);
  b.previous = -1;
  b.next = first_;
  (first_ < 0 ? last_ : at(first_).previous) = block;
  first_ = block;
  ++num_free_;
}

void BlockPool::push_back(int32_t block) {
  Block& b = at(block);
  b.previous = last_;
  b.next = -1;
  (last_ < 0 ? first_ : at(last_).next) = block;
  last_ = block;
  ++num_free_;
}

void BlockPool::unlink(int32_t block) {
  Block& b = at(block);
  (b.previous < 0 ? first_ : at(b.previous).next) = b.next;
  (b.next < 0 ? last_ : at(b.next).previous) = b.previous;
  b.previous = b.next = -1;
  --num_free_;
}

void BlockPool::check_integrity() const {
  int64_t listed = 0;
  int32_t previous = -1;
  bool seen_cached = false;
  for (int32_t b = first_; b >= 0; b = at(b).next) {
    check(at(b).references == 0, "block {} is free and has {} references", b, at(b).references);
    check(at(b).previous == previous, "block {} has a wrong neighbour in the free list", b);
    check(at(b).cached || !seen_cached, "block {} without contents follows a cached one", b);
    seen_cached = at(b).cached;
    previous = b;
    check(++listed <= num_blocks(), "the free list has a loop");
  }
  check(last_ == previous && listed == num_free_, "{} blocks are listed as free, {} counted",
        listed, num_free_);
  int64_t unused = 0;
  for (const Block& b : blocks_) {
    check(b.references >= 0, "a block has {} references", b.references);
    unused += b.references == 0;
  }
  check(unused == num_free_, "{} blocks have no references, {} are free", unused, num_free_);
}

}  // namespace reft
