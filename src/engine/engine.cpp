#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/log.h"
#include "engine/batch_builder.h"
#include "engine/memory_plan.h"
#include "engine/output_processor.h"
#include "engine/runner.h"
#include "engine/scheduler.h"
#include "engine/stats_recorder.h"
#include "engine/warm_up.h"

namespace reft {
namespace {

constexpr int kMaxInFlight = 2;               // the step that runs and the one behind it
constexpr int kMaxFailuresInARow = 3;         // steps; more make the engine unhealthy
constexpr int64_t kReserveBytes = 384 << 20;  // of a GPU: recorded graphs, libraries
constexpr int64_t kScoreBytes = 128 << 20;    // logits of a step's scored prompt tokens

// A request in the engine and its outputs.
struct Active {
  std::shared_ptr<const RequestState> request;
  std::vector<SequencePtr> sequences;
};
using ActivePtr = std::shared_ptr<Active>;

// What other threads ask of the scheduling thread.
struct Command {
  enum Kind { kAdd, kAbort, kStopFound, kResetCache } kind;
  ActivePtr active;
  int32_t index = 0;
  std::shared_ptr<bool> done;  // of kResetCache; guarded by the mutex
};

void add_ids(const Json& config, std::vector<int32_t>& ids) {
  if (!config.is_object()) return;
  const auto it = config.find("eos_token_id");
  if (it == config.end()) return;
  if (it->is_number_integer()) ids.push_back(it->get<int32_t>());
  if (!it->is_array()) return;
  for (const Json& id : *it) {
    if (id.is_number_integer()) ids.push_back(id.get<int32_t>());
  }
}

std::vector<int32_t> find_eos_ids(const LoadedModel& model, const Tokenizer* tokenizer) {
  std::vector<int32_t> ids;
  add_ids(model.generation_config, ids);
  add_ids(model.config, ids);
  if (tokenizer != nullptr && tokenizer->eos_id()) ids.push_back(*tokenizer->eos_id());
  const int64_t vocab_size = model.model->info().vocab_size;
  std::erase_if(ids, [&](int32_t id) { return id < 0 || id >= vocab_size; });
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

int64_t step_bytes(const LoadedModel& model, const EngineOptions& options, DType kv_dtype) {
  try {
    return warm_up(*model.model, model.device, options, kv_dtype, model.model->info().max_position);
  } catch (const Error& e) {
    if (std::string_view(e.what()).find("out of memory") == std::string_view::npos) throw;
    fail(
        "a step of --max_num_batched_tokens {} and --max_num_seqs {} does not fit beside the "
        "weights ({}): use smaller ones",
        options.max_num_batched_tokens, options.max_num_seqs, e.what());
  }
}

KvCache make_cache(const LoadedModel& model, const EngineOptions& options, const KvPlan& plan) {
  try {
    return {model.model->cache_specs(), plan.num_blocks, options.block_size,
            parse_cache_dtype(options.kv_cache_dtype), model.device};
  } catch (const Error& e) {
    fail(
        "the KV cache of {} blocks does not fit ({}): use a smaller --gpu_memory_utilization than "
        "{:.2f}, or a smaller --kv_cache_memory_bytes",
        plan.num_blocks, e.what(), options.gpu_memory_utilization);
  }
}

EngineOptions settle_options(EngineOptions options, const LoadedModel& model, KvPlan& plan) {
  check_options(options);
  const ModelInfo& info = model.model->info();
  const DType dtype = options.kv_cache_dtype == "auto" ? model.compute_dtype
                                                       : parse_cache_dtype(options.kv_cache_dtype);
  KvFacts facts{
      .block_bytes = KvCache::block_bytes(model.model->cache_specs(), options.block_size, dtype),
      .model_len = info.max_position};
  if (model.device.type == DeviceType::kCpu) {
    facts.available_bytes = available_memory();
  } else {
    // Steps of other sizes may take as much again, recorded ones their logits.
    const int64_t step = step_bytes(model, options, dtype);
    const int64_t logits = options.max_num_seqs * info.vocab_size * int64_t{sizeof(float)};
    measure_device(model.device, options, step + logits + kReserveBytes, facts);
  }
  plan = plan_kv_cache(options, facts);
  options.max_model_len = plan.max_model_len;
  options.kv_cache_dtype = dtype_name(dtype);
  if (!options.enable_chunked_prefill && options.max_num_batched_tokens < options.max_model_len) {
    log_info("Engine",
             "max_num_batched_tokens is {} instead of {}: without chunked prefill a step holds "
             "whole prompts",
             options.max_model_len, options.max_num_batched_tokens);
    options.max_num_batched_tokens = options.max_model_len;
  }
  if (options.max_num_seqs > options.max_num_batched_tokens) {
    log_info("Engine", "max_num_seqs is {} instead of {}: max_num_batched_tokens holds no more",
             options.max_num_batched_tokens, options.max_num_seqs);
    options.max_num_seqs = options.max_num_batched_tokens;
  }
  return options;
}

SchedulerOptions scheduler_options(const EngineOptions& o, int64_t vocab_size) {
  return {.block_size = o.block_size,
          .max_num_seqs = o.max_num_seqs,
          .max_num_batched_tokens = o.max_num_batched_tokens,
          .max_scored_tokens = std::max<int64_t>(
              16, kScoreBytes / std::max<int64_t>(1, vocab_size * int64_t{sizeof(float)})),
          .chunked_prefill = o.enable_chunked_prefill,
          .by_priority = o.scheduling_policy == "priority"};
}

}  // namespace

struct Engine::State {
  State(LoadedModel loaded, std::shared_ptr<const Tokenizer> text, EngineOptions wanted)
      : model(std::move(loaded)),
        tokenizer(std::move(text)),
        options(settle_options(std::move(wanted), model, plan)),
        eos(find_eos_ids(model, tokenizer.get())),
        cache(make_cache(model, options, plan)),
        hasher(options.block_size),
        pool(plan.num_blocks, [this](int32_t block) { prefixes.evicted(block); }),
        prefixes(pool),
        scheduler(scheduler_options(options, model.model->info().vocab_size), pool,
                  options.enable_prefix_caching ? &prefixes : nullptr,
                  options.enable_prefix_caching ? &hasher : nullptr),
        adapters(options.max_loras > 0
                     ? std::make_unique<LoraSlots>(*model.model, device, options.max_loras,
                                                   options.max_lora_rank)
                     : nullptr),
        recorder(plan.num_blocks),
        output(
            tokenizer,
            [this](const std::shared_ptr<const RequestState>& request, int32_t index) {
              stop_found(*request, index);
            },
            [this](const RequestState& request) { forget(request); },
            [this](const RequestState&) { delivered(); }),
        runner(*model.model, cache, device, make_graphs(),
               options.async_scheduling.value_or(device.type != DeviceType::kCpu),
               [this] { step_done(); }) {
    log_plan();
    thread = std::thread([this] { work(); });
  }

