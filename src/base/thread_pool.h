// The compute threads. One pool per process, used by the CPU backend and by loading.
//
// Contract: `run` and `parallel_for` may be called from one thread at a time per pool (calls from
// several threads are serialised by a lock); a call from inside a worker runs inline on that
// worker. Workers spin for a short while after each job (a decode step is hundreds of small jobs)
// and then sleep: an idle pool uses no CPU. An exception from the callable is rethrown to the
// caller after all workers stopped.
#pragma once

#include <cstdint>

#include "base/function_ref.h"

namespace reft {

class ThreadPool {
 public:
  // `num_threads` counts the calling thread; at least 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls f(worker, num_threads) once on every thread, the caller being worker 0, and waits for
  // all.
  void run(FunctionRef<void(int worker, int num_workers)> f);

  // Calls f(begin, end) over disjoint chunks that cover [0, n); chunks are at least `grain` long
  // (the last may be shorter) and handed out dynamically. Runs inline when one chunk is enough.
  void parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t begin, int64_t end)> f);

 private:
  struct State;
  State* state_;
};

// The process-wide pool; created on first use with the number of CPUs this process may run on.
ThreadPool& compute_pool();
// Replaces the process-wide pool (before or between jobs, never during one). 0 means the default.
void set_compute_threads(int num_threads);

}  // namespace reft
