// Runs steps on the compute thread: up to date token ids, forward pass, scores, samples.
//
// launch() and collect() are called by the scheduling thread; steps run in order of launch, and
// come back in that order. The next step may be launched while one runs.
//
// With `overlap` the next step is also queued on the device while one runs, before the host knows
// the tokens that it continues: they go from step to step on the device, and the host reads them
// when the device has gone on to the next step. A sequence that turns out to have ended has run
// once more by then; that token is dropped. All steps of a device run on one stream, so keys and
// values that such a step writes, or one whose requests were aborted meanwhile, are written before
// any later owner of the block writes or reads it.
//
// When a step fails, those already launched behind it come back cancelled, because they build on
// it.
#pragma once

#include <atomic>
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
         bool overlap, std::function<void()> on_done);
  ~Runner();  // finishes the steps that were issued, drops the others

  void launch(std::unique_ptr<StepPlan> plan);
  // Whether collect() has something to return.
  bool ready() const;
  // The oldest finished step; null when none is.
  std::unique_ptr<StepPlan> collect();

 private:
  // Results of consecutive rows of logits on their way to the sequences that they belong to.
  struct Part {
    PendingSamplesPtr results;
    std::vector<PlannedSequence*> sequences;
    bool scores = false;
  };
  // A step that was queued on the device.
  struct Issued {
    std::unique_ptr<StepPlan> plan;
    std::vector<Part> parts;
    bool expects = false;  // its sequences' tokens are pending
  };

  void work();
  void issue(std::unique_ptr<StepPlan> plan);
  void queue(Issued& step);
  Tensor forward(StepPlan& plan);
  // Whether the plan can only be queued when all tokens before it are known.
  bool needs_tokens(const StepPlan& plan) const;
  // Waits until the oldest step is done or there is another one to issue.
  void wait_for_oldest_or_call();
  void finish_oldest();
  void read_back(Issued& step);
  void fail(StepPlan& plan, const char* error);

  CausalLmModel* model_;
  KvCache* cache_;
  Device device_;
  std::unique_ptr<DecodeGraphs> graphs_;
  size_t max_issued_;
  std::function<void()> on_done_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<StepPlan>> launched_;
  std::deque<std::unique_ptr<StepPlan>> done_;
  bool poisoned_ = false;  // a failed step waits to be collected
  bool stopping_ = false;
  std::atomic<bool> called_ = false;  // something was launched, or the runner is to stop

  // The compute thread's.
  std::deque<Issued> issued_;
  Tensor tokens_;  // [rows] int32 on the device: what the step issued last samples
  std::vector<SampleRow> rows_;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace reft