  std::unique_ptr<DecodeGraphs> make_graphs() {
    if (options.enforce_eager || !has_op_graphs(device)) return nullptr;
    return std::make_unique<DecodeGraphs>(*model.model, cache, device, options.max_num_seqs,
                                          options.max_model_len, adapters != nullptr);
  }

  ~State() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_one();
    thread.join();
  }

  // Any thread.
  void submit(GenerationRequest&& request);
  void abort(const std::string& id);
  void drain(int64_t timeout_ms);
  void reset_prefix_cache();
  void post(Command&& command);
  void refuse_if_full(const std::string& id) const;
  void log_plan() const;

  // The output thread and the compute thread.
  void stop_found(const RequestState& request, int32_t index);
  void forget(const RequestState& request);
  void delivered();
  void step_done();

  // The scheduling thread.
  void work();
  void loop();
  void stop_for_good(const std::string& reason);
  void handle(Command& command);
  void add(Active& active);
  void end(Sequence& sequence, FinishReason reason, std::string error = "");
  bool launch();
  void take(StepPlan& plan);
  void take_failure(StepPlan& plan);
  void take_result(PlannedSequence& planned, Clock::time_point now);
  void publish(Clock::time_point now);

  LoadedModel model;
  const Device device = model.device;
  std::shared_ptr<const Tokenizer> tokenizer;
  KvPlan plan;
  EngineOptions options;
  std::vector<int32_t> eos;
  KvCache cache;
  BlockHasher hasher;

