// Runs steps on the compute thread: up to date token ids, forward pass, scores, samples.
//
// launch() and collect() are called by the scheduling thread; steps run in order of launch, and
// come back in that order. The next step may be launched while one runs. When a step fails, those
// already launched behind it come back cancelled, because they build on it.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/decode_graphs.h"
#include "engine/sequence.h"
#include "models/model.h"

namespace reft {

class Runner {
 public:
  // `on_done` is called on the compute thread after each step, without locks held.
  // With `graphs`, steps of one token per sequence go through them.
  Runner(CausalLmModel& model, KvCache& cache, Device device, std::unique_ptr<DecodeGraphs> graphs,
         std::function<void()> on_done);
  ~Runner();  // finishes the step that runs, drops the others

  void launch(std::unique_ptr<StepPlan> plan);
  // Whether collect() has something to return.
  bool ready() const;
  // The oldest finished step; null when none is.
  std::unique_ptr<StepPlan> collect();

 private:
  void work();
  void run(StepPlan& plan);
  Tensor forward(StepPlan& plan);

  CausalLmModel* model_;
  KvCache* cache_;
  Device device_;
  std::unique_ptr<DecodeGraphs> graphs_;
  std::function<void()> on_done_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<StepPlan>> launched_;
  std::deque<std::unique_ptr<StepPlan>> done_;
  bool poisoned_ = false;  // a failed step waits to be collected
  bool stopping_ = false;

  std::vector<SampleRow> rows_;  // compute thread's scratch
  std::thread thread_;           // last: starts when all else is there
};

}  // namespace reft
