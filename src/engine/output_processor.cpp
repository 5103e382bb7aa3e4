#include "engine/output_processor.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <optional>

#include "base/log.h"
#include "engine/stop_matcher.h"

namespace reft {
namespace {

struct OutputState {
  explicit OutputState(const SamplingParams& params)
      : matcher(params.stop, params.include_stop_str_in_output) {}

  std::optional<StreamDecoder> decoder;
  StopMatcher matcher;
  int64_t num_tokens = 0;
  bool ended = false;
};

constexpr size_t kPromptTail = 8;  // ids of the prompt that a decoder sees as left context

TokenLogprobs to_logprobs(const SampleResult& r) {
  TokenLogprobs logprobs;
  logprobs.reserve(r.top.size() + 1);
  logprobs.push_back({r.token, r.logprob, r.rank});
  int32_t rank = 0;
  for (const auto& [token, logprob] : r.top) {
    ++rank;
    if (token != r.token) logprobs.push_back({token, logprob, rank});
  }
  return logprobs;
}

}  // namespace

struct RequestOutputs {
  std::vector<std::unique_ptr<OutputState>> by_index;
  int32_t num_running = 0;
};

OutputProcessor::OutputProcessor(std::shared_ptr<const Tokenizer> tokenizer, StopFound on_stop,
                                 RequestDone on_ended, RequestDone on_delivered)
    : tokenizer_(std::move(tokenizer)),
      on_stop_(std::move(on_stop)),
      on_ended_(std::move(on_ended)),
      on_delivered_(std::move(on_delivered)),
      thread_([this] { work(); }) {}

OutputProcessor::~OutputProcessor() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void OutputProcessor::push(std::vector<OutputEvent>&& events) {
  if (events.empty()) return;
  bool sleeping = false;
  {
    std::lock_guard lock(mutex_);
    sleeping = pushed_.empty();
    if (sleeping) {
      pushed_.swap(events);
    } else {
      std::ranges::move(events, std::back_inserter(pushed_));
    }
  }
  events.clear();
  if (sleeping) wake_.notify_one();
}

void OutputProcessor::work() {
  std::vector<OutputEvent> events;
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !pushed_.empty(); });
    if (pushed_.empty()) return;
    events.swap(pushed_);
    lock.unlock();
    for (OutputEvent& event : events) {
      try {
        process(event);
      } catch (const std::exception& e) {
        log_error("Engine", "an update of request {} is lost: {}", event.request->id, e.what());
      }
    }
    events.clear();
    lock.lock();
  }
}

void OutputProcessor::process(OutputEvent& event) {
  const RequestState& request = *event.request;
  const SamplingParams& params = request.params();
  if (request.outputs == nullptr) {
    request.outputs = std::make_shared<RequestOutputs>();
    request.outputs->by_index.resize(static_cast<size_t>(params.n));
    request.outputs->num_running = params.n;
  }
  RequestOutputs& outputs = *request.outputs;
  std::unique_ptr<OutputState>& slot = outputs.by_index[static_cast<size_t>(event.index)];
  if (slot == nullptr) slot = std::make_unique<OutputState>(params);
  OutputState& output = *slot;
  if (output.ended) return;  // a stop string was quicker than the scheduler

  GenerationUpdate update;
  update.index = event.index;
  update.finish_reason = event.finish;
  update.error = std::move(event.error);
  if (event.stop_id >= 0) update.stop_reason = event.stop_id;
  if (event.has_token) {
    ++output.num_tokens;
    update.token_ids.push_back(event.result.token);
    if (params.logprobs) update.logprobs.push_back(to_logprobs(event.result));
  }
  if (params.prompt_logprobs && output.num_tokens == 1 && event.has_token && event.index == 0) {
    update.prompt_logprobs.emplace_back();
    for (const SampleResult& r : event.prompt_scores)
      update.prompt_logprobs.push_back(to_logprobs(r));
  }
  const FinishReason scheduled = event.finish;
  if (tokenizer_ != nullptr) {
    try {
      read_text(event, update);
    } catch (const std::exception& e) {
      update.finish_reason = FinishReason::kError;
      update.error = std::string("detokenising failed: ") + e.what();
    }
  }
  update.num_prompt_tokens = static_cast<int64_t>(request.prompt().size());
  update.num_cached_tokens = event.num_cached_tokens;
  update.num_output_tokens = output.num_tokens;
  const bool ends = update.finish_reason != FinishReason::kNone;
  if (ends) {
    output.ended = true;
    if (scheduled == FinishReason::kNone) on_stop_(event.request, event.index);
    if (--outputs.num_running == 0) on_ended_(request);
  }
  try {
    if (request.on_update) request.on_update(std::move(update));
  } catch (const std::exception& e) {
    log_error("Engine", "the callback of request {} failed: {}", request.id, e.what());
  }
  if (ends && outputs.num_running == 0) on_delivered_(request);
}

void OutputProcessor::read_text(OutputEvent& event, GenerationUpdate& update) {
  const RequestState& request = *event.request;
  OutputState& output = *request.outputs->by_index[static_cast<size_t>(event.index)];
  const SamplingParams& params = request.params();
  if (!output.decoder) {
    const std::span<const int32_t> prompt(request.prompt());
    output.decoder.emplace(*tokenizer_, prompt.last(std::min(prompt.size(), kPromptTail)),
                           params.skip_special_tokens);
  }
  std::string text;
  // The token that ends an output is not part of its text.
  const bool hidden = event.finish == FinishReason::kStop && !params.include_stop_str_in_output;
  if (event.has_token && !hidden) text = output.decoder->add(event.result.token);
  if (event.finish != FinishReason::kNone) text += output.decoder->finish();
  StopMatcher::Piece piece = output.matcher.add(text, output.num_tokens > params.min_tokens);
  update.text = std::move(piece.text);
  if (piece.matched >= 0) {
    update.finish_reason = FinishReason::kStop;
    update.stop_reason = params.stop[static_cast<size_t>(piece.matched)];
  } else if (event.finish != FinishReason::kNone) {
    update.text += output.matcher.flush();
  }
}

}  // namespace reft