  mutable std::mutex mutex;       // guards what follows, up to the next group
  std::condition_variable wake;   // of the scheduling thread
  std::condition_variable ended;  // a request ended, or the prefix cache was reset
  std::vector<Command> commands;
  std::unordered_map<std::string, ActivePtr> active;
  uint64_t num_submitted = 0;
  int64_t num_undelivered = 0;   // requests whose last update has not returned
  int64_t num_left_waiting = 0;  // sequences that the last scheduling round did not start
  bool step_ready = false;
  bool draining = false;
  bool stopping = false;
  bool unhealthy = false;
  bool broken = false;  // the scheduling thread has ended
  std::string last_failure;

  // The scheduling thread's.
  BlockPool pool;
  PrefixCache prefixes;
  Scheduler scheduler;
  std::vector<OutputEvent> events;
  std::vector<std::unique_ptr<StepPlan>> spare_plans;
  int in_flight = 0;
  bool recovering = false;          // a step failed, and those launched behind it are not back yet
  bool distrusts_prefixes = false;  // blocks that a failed step was to write were freed before
  int failures_in_a_row = 0;

  std::unique_ptr<LoraSlots> adapters;  // thread-safe; null: none are served
  StatsRecorder recorder;               // thread-safe
  OutputProcessor output;
  Runner runner;
  std::thread thread;
};

void Engine::State::log_plan() const {
  const char* place = device.type == DeviceType::kCpu ? "" : "GPU ";
  const int64_t tokens = plan.num_blocks * options.block_size;
  log_info("Engine", "{}KV cache: {} blocks of {} tokens, {:.2f} MiB, {}", place, plan.num_blocks,
           options.block_size, static_cast<double>(cache.nbytes()) / (1 << 20),
           options.kv_cache_dtype);
  log_info("Engine", "{}KV cache size: {} tokens", place, tokens);
  log_info("Engine", "Maximum concurrency for {} tokens per request: {:.2f}x",
           options.max_model_len,
           static_cast<double>(tokens) / static_cast<double>(options.max_model_len));
}

// ---- any thread ----

void Engine::State::post(Command&& command) {
  {
    std::lock_guard lock(mutex);
    commands.push_back(std::move(command));
  }
  wake.notify_one();
}

void Engine::State::refuse_if_full(const std::string& id) const {
  if (draining || stopping)
    throw RequestError("the server is shutting down", "", 503, "shutting_down");
  if (broken)
    throw RequestError("the engine has stopped: " + last_failure, "", 503, "engine_stopped");
  if (active.contains(id))
    throw RequestError(fmt::format("a request with id '{}' is running", id), "request_id");
  const int64_t limit = options.max_queued_requests;
  if (limit == 0) return;
  const bool full = num_left_waiting >= limit ||
                    static_cast<int64_t>(active.size()) >= options.max_num_seqs + limit;
  if (full) {
    throw RequestError(fmt::format("the queue is full: {} requests are waiting", limit), "", 503,
                       "queue_full");
  }
}

void Engine::State::submit(GenerationRequest&& request) {
  const int64_t vocab_size = model.model->info().vocab_size;
  request.params.validate(vocab_size);
  if (tokenizer == nullptr && !request.params.stop.empty()) {
    throw RequestError("stop strings need a tokenizer: use stop_token_ids", "stop");
  }
  if (request.prompt.empty()) throw RequestError("the prompt is empty", "prompt");
  for (int32_t id : request.prompt) {
    if (id < 0 || id >= vocab_size) {
      throw RequestError(
          fmt::format("the prompt contains token id {}, outside the vocabulary of {} ids", id,
                      vocab_size),
          "prompt");
    }
  }
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  if (prompt_len >= options.max_model_len) {
    throw RequestError(
        fmt::format(
            "This model's maximum context length is {} tokens, but the prompt has {}: at most {} "
            "leave room for an output token",
            options.max_model_len, prompt_len, options.max_model_len - 1),
        "prompt", 400, "context_length_exceeded");
  }
  ServedAdapterPtr adapter;
  if (!request.adapter.empty()) {
    adapter = adapters != nullptr ? adapters->find(request.adapter) : nullptr;
    if (adapter == nullptr) {
      throw RequestError(
          fmt::format("the model '{}' does not exist", request.adapter.substr(0, 200)), "model",
          404, "model_not_found");
    }
    request.cache_salt += fmt::format("{}adapter {}", '\0', adapter->number);
  }
  {
    std::lock_guard lock(mutex);
    refuse_if_full(request.id);  // before the work
  }
  auto state = std::make_shared<RequestState>();
  state->id = std::move(request.id);
  state->priority = request.priority;
  state->cache_salt = std::move(request.cache_salt);
  state->adapter = std::move(adapter);
  state->on_update = std::move(request.on_update);
  state->setup =
      std::make_shared<const SamplingSetup>(std::move(request.params), std::move(request.prompt),
                                            eos, tokenizer.get(), options.max_model_len);
  if (options.enable_prefix_caching)
    hasher.extend(state->cache_salt, state->prompt(), state->prompt_hashes);
  state->arrival = Clock::now();

  auto entry = std::make_shared<Active>();
  entry->request = state;
  {
    std::lock_guard lock(mutex);
    refuse_if_full(state->id);
    state->number = num_submitted++;
    for (int32_t i = 0; i < state->params().n; ++i) {
      entry->sequences.push_back(std::make_shared<Sequence>(
          state, i, output_seed(state->params(), options.seed, state->number, i)));
    }
    active.emplace(state->id, entry);
    ++num_undelivered;
    commands.push_back({.kind = Command::kAdd, .active = std::move(entry)});
  }
  wake.notify_one();
}

void Engine::State::abort(const std::string& id) {
  ActivePtr entry;
  {
    std::lock_guard lock(mutex);
    const auto it = active.find(id);
    if (it == active.end()) return;
    entry = it->second;
  }
  post({.kind = Command::kAbort, .active = std::move(entry)});
}

void Engine::State::drain(int64_t timeout_ms) {
  std::unique_lock lock(mutex);
  draining = true;
  ended.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                 [this] { return num_undelivered == 0; });
  for (const auto& [id, entry] : active)
    commands.push_back({.kind = Command::kAbort, .active = entry});
  wake.notify_one();
  ended.wait(lock, [this] { return num_undelivered == 0; });
}

