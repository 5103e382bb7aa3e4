// Turns sampled tokens into text and updates, on a thread of its own: detokenises, finds stop
// strings, calls on_update.
//
// push() is called by the scheduling thread. The callbacks given at construction are called on the
// output thread.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/sequence.h"
#include "text/tokenizer.h"

namespace reft {

// One thing that happened to one output of a request.
struct OutputEvent {
  std::shared_ptr<const RequestState> request;
  int32_t index = 0;
  bool has_token = false;
  SampleResult result;                      // when has_token
  std::vector<SampleResult> prompt_scores;  // with the first token
  FinishReason finish = FinishReason::kNone;
  int32_t stop_id = -1;
  std::string error;
  int64_t num_cached_tokens = 0;
};

class OutputProcessor {
 public:
  // A stop string ended an output that the scheduler may still be running.
  using StopFound =
      std::function<void(const std::shared_ptr<const RequestState>& request, int32_t index)>;
  // The last output of a request ended: called before its last update is delivered, and after.
  using RequestDone = std::function<void(const RequestState& request)>;

  // `tokenizer` may be null: updates then carry no text.
  OutputProcessor(std::shared_ptr<const Tokenizer> tokenizer, StopFound on_stop,
                  RequestDone on_ended, RequestDone on_delivered);
  ~OutputProcessor();  // delivers what was pushed

  void push(std::vector<OutputEvent>&& events);

 private:
  void work();
  void process(OutputEvent& event);
  void read_text(OutputEvent& event, GenerationUpdate& update);

  std::shared_ptr<const Tokenizer> tokenizer_;
  StopFound on_stop_;
  RequestDone on_ended_;
  RequestDone on_delivered_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<OutputEvent> pushed_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace reft
