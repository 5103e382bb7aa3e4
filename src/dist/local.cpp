#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "base/check.h"
#include "dist/group.h"

namespace reft {
namespace {

// What the ranks share: a barrier, and each rank's tensor while a collective runs.
class Meeting {
 public:
  explicit Meeting(int size) : inputs_(static_cast<size_t>(size)) {}

  int size() const { return static_cast<int>(inputs_.size()); }

  // Waits for all ranks. Throws Error when the group was aborted.
  void wait() {
    std::unique_lock lock(mutex_);
    check(reason_.empty(), "the group was aborted: {}", reason_);
    const uint64_t mine = round_;
    if (++arrived_ == size()) {
      arrived_ = 0;
      ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return round_ != mine || !reason_.empty(); });
    }
    check(reason_.empty(), "the group was aborted: {}", reason_);
  }

  void abort(const std::string& reason) {
    std::lock_guard lock(mutex_);
    if (reason_.empty()) reason_ = reason.empty() ? "no reason given" : reason;
    all_here_.notify_all();
  }

  // Shows x to the other ranks, lets `f` read all of them, and keeps x alive until everyone has.
  template <class F>
  void exchange(int rank, const Tensor& x, const char* op, F f) {
    check(x.device() == kCpuDevice && x.is_contiguous(),
          "{}: a contiguous CPU tensor wanted, got {}", op, x);
    inputs_[static_cast<size_t>(rank)] = x;
    wait();
    for (const Tensor& other : inputs_) {
      if (other.shape() == x.shape() && other.dtype() == x.dtype()) continue;
      abort(fmt::format("{}: rank {} has {}, another {}", op, rank, x, other));
      break;
    }
    wait();
    f(static_cast<const std::vector<Tensor>&>(inputs_));
    wait();
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  int arrived_ = 0;
  uint64_t round_ = 0;
  std::string reason_;
  std::vector<Tensor> inputs_;
};

// The reduction of elements [begin, begin + n) over all tensors, in float32.
std::vector<float> reduced(const std::vector<Tensor>& inputs, int64_t begin, int64_t n, Reduce op) {
  std::vector<float> out(static_cast<size_t>(n));
  for (size_t r = 0; r < inputs.size(); ++r) {
    const Tensor part =
        inputs[r].reshape({inputs[r].numel()}).rows(begin, begin + n).to(DType::kF32);
    const float* values = part.data<float>();
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = r == 0               ? values[i]
               : op == Reduce::kSum ? out[i] + values[i]
                                    : std::max(out[i], values[i]);
    }
  }
  return out;
}

void store(const Tensor& to, const std::vector<float>& values) {
  to.copy_from(Tensor::from_vector(values, to.shape()).to(to.dtype()));
}

class LocalGroup final : public Group {
 public:
  LocalGroup(std::shared_ptr<Meeting> meeting, int rank)
      : meeting_(std::move(meeting)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return meeting_->size(); }

  void all_reduce(Tensor& x, Reduce op) override {
    check(is_float(x.dtype()), "all_reduce: a float tensor wanted, got {}", x);
    std::vector<float> result;
    meeting_->exchange(rank_, x, "all_reduce", [&](const std::vector<Tensor>& inputs) {
      result = reduced(inputs, 0, x.numel(), op);
    });
    store(x, result);
    meeting_->wait();
  }

  void all_gather(Tensor& out, const Tensor& x) override {
    check(out.numel() == x.numel() * size() && out.dtype() == x.dtype() && out.is_contiguous(),
          "all_gather: {} does not hold {} times {}", out, size(), x);
    meeting_->exchange(rank_, x, "all_gather", [&](const std::vector<Tensor>& inputs) {
      std::byte* to = out.raw();
      for (const Tensor& input : inputs) {
        std::memcpy(to, input.raw(), static_cast<size_t>(input.nbytes()));
        to += input.nbytes();
      }
    });
  }

  void reduce_scatter(Tensor& out, const Tensor& x) override {
    check(is_float(x.dtype()) && x.numel() == out.numel() * size() && out.dtype() == x.dtype() &&
              out.is_contiguous(),
          "reduce_scatter: {} is not a share of {} for {} ranks", out, x, size());
    meeting_->exchange(rank_, x, "reduce_scatter", [&](const std::vector<Tensor>& inputs) {
      store(out, reduced(inputs, out.numel() * rank_, out.numel(), Reduce::kSum));
    });
  }

  void broadcast(Tensor& x, int root) override {
    check(root >= 0 && root < size(), "broadcast: rank {} of {}", root, size());
    meeting_->exchange(rank_, x, "broadcast", [&](const std::vector<Tensor>& inputs) {
      if (rank_ != root) x.copy_from(inputs[static_cast<size_t>(root)]);
    });
  }

  void barrier() override { meeting_->wait(); }
  void abort(const std::string& reason) override { meeting_->abort(reason); }

 private:
  std::shared_ptr<Meeting> meeting_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Group>> make_local_groups(int size) {
  check(size > 0, "a group of {} ranks", size);
  const auto meeting = std::make_shared<Meeting>(size);
  std::vector<std::unique_ptr<Group>> groups;
  for (int rank = 0; rank < size; ++rank)
    groups.push_back(std::make_unique<LocalGroup>(meeting, rank));
  return groups;
}

}  // namespace reft
