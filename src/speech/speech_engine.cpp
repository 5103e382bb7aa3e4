#include "speech/speech_engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <list>
#include <mutex>
#include <set>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "engine/request.h"
#include "media/log_mel.h"
#include "speech/check_options.h"
#include "speech/speech_runner.h"
#include "speech/transcriber.h"
#include "speech/window_decoder.h"
#include "speech/word_timing.h"

namespace reft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<double> second_bounds() {
  return {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};
}

int64_t hypotheses_of(const TranscriptionOptions& options) {
  int64_t most = 1;
  for (const float t : options.temperatures)
    most = std::max(most, t > 0 ? options.best_of : options.beam_size);
  return most;
}

// One recording on its way.
struct Job {
  Job(TranscriptionRequest the_request, const SpeechTokens& tokens, const SpeechInfo& info,
      LogMel mel)
      : request(std::move(the_request)),
        duration(static_cast<double>(request.samples.size()) / kSpeechRate),
        transcriber(tokens, info, request.options, std::move(mel)) {
    request.samples = {};
  }

  TranscriptionRequest request;
  double duration;
  Transcriber transcriber;
  Clock::time_point arrival = Clock::now();

  int64_t window = -1;  // the place of its features in the cross cache
  bool encoded = false;
  double language_probability = 1;
  std::unique_ptr<WindowDecoder> decoder;
  std::vector<SpeechSequence> sequences;  // of the running hypotheses
  std::vector<int32_t> tokens;            // next one of each
  int64_t num_tokens = 0;
  uint64_t attempts = 0;

  void send(TranscriptionUpdate update) {
    update.language = transcriber.language();
    update.language_probability = language_probability;
    update.duration = duration;
    update.num_tokens = num_tokens;
    if (request.on_update) request.on_update(std::move(update));
  }
};

}  // namespace

SpeechStats::SpeechStats()
    : e2e_latency(second_bounds()), queue_time(second_bounds()), encode_time(second_bounds()) {}

struct SpeechEngine::State {
  State(LoadedSpeechModel the_model, std::shared_ptr<const Tokenizer> tokenizer,
        const SpeechEngineOptions& the_options)
      : model(std::move(the_model)),
        tokens(model, std::move(tokenizer)),
        options(the_options),
        max_windows(options.max_num_seqs > 0                ? options.max_num_seqs
                    : model.device.type == DeviceType::kCpu ? 2
                                                            : 8),
        max_sequences(std::max(kMaxHypotheses, 5 * max_windows)),
        // One more for alignment.
        runner(model, max_windows, max_sequences + 1) {
    for (int64_t w = max_windows; w-- > 0;) free_windows.push_back(w);
    thread = std::thread([this] { loop(); });
  }

  ~State() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    thread.join();
  }

  void submit(TranscriptionRequest request);
  void loop();
  bool admit();
  void drop_aborted();
  void step();
  void encode();
  void detect(std::vector<Job*> jobs);
  void begin_attempts();
  void compute_tokens();
  void take_logits(Job& job, std::vector<std::span<float>> logits);
  void end_attempt(Job& job);
  void align(Job& job, std::vector<Segment>& segments);
  void release(Job& job);
  void finish(Job& job, TranscriptionUpdate update);

  LoadedSpeechModel model;
  SpeechTokens tokens;
  const SpeechEngineOptions options;
  const int64_t max_windows, max_sequences;
  SpeechRunner runner;

  // Of the engine's thread.
  std::list<std::unique_ptr<Job>> running;
  std::vector<int64_t> free_windows;
  int64_t reserved = 0;  // hypotheses of running jobs

  mutable std::mutex mutex;
  std::condition_variable wake, idle;
  std::deque<std::unique_ptr<Job>> waiting;
  std::set<std::string> ids, aborted;
  bool stopping = false, draining = false;
  SpeechStats counters;
  std::thread thread;
};

void SpeechEngine::State::submit(TranscriptionRequest request) {
  check_options(request.options, tokens);
  if (request.samples.empty()) throw RequestError("the recording is empty", "file");
  {
    const std::lock_guard lock(mutex);
    if (stopping || draining) throw RequestError("the server is shutting down", "", 503);
    if (options.max_queued_requests > 0 &&
        static_cast<int64_t>(waiting.size()) >= options.max_queued_requests) {
      throw RequestError("too many requests are waiting", "", 503, "queue_full");
    }
    if (!ids.insert(request.id).second)
      throw RequestError("a request with this id is running", "request_id");
  }
  const std::string id = request.id;
  std::unique_ptr<Job> job;
  try {
    const SpeechInfo& info = model.model->info();
    LogMel mel = log_mel(request.samples, info.num_mel_bins, info.num_frames * kSpeechHop);
    job = std::make_unique<Job>(std::move(request), tokens, info, std::move(mel));
  } catch (...) {
    const std::lock_guard lock(mutex);
    ids.erase(id);
    aborted.erase(id);
    idle.notify_all();
    throw;
  }
  {
    const std::lock_guard lock(mutex);
    waiting.push_back(std::move(job));
  }
  wake.notify_all();
}

