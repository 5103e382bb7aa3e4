// Ranks that work on one model together, and what they exchange. One thread per rank; every rank of
// a group calls the same collectives in the same order (a rank that throws elsewhere must call
// abort, or the others wait).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace reft {

enum class Reduce { kSum, kMax };

class Group {
 public:
  virtual ~Group() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // In place: x becomes the element-wise sum (or maximum) over the ranks. x: contiguous float
  // tensor of one shape and dtype on all ranks; sums are taken in float32 in the order of the
  // ranks, so that all ranks get the same bits.
  virtual void all_reduce(Tensor& x, Reduce op = Reduce::kSum) = 0;
  // out: [size · n, …] gets the ranks' x: [n, …] one after another.
  virtual void all_gather(Tensor& out, const Tensor& x) = 0;
  // out: [n, …] gets this rank's share of the sum of the ranks' x: [size · n, …].
  virtual void reduce_scatter(Tensor& out, const Tensor& x) = 0;
  // x of rank `root` goes to all.
  virtual void broadcast(Tensor& x, int root) = 0;
  virtual void barrier() = 0;
  // Makes every waiting and later call of all ranks throw Error with this reason.
  virtual void abort(const std::string& reason) = 0;
};

// `size` ranks in this process that exchange through memory, on the CPU: what tests every parallel
// path without a GPU.
std::vector<std::unique_ptr<Group>> make_local_groups(int size);

}  // namespace reft