void Engine::State::reset_prefix_cache() {
  auto done = std::make_shared<bool>(false);
  post({.kind = Command::kResetCache, .done = done});
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return *done || broken; });
}

// ---- the output thread and the compute thread ----

void Engine::State::stop_found(const RequestState& request, int32_t index) {
  std::unique_lock lock(mutex);
  const auto it = active.find(request.id);
  if (it == active.end()) return;
  ActivePtr entry = it->second;
  lock.unlock();
  post({.kind = Command::kStopFound, .active = std::move(entry), .index = index});
}

void Engine::State::forget(const RequestState& request) {
  std::lock_guard lock(mutex);
  active.erase(request.id);
}

void Engine::State::delivered() {
  {
    std::lock_guard lock(mutex);
    --num_undelivered;
  }
  ended.notify_all();
}

void Engine::State::step_done() {
  {
    std::lock_guard lock(mutex);
    step_ready = true;
  }
  wake.notify_one();
}

// ---- the scheduling thread ----

void Engine::State::work() {
  try {
    loop();
  } catch (const std::exception& e) {
    stop_for_good(e.what());
  } catch (...) {
    stop_for_good("unknown exception");
  }
}

// The scheduler's own state is not to be trusted any more: ends all requests and takes no others.
void Engine::State::stop_for_good(const std::string& reason) {
  log_error("Engine", "the scheduler failed and stops: {}", reason);
  events.clear();
  {
    std::lock_guard lock(mutex);
    broken = unhealthy = true;
    last_failure = reason;
    for (const Command& command : commands) {
      if (command.done != nullptr) *command.done = true;
    }
    commands.clear();
    for (const auto& [id, entry] : active) {
      for (const SequencePtr& s : entry->sequences) {
        OutputEvent event;
        event.request = s->request;
        event.index = s->index;
        event.finish = FinishReason::kError;
        event.error = reason;
        events.push_back(std::move(event));
      }
    }
  }
  ended.notify_all();
  output.push(std::move(events));
}