void SpeechEngine::State::loop() {
  for (bool stop = false; !stop;) {
    {
      std::unique_lock lock(mutex);
      wake.wait(lock, [&] { return stopping || !waiting.empty() || !running.empty(); });
      stop = stopping;
      if (stop) {
        for (auto& job : waiting) running.push_back(std::move(job));
        waiting.clear();
      }
    }
    if (stop) break;
    drop_aborted();
    while (admit()) {
    }
    try {
      step();
    } catch (const std::exception& e) {
      log_error("Speech", "a step failed: {}", e.what());
      while (!running.empty()) finish(*running.front(), {.done = true, .error = e.what()});
    }
  }
  while (!running.empty()) finish(*running.front(), {.done = true, .aborted = true});
}

bool SpeechEngine::State::admit() {
  const std::lock_guard lock(mutex);
  if (waiting.empty() || free_windows.empty()) return false;
  Job& job = *waiting.front();
  const int64_t wanted = hypotheses_of(job.request.options);
  if (reserved + wanted > max_sequences) return false;
  reserved += wanted;
  job.window = free_windows.back();
  free_windows.pop_back();
  counters.queue_time.observe(seconds_since(job.arrival));
  running.push_back(std::move(waiting.front()));
  waiting.pop_front();
  ++counters.num_requests_running;
  return true;
}

// One that is still on its way into the queue keeps its mark.
void SpeechEngine::State::drop_aborted() {
  std::set<std::string> names;
  {
    const std::lock_guard lock(mutex);
    if (aborted.empty()) return;
    names = aborted;
    for (auto it = waiting.begin(); it != waiting.end();) {
      if (names.contains((*it)->request.id)) {
        running.push_back(std::move(*it));
        it = waiting.erase(it);
      } else {
        ++it;
      }
    }
  }
  for (auto it = running.begin(); it != running.end();) {
    Job& job = **it++;
    if (names.contains(job.request.id)) finish(job, {.done = true, .aborted = true});
  }
}

void SpeechEngine::State::release(Job& job) {
  for (SpeechSequence& sequence : job.sequences) runner.release(sequence);
  job.sequences.clear();
  job.decoder.reset();
}

void SpeechEngine::State::finish(Job& job, TranscriptionUpdate update) {
  release(job);
  {
    const std::lock_guard lock(mutex);
    if (job.window >= 0) {
      free_windows.push_back(job.window);
      reserved -= hypotheses_of(job.request.options);
      --counters.num_requests_running;
    }
    ids.erase(job.request.id);
    aborted.erase(job.request.id);
    if (update.aborted) {
      ++counters.aborted;
    } else if (!update.error.empty()) {
      ++counters.failed;
    } else {
      ++counters.finished;
      counters.audio_seconds += job.duration;
      counters.e2e_latency.observe(seconds_since(job.arrival));
    }
  }
  job.send(std::move(update));
  running.remove_if([&](const std::unique_ptr<Job>& other) { return other.get() == &job; });
  idle.notify_all();
}

void SpeechEngine::State::step() {
  for (auto it = running.begin(); it != running.end();) {
    Job& job = **it++;
    if (job.transcriber.at_end()) finish(job, {.done = true});
  }
  if (running.empty()) return;
  encode();
  begin_attempts();
  compute_tokens();
}

// Of all recordings that came to a new window.
void SpeechEngine::State::encode() {
  const SpeechInfo& info = model.model->info();
  std::vector<Job*> jobs;
  std::vector<int64_t> windows;
  for (auto& job : running) {
    if (job->encoded) continue;
    jobs.push_back(job.get());
    windows.push_back(job->window);
  }
  if (jobs.empty()) return;
  const auto start = Clock::now();
  const int64_t size = info.num_frames * info.num_mel_bins;
  std::vector<float> features(jobs.size() * static_cast<size_t>(size));
  for (size_t i = 0; i < jobs.size(); ++i)
    jobs[i]->transcriber.window(features.data() + static_cast<int64_t>(i) * size);
  runner.encode(windows, features);
  for (Job* job : jobs) job->encoded = true;
  {
    const std::lock_guard lock(mutex);
    counters.windows += jobs.size();
    counters.encode_time.observe(seconds_since(start));
  }
  std::erase_if(jobs, [](Job* job) { return !job->transcriber.language().empty(); });
  if (!jobs.empty()) detect(jobs);
}

