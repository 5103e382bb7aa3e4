// The engine for speech models, beside Engine (engine/engine.h): a queue of recordings, of which
// several are written down at once. Each step encodes the windows that are new together, then
// computes the next token of every hypothesis of every recording together.
//
// Threads: submit, abort, drain, stats and healthy may be called from any thread; features are
// computed by the thread that submits. One engine thread does all else and calls on_update. With
// nothing to do it sleeps. An exception in a step ends the requests of that step with an error and
// leaves the engine running.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/metrics.h"
#include "models/speech_model.h"
#include "speech/speech_tokens.h"
#include "speech/transcription.h"

namespace reft {

struct SpeechEngineOptions {
  int64_t max_num_seqs = 0;  // recordings at once; 0: 8 on a GPU, 2 on the CPU
  int64_t max_queued_requests =
      0;  // waiting ones beyond which submit is refused with 503; 0: no limit
};

struct SpeechStats {
  SpeechStats();

  int64_t num_requests_running = 0;
  int64_t num_requests_waiting = 0;
  uint64_t finished = 0, aborted = 0, failed = 0;
  double audio_seconds = 0;  // of finished requests
  uint64_t windows = 0;      // encoded
  uint64_t fallbacks = 0;    // attempts at a higher temperature
  uint64_t tokens = 0;
  Histogram e2e_latency;  // seconds
  Histogram queue_time;
  Histogram encode_time;  // of one batch of windows
};

class SpeechEngine {
 public:
  // Most hypotheses (beam_size, best_of) of a request.
  static constexpr int64_t kMaxHypotheses = 16;

  // Throws Error when the tokenizer is not one of a speech model.
  SpeechEngine(LoadedSpeechModel model, std::shared_ptr<const Tokenizer> tokenizer,
               const SpeechEngineOptions& options);
  ~SpeechEngine();  // aborts what runs

  // Throws RequestError naming the option at fault, for an empty recording, a second request of the
  // same id, a full queue (503).
  void submit(TranscriptionRequest request);
  // Ends a request with `aborted` at the next step. Unknown ids are ignored.
  void abort(const std::string& id);
  // Stops taking requests and waits until the running ones ended or `timeout_ms` passed, then
  // aborts them.
  void drain(int64_t timeout_ms);

  const LoadedSpeechModel& model() const;
  const SpeechTokens& tokens() const;
  SpeechStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// submit, and wait for the end: for commands and tests. `on_update` may be empty. Throws Error when
// it failed.
std::vector<Segment> transcribe(
    SpeechEngine& engine, TranscriptionRequest request,
    const std::function<void(const TranscriptionUpdate&)>& on_update = {});

}  // namespace reft