void Engine::State::loop() {
  std::vector<Command> taken;
  while (true) {
    {
      std::unique_lock lock(mutex);
      const auto something = [this] { return stopping || step_ready || !commands.empty(); };
      // The line every ten seconds needs a timer only while there is something to tell.
      if (const auto due = recorder.next_report()) {
        wake.wait_until(lock, *due, something);
      } else {
        wake.wait(lock, something);
      }
      step_ready = false;
      taken.swap(commands);
      if (stopping) break;
    }
    for (Command& command : taken) handle(command);
    taken.clear();
    while (std::unique_ptr<StepPlan> done = runner.collect()) {
      --in_flight;
      recovering |= done->failed;
      take(*done);
      done->clear();  // lets go of requests, and of their adapters
      spare_plans.push_back(std::move(done));
    }
    // A cancelled step samples nothing: none that counts on its tokens may follow it, and what it
    // held is set back only when it was collected.
    if (in_flight == 0) {
      recovering = false;
      if (std::exchange(distrusts_prefixes, false)) prefixes.clear_unused();
    }
    while (!recovering && in_flight < kMaxInFlight && launch()) {
    }
    publish(Clock::now());
  }
  for (Command& command : taken) handle(command);
  for (const SequencePtr& s : scheduler.all()) end(*s, FinishReason::kAbort);
  output.push(std::move(events));
}

void Engine::State::handle(Command& command) {
  switch (command.kind) {
    case Command::kAdd:
      for (const SequencePtr& s : command.active->sequences) scheduler.add(s);
      break;
    case Command::kAbort:
      for (const SequencePtr& s : command.active->sequences) end(*s, FinishReason::kAbort);
      break;
    case Command::kStopFound:
      end(*command.active->sequences[static_cast<size_t>(command.index)], FinishReason::kStop);
      break;
    case Command::kResetCache:
      prefixes.clear_unused();
      {
        std::lock_guard lock(mutex);
        *command.done = true;
      }
      ended.notify_all();
      break;
  }
}

void Engine::State::end(Sequence& s, FinishReason reason, std::string error) {
  if (s.status == SequenceStatus::kFinished) return;
  scheduler.finish(s);
  recorder.finished(s, reason, Clock::now());
  OutputEvent event;
  event.request = s.request;
  event.index = s.index;
  event.finish = reason;
  event.error = std::move(error);
  event.num_cached_tokens = s.num_cached_tokens;
  events.push_back(std::move(event));
}

bool Engine::State::launch() {
  std::unique_ptr<StepPlan> next;
  if (spare_plans.empty()) {
    next = std::make_unique<StepPlan>();
  } else {
    next = std::move(spare_plans.back());
    spare_plans.pop_back();
  }
  if (!scheduler.schedule(*next)) {
    spare_plans.push_back(std::move(next));
    return false;
  }
  build_batch(*next, options.block_size);
  const Clock::time_point now = Clock::now();
  for (PlannedSequence& p : next->sequences) {
    if (p.sequence->first_scheduled == Clock::time_point()) {
      p.sequence->first_scheduled = now;
      recorder.started(*p.sequence, now);
    }
  }
  runner.launch(std::move(next));
  ++in_flight;
  return true;
}

void Engine::State::take(StepPlan& done) {
  if (done.failed || done.cancelled) {
    take_failure(done);
  } else {
    failures_in_a_row = 0;
    recorder.step(done);
    for (PlannedSequence& p : done.sequences) take_result(p, done.done);
  }
  output.push(std::move(events));
  if (done.failed || failures_in_a_row == 0) {
    std::lock_guard lock(mutex);
    unhealthy = failures_in_a_row >= kMaxFailuresInARow;
    if (unhealthy) last_failure = done.error;
  }
}