// The likeliest language after the start token.
void SpeechEngine::State::detect(std::vector<Job*> jobs) {
  std::vector<SpeechSequence> sequences;
  std::vector<SpeechRunner::Input> inputs;
  for (Job* job : jobs) sequences.push_back(runner.start(job->window));
  for (SpeechSequence& sequence : sequences) inputs.push_back({&sequence, {&tokens.start, 1}, {0}});
  const Tensor logits = runner.run(inputs);
  for (SpeechSequence& sequence : sequences) runner.release(sequence);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const float* row = logits.data<float>() + static_cast<int64_t>(i) * logits.size(1);
    const auto logit = [&](const auto& language) { return row[language.second]; };
    const auto best =
        std::max_element(tokens.languages.begin(), tokens.languages.end(),
                         [&](const auto& a, const auto& b) { return logit(a) < logit(b); });
    double sum = 0;
    for (const auto& language : tokens.languages) sum += std::exp(logit(language) - logit(*best));
    jobs[i]->transcriber.set_language(best->first);
    jobs[i]->language_probability = 1 / sum;
  }
}

// Computes the prompts of all attempts that begin now.
void SpeechEngine::State::begin_attempts() {
  std::vector<Job*> jobs;
  std::vector<SpeechRunner::Input> inputs;
  for (auto& job : running) {
    if (job->decoder != nullptr) continue;
    job->decoder = std::make_unique<WindowDecoder>(
        tokens, job->request.options, job->transcriber.temperature(), job->transcriber.prompt(),
        model.model->info().max_target_positions,
        job->request.options.seed * 1'000'003 + job->attempts++);
    job->sequences.push_back(runner.start(job->window));
    const auto& prompt = job->decoder->prompt();
    jobs.push_back(job.get());
    inputs.push_back({&job->sequences[0],
                      prompt,
                      {job->decoder->start_row(), static_cast<int64_t>(prompt.size()) - 1}});
    if (inputs.back().rows[0] == inputs.back().rows[1]) inputs.back().rows.pop_back();
  }
  if (jobs.empty()) return;
  const Tensor logits = runner.run(inputs);
  const auto width = static_cast<size_t>(logits.size(1));
  float* row = logits.data<float>();
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i]->decoder->set_no_speech({row, width});
    if (inputs[i].rows.size() > 1) row += width;
    take_logits(*jobs[i], {{row, width}});
    row += width;
  }
}

// One token more for every hypothesis.
void SpeechEngine::State::compute_tokens() {
  std::vector<Job*> jobs;
  std::vector<SpeechRunner::Input> inputs;
  for (auto& job : running) {
    if (job->decoder == nullptr || job->tokens.empty()) continue;
    jobs.push_back(job.get());
    for (size_t i = 0; i < job->tokens.size(); ++i)
      inputs.push_back({&job->sequences[i], {&job->tokens[i], 1}, {0}});
  }
  if (jobs.empty()) return;
  const Tensor logits = runner.run(inputs);
  const auto width = static_cast<size_t>(logits.size(1));
  float* row = logits.data<float>();
  for (Job* job : jobs) {
    std::vector<std::span<float>> rows;
    for (size_t i = 0; i < job->tokens.size(); ++i, row += width) rows.emplace_back(row, width);
    take_logits(*job, std::move(rows));
  }
}

void SpeechEngine::State::take_logits(Job& job, std::vector<std::span<float>> logits) {
  const std::vector<WindowDecoder::Next> next = job.decoder->step(std::move(logits));
  job.num_tokens += static_cast<int64_t>(next.size());
  {
    const std::lock_guard lock(mutex);
    counters.tokens += next.size();
  }
  std::vector<SpeechSequence> sequences;
  job.tokens.clear();
  for (const WindowDecoder::Next& n : next) {
    sequences.push_back(runner.fork(job.sequences[n.parent]));
    job.tokens.push_back(n.token);
  }
  for (SpeechSequence& sequence : job.sequences) runner.release(sequence);
  job.sequences = std::move(sequences);
  if (next.empty()) end_attempt(job);
}

