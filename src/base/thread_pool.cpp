#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"

namespace reft {
namespace {

// About 50 us of pause instructions: longer than the gap between two ops, shorter than anyone would
// notice.
constexpr int kSpins = 4000;

void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local const void* running_in = nullptr;  // the pool whose job this thread is executing

}  // namespace

struct ThreadPool::State {
  explicit State(int n) : num_threads(n) {}

  const int num_threads;
  std::mutex callers;  // one job at a time
  std::vector<std::thread> threads;
  // What a worker reads to start a job is one cache line, and what it writes another.
  alignas(64) std::atomic<uint32_t> generation{0};  // bumped to publish a job
  std::atomic<bool> stopping{false};
  const FunctionRef<void(int, int)>* job = nullptr;
  alignas(64) std::atomic<int> pending{0};  // workers that have not finished it
  alignas(64) std::mutex error_mutex;
  std::exception_ptr error;

  void execute(int worker) {
    const void* outer = running_in;
    running_in = this;
    try {
      (*job)(worker, num_threads);
    } catch (...) {
      std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
    }
    running_in = outer;
  }

  void work(int worker) {
    uint32_t seen = 0;
    while (true) {
      int spins = 0;
      while (generation.load(std::memory_order_acquire) == seen) {
        if (++spins < kSpins) {
          spin_pause();
        } else {
          generation.wait(seen, std::memory_order_acquire);
        }
      }
      seen = generation.load(std::memory_order_acquire);
      if (stopping) return;
      execute(worker);
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) pending.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(new State(std::max(1, num_threads))) {
  for (int i = 1; i < state_->num_threads; ++i) {
    state_->threads.emplace_back([this, i] { state_->work(i); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping = true;
  state_->generation.fetch_add(1, std::memory_order_release);
  state_->generation.notify_all();
  for (auto& thread : state_->threads) thread.join();
  delete state_;
}

int ThreadPool::num_threads() const { return state_->num_threads; }

void ThreadPool::run(FunctionRef<void(int, int)> f) {
  State& s = *state_;
  if (running_in == &s) return f(0, 1);
  if (s.num_threads == 1) {
    std::lock_guard lock(s.callers);
    running_in = &s;
    struct Restore {
      ~Restore() { running_in = nullptr; }
    } restore;
    return f(0, 1);
  }
  std::lock_guard lock(s.callers);
  s.job = &f;
  s.error = nullptr;
  s.pending.store(s.num_threads - 1, std::memory_order_relaxed);
  s.generation.fetch_add(1, std::memory_order_release);
  s.generation.notify_all();
  s.execute(0);
  int spins = 0;
  while (int left = s.pending.load(std::memory_order_acquire)) {
    if (++spins < kSpins) {
      spin_pause();
    } else {
      s.pending.wait(left, std::memory_order_acquire);
    }
  }
  if (s.error) std::rethrow_exception(s.error);
}

void ThreadPool::parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t, int64_t)> f) {
  if (n <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t most = (n + grain - 1) / grain;
  if (most == 1 || num_threads() == 1 || running_in == state_) return f(0, n);
  // Four chunks a thread even out uneven progress without much hand-out traffic.
  const int64_t chunks = std::min<int64_t>(most, num_threads() * int64_t{4});
  const int64_t size = std::max(grain, (n + chunks - 1) / chunks);
  std::atomic<int64_t> next{0};
  run([&](int, int) {
    while (true) {
      const int64_t begin = next.fetch_add(size, std::memory_order_relaxed);
      if (begin >= n) return;
      f(begin, std::min(n, begin + size));
    }
  });
}

namespace {

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

std::mutex pool_mutex;
std::unique_ptr<ThreadPool> pool;
std::atomic<ThreadPool*> pool_pointer{nullptr};

}  // namespace

ThreadPool& compute_pool() {
  if (ThreadPool* p = pool_pointer.load(std::memory_order_acquire)) return *p;
  std::lock_guard lock(pool_mutex);
  if (!pool) {
    pool = std::make_unique<ThreadPool>(usable_cpus());
    pool_pointer.store(pool.get(), std::memory_order_release);
  }
  return *pool;
}

void set_compute_threads(int num_threads) {
  check(num_threads >= 0, "number of compute threads must not be negative, got {}", num_threads);
  std::lock_guard lock(pool_mutex);
  pool_pointer.store(nullptr, std::memory_order_release);
  pool = std::make_unique<ThreadPool>(num_threads == 0 ? usable_cpus() : num_threads);
  pool_pointer.store(pool.get(), std::memory_order_release);
}

}  // namespace reft