void Engine::State::take_failure(StepPlan& done) {
  if (done.failed) {
    ++failures_in_a_row;
    log_error("Engine", "a step of {} sequences and {} tokens failed: {}", done.sequences.size(),
              done.num_tokens, done.error);
  }
  for (PlannedSequence& p : done.sequences) {
    Sequence& s = *p.sequence;
    if (p.samples && s.num_pending > 0) --s.num_pending;
    if (s.status == SequenceStatus::kRunning) scheduler.forget_blocks(s, p.first);
    if (s.status == SequenceStatus::kFinished) distrusts_prefixes = true;
  }
  for (PlannedSequence& p : done.sequences) {
    if (done.failed) {
      end(*p.sequence, FinishReason::kError, done.error);
    } else {
      scheduler.preempt(*p.sequence);
    }
  }
}

void Engine::State::take_result(PlannedSequence& p, Clock::time_point now) {
  Sequence& s = *p.sequence;
  if (s.status == SequenceStatus::kFinished || p.dropped) return;
  if (!p.scores.empty()) std::ranges::move(p.scores, s.prompt_scores.begin() + p.first);
  if (!p.samples) return;
  recorder.token(s, now);
  OutputEvent event;
  event.request = s.request;
  event.index = s.index;
  event.has_token = true;
  event.finish = p.finish;
  event.stop_id = p.stop_id;
  event.num_cached_tokens = s.num_cached_tokens;
  if (s.scores_prompt) {
    s.scores_prompt = false;
    event.prompt_scores = std::move(s.prompt_scores);
  }
  scheduler.append(s, p.result.token, p.finish != FinishReason::kNone);
  event.result = std::move(p.result);
  if (p.finish != FinishReason::kNone) {
    scheduler.finish(s);
    recorder.finished(s, p.finish, now);
  }
  events.push_back(std::move(event));
}

void Engine::State::publish(Clock::time_point now) {
  output.push(std::move(events));
  recorder.gauges({.running = scheduler.num_running(),
                   .waiting = scheduler.num_waiting(),
                   .free_blocks = pool.num_free(),
                   .preemptions = scheduler.num_preemptions(),
                   .prefix = scheduler.prefix_counts()},
                  now);
  std::lock_guard lock(mutex);
  num_left_waiting = scheduler.num_waiting();
}

// ---- the public face ----

Engine::Engine(LoadedModel model, std::shared_ptr<const Tokenizer> tokenizer, EngineOptions options)
    : state_(std::make_unique<State>(std::move(model), std::move(tokenizer), std::move(options))) {}
Engine::~Engine() = default;

void Engine::load_adapter(const std::string& name, const std::string& folder) {
  check(state_->adapters != nullptr, "adapters are not served: start with --enable_lora");
  const ServedAdapterPtr adapter = state_->adapters->load(name, folder);
  log_info("Engine", "Adapter '{}' of rank {} loaded from {}", name, adapter->rank, folder);
}
bool Engine::unload_adapter(const std::string& name) {
  const bool found = state_->adapters != nullptr && state_->adapters->unload(name);
  if (found) log_info("Engine", "Adapter '{}' removed", name);
  return found;
}
std::vector<ServedAdapterPtr> Engine::adapters() const {
  return state_->adapters != nullptr ? state_->adapters->list() : std::vector<ServedAdapterPtr>();
}
ServedAdapterPtr Engine::find_adapter(const std::string& name) const {
  return state_->adapters != nullptr ? state_->adapters->find(name) : nullptr;
}

void Engine::submit(GenerationRequest request) { state_->submit(std::move(request)); }
void Engine::abort(const std::string& request_id) { state_->abort(request_id); }
void Engine::drain(int64_t timeout_ms) { state_->drain(timeout_ms); }
int64_t Engine::max_model_len() const { return state_->options.max_model_len; }
int64_t Engine::vocab_size() const { return state_->model.model->info().vocab_size; }
const std::vector<int32_t>& Engine::eos_token_ids() const { return state_->eos; }
const LoadedModel& Engine::model() const { return state_->model; }
const EngineOptions& Engine::options() const { return state_->options; }
int64_t Engine::num_kv_blocks() const { return state_->plan.num_blocks; }
EngineStats Engine::stats() const { return state_->recorder.copy(); }

bool Engine::healthy(std::string* reason) const {
  std::lock_guard lock(state_->mutex);
  if (state_->unhealthy && reason != nullptr) *reason = state_->last_failure;
  return !state_->unhealthy;
}

void Engine::reset_prefix_cache() { state_->reset_prefix_cache(); }

}  // namespace reft