void SpeechEngine::State::end_attempt(Job& job) {
  const WindowResult result = job.decoder->finish();
  release(job);
  if (!job.transcriber.accept(result)) {
    const std::lock_guard lock(mutex);
    ++counters.fallbacks;
    return;
  }
  std::vector<Segment> segments = job.transcriber.segments(result);
  if (job.request.options.word_timestamps && !segments.empty()) align(job, segments);
  segments = job.transcriber.advance(std::move(segments));
  job.encoded = false;
  std::erase_if(segments, [](const Segment& segment) { return segment.text.empty(); });
  if (!segments.empty()) job.send({.segments = std::move(segments)});
}

void SpeechEngine::State::align(Job& job, std::vector<Segment>& segments) {
  std::vector<int32_t> text;
  for (const Segment& segment : segments) {
    for (const int32_t id : segment.tokens) {
      if (id < tokens.end_of_text) text.push_back(id);
    }
  }
  const int64_t frames = job.transcriber.window_frames() / 2;
  if (text.empty() || frames == 0) return;
  std::vector<int32_t> all =
      tokens.start_sequence(job.transcriber.language(), job.request.options.translate);
  const size_t num_start = all.size();
  all.push_back(tokens.no_timestamps);
  all.insert(all.end(), text.begin(), text.end());
  all.push_back(tokens.end_of_text);
  Tensor logits;
  std::vector<std::vector<float>> weights =
      runner.align(job.window, all, tokens.alignment_heads, frames, logits);
  std::vector<float> probabilities;
  for (size_t i = 0; i < text.size(); ++i) {
    const float* row = logits.data<float>() + static_cast<int64_t>(num_start + i) * logits.size(1);
    const float top = *std::max_element(row, row + tokens.end_of_text);
    double sum = 0;
    for (int32_t id = 0; id < tokens.end_of_text; ++id) sum += std::exp(row[id] - top);
    probabilities.push_back(static_cast<float>(std::exp(row[text[i]] - top) / sum));
  }
  std::vector<Word> words = find_words(std::move(weights), static_cast<int64_t>(all.size()), frames,
                                       static_cast<int64_t>(num_start), text, probabilities, tokens,
                                       job.transcriber.language());
  job.transcriber.place_words(segments, std::move(words));
}

SpeechEngine::SpeechEngine(LoadedSpeechModel model, std::shared_ptr<const Tokenizer> tokenizer,
                           const SpeechEngineOptions& options)
    : state_(std::make_unique<State>(std::move(model), std::move(tokenizer), options)) {}
SpeechEngine::~SpeechEngine() = default;

void SpeechEngine::submit(TranscriptionRequest request) { state_->submit(std::move(request)); }

void SpeechEngine::abort(const std::string& id) {
  {
    const std::lock_guard lock(state_->mutex);
    if (!state_->ids.contains(id)) return;
    state_->aborted.insert(id);
  }
  state_->wake.notify_all();
}

void SpeechEngine::drain(int64_t timeout_ms) {
  std::unique_lock lock(state_->mutex);
  state_->draining = true;
  const auto none = [&] { return state_->ids.empty(); };
  if (state_->idle.wait_for(lock, std::chrono::milliseconds(timeout_ms), none)) return;
  state_->aborted = state_->ids;
  state_->wake.notify_all();
  state_->idle.wait(lock, none);
}

const LoadedSpeechModel& SpeechEngine::model() const { return state_->model; }
const SpeechTokens& SpeechEngine::tokens() const { return state_->tokens; }

SpeechStats SpeechEngine::stats() const {
  const std::lock_guard lock(state_->mutex);
  SpeechStats out = state_->counters;
  out.num_requests_waiting = static_cast<int64_t>(state_->waiting.size());
  return out;
}

std::vector<Segment> transcribe(SpeechEngine& engine, TranscriptionRequest request,
                                const std::function<void(const TranscriptionUpdate&)>& on_update) {
  std::mutex mutex;
  std::condition_variable signal;
  bool done = false;
  std::string error;
  std::vector<Segment> segments;
  request.on_update = [&](TranscriptionUpdate&& update) {
    if (on_update) on_update(update);
    const std::lock_guard lock(mutex);
    for (Segment& segment : update.segments) segments.push_back(std::move(segment));
    if (!update.done) return;
    done = true;
    error = update.aborted ? "aborted" : update.error;
    signal.notify_all();
  };
  engine.submit(std::move(request));
  std::unique_lock lock(mutex);
  signal.wait(lock, [&] { return done; });
  check(error.empty(), "transcription failed: {}", error);
  return segments;
}

}  // namespace reft
