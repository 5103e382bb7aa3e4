#include "cli/local_generate.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <mutex>

namespace reft {
namespace {

using Clock = std::chrono::steady_clock;

volatile std::sig_atomic_t interrupted = 0;

// Turns Ctrl-C into a flag while it lives.
struct InterruptGuard {
  struct sigaction previous {};
  InterruptGuard() {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = 1; };
    ::sigaction(SIGINT, &action, &previous);
  }
  ~InterruptGuard() { ::sigaction(SIGINT, &previous, nullptr); }
};

}  // namespace

void SamplingFlags::declare(ArgParser& parser) {
  parser.group("Sampling");
  parser.add("temperature", &temperature,
             "0 is greedy. Default: the model's generation_config.json, else 1.");
  parser.add("top_p", &top_p, "Keep the most likely tokens that make up this share.");
  parser.add("top_k", &top_k, "Keep this many tokens; 0: all.");
  parser.add("min_p", &min_p, "Keep tokens at least this likely relative to the most likely one.");
  parser.add("repetition_penalty", &repetition_penalty, "Above 1: say less of what was said.");
  parser.add("max_tokens", &max_tokens,
             "Longest answer in tokens; 0: as long as the context allows.", {"n"});
  parser.add("seed", &seed, "Makes sampling repeatable; -1: random.");
  parser.add("stop", &stop, "Text that ends the answer.");
}

SamplingParams SamplingFlags::resolve(const ArgParser& parser, const Json& config) const {
  SamplingParams out;
  const auto pick = [&](const char* name, double flag, double otherwise) {
    return static_cast<float>(parser.was_set(name) ? flag
                                                   : json_get<double>(config, name, otherwise));
  };
  out.temperature = pick("temperature", temperature, 1.0);
  out.top_p = pick("top_p", top_p, 1.0);
  out.min_p = pick("min_p", min_p, 0.0);
  out.repetition_penalty = pick("repetition_penalty", repetition_penalty, 1.0);
  out.top_k = static_cast<int32_t>(pick("top_k", static_cast<double>(top_k), 0));
  if (max_tokens > 0) out.max_tokens = max_tokens;
  if (seed >= 0) out.seed = static_cast<uint64_t>(seed);
  out.stop = stop;
  return out;
}

std::unique_ptr<Engine> make_local_engine(ServingModel& serving, const ModelFlags& flags) {
  EngineOptions options = flags.engine;
  options.max_lora_rank = 0;
  if (!flags.adapter.empty()) make_room_for_adapters({{kLocalAdapter, flags.adapter}}, &options);
  auto engine =
      std::make_unique<Engine>(std::move(serving.loaded), serving.tokenizer, std::move(options));
  if (!flags.adapter.empty()) engine->load_adapter(kLocalAdapter, flags.adapter);
  return engine;
}

GenerationResult generate(Engine& engine, std::vector<int32_t> prompt, SamplingParams params,
                          const std::function<void(const std::string&)>& on_text) {
  static std::atomic<int> counter{0};
  std::mutex mutex;
  std::condition_variable done_signal;
  bool done = false;
  std::string error;
  GenerationResult result;
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  GenerationRequest request;
  request.id = "local-" + std::to_string(counter++);
  request.prompt = std::move(prompt);
  request.params = std::move(params);
  if (engine.find_adapter(kLocalAdapter) != nullptr) request.adapter = kLocalAdapter;
  request.on_update = [&](GenerationUpdate&& update) {
    std::lock_guard lock(mutex);
    if (result.num_output_tokens == 0 && update.num_output_tokens > 0)
      result.first_token_seconds = seconds();
    result.num_prompt_tokens = update.num_prompt_tokens;
    result.num_cached_tokens = update.num_cached_tokens;
    result.num_output_tokens = update.num_output_tokens;
    result.text += update.text;
    if (on_text && !update.text.empty()) on_text(update.text);
    if (update.finish_reason != FinishReason::kNone) {
      result.finish_reason = update.finish_reason;
      error = update.error;
      done = true;
      done_signal.notify_one();
    }
  };
  const std::string id = request.id;
  InterruptGuard guard;
  engine.submit(std::move(request));
  std::unique_lock lock(mutex);
  bool aborted = false;
  while (!done) {
    done_signal.wait_for(lock, std::chrono::milliseconds(50));
    if (interrupted && !aborted) {
      aborted = true;
      lock.unlock();
      engine.abort(id);
      lock.lock();
    }
  }
  result.total_seconds = seconds();
  check(result.finish_reason != FinishReason::kError, "generation failed: {}", error);
  return result;
}

std::vector<int32_t> encode_chat(const ServingModel& model, const Json& messages,
                                 const Json& kwargs) {
  const Tokenizer& tokenizer = model.require_tokenizer();
  check(model.chat_template != nullptr,
        "the model has no chat template: choose one with --chat_template, or send plain text with "
        "--raw");
  ChatTemplateInput input;
  input.messages = messages;
  input.kwargs = kwargs;
  const auto token = [&](std::optional<int32_t> id) {
    return id ? tokenizer.id_to_token(*id) : std::string();
  };
  input.bos_token = token(tokenizer.bos_id());
  input.eos_token = token(tokenizer.eos_id());
  input.pad_token = token(tokenizer.pad_id());
  return tokenizer.encode(model.chat_template->render(input), {.add_special_tokens = false});
}

}  // namespace reft
