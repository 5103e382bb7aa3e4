#include "server/generation.h"

#include <atomic>
#include <ctime>

#include "base/log.h"
#include "server/json_writer.h"

namespace reft {
namespace {

std::string next_engine_id() {
  static std::atomic<uint64_t> counter = 0;
  return fmt::format("req-{}", counter++);
}

}  // namespace

Generation::Generation(ServeContext& context, std::shared_ptr<Exchange> exchange,
                       GenerationFields fields, const std::string& id_prefix, std::string object)
    : context_(context),
      exchange_(std::move(exchange)),
      fields_(std::move(fields)),
      id_(id_prefix + (exchange_->request().client_request_id ? exchange_->request().request_id
                       : fields_.request_id.empty()           ? random_hex(32)
                                                              : fields_.request_id)),
      object_(std::move(object)),
      created_(std::time(nullptr)) {
  context_.generations.add();
}

Generation::~Generation() { context_.generations.remove(); }

void Generation::start(std::vector<std::vector<int32_t>> prompts) {
  prompts_ = std::move(prompts);
  running_ = prompts_.size() * num_outputs();
  completion_tokens_.assign(running_, 0);
  cached_tokens_.assign(prompts_.size(), 0);
  exchange_->on_disconnect([weak = weak_from_this()] {
    if (auto self = weak.lock()) self->abort_all();
  });
  if (fields_.stream) exchange_->expect_stream();
  if (context_.options.log_requests) log_request();
  const auto self = shared_from_this();
  for (size_t i = 0; i < prompts_.size(); ++i) {
    GenerationRequest request;
    request.id = next_engine_id();
    request.prompt = prompts_[i];
    request.params = fields_.params;
    // Different prompts of one request may not draw the same numbers only because they share a
    // seed: that is what a seed means, so it stays as it is.
    request.priority = fields_.priority;
    request.cache_salt = fields_.cache_salt;
    request.adapter = fields_.adapter;
    // The engine may keep the function longer than the request: the last update lets go of the
    // generation.
    request.on_update = [self = std::shared_ptr<Generation>(self), i,
                         left = fields_.params.n](GenerationUpdate&& update) mutable {
      if (self == nullptr) return;
      const bool last = update.finish_reason != FinishReason::kNone && --left == 0;
      self->push(i, std::move(update));
      if (last) self.reset();
    };
    const std::string engine_id = request.id;
    {
      const std::lock_guard lock(mutex_);
      if (aborted_) return;
      engine_ids_.push_back(engine_id);
    }
    try {
      context_.engine().submit(std::move(request));
    } catch (...) {
      HttpResponse refusal = response_of_current_exception();
      exchange_->respond(std::move(refusal));
      abort_all();
      return;
    }
    // The client may have left between the look at aborted_ and the submission.
    bool aborted = false;
    {
      const std::lock_guard lock(mutex_);
      aborted = aborted_;
    }
    if (aborted) context_.engine().abort(engine_id);
  }
}

void Generation::log_request() const {
  size_t prompt_tokens = 0;
  for (const auto& prompt : prompts_) prompt_tokens += prompt.size();
  const SamplingParams& p = fields_.params;
  log_info("Serve",
           "request {}: {} prompts with {} tokens, n {}, max_tokens {}, temperature {}, top_p {}, "
           "top_k {}, min_p {}, seed {}, {} stop strings, stream {}",
           id_, prompts_.size(), prompt_tokens, p.n, p.max_tokens.value_or(0), p.temperature,
           p.top_p, p.top_k, p.min_p, p.seed ? std::to_string(*p.seed) : "random", p.stop.size(),
           fields_.stream);
}

void Generation::abort_all() {
  std::vector<std::string> ids;
  {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    ids = engine_ids_;
    queue_.clear();
  }
  for (const std::string& id : ids) context_.engine().abort(id);
}

void Generation::push(size_t prompt, GenerationUpdate&& update) {
  {
    const std::lock_guard lock(mutex_);
    if (aborted_) return;
    queue_.emplace_back(prompt, std::move(update));
    if (scheduled_) return;
    scheduled_ = true;
  }
  exchange_->post([self = shared_from_this()] { self->drain(); });
}

void Generation::drain() {
  std::vector<std::pair<size_t, GenerationUpdate>> updates;
  {
    const std::lock_guard lock(mutex_);
    updates.swap(queue_);
    scheduled_ = false;
  }
  for (auto& [prompt, update] : updates) {
    if (failed_) return;
    if (update.finish_reason == FinishReason::kError) return fail(500, update.error);
    if (update.index < 0 || static_cast<size_t>(update.index) >= num_outputs()) continue;
    if (!hide_output_) {
      completion_tokens_[prompt * num_outputs() + static_cast<size_t>(update.index)] =
          update.num_output_tokens;
    }
    cached_tokens_[prompt] = std::max(cached_tokens_[prompt], update.num_cached_tokens);
    on_update(prompt, update);
    if (update.finish_reason != FinishReason::kNone && --running_ == 0) on_complete();
  }
  if (!events_.empty()) {
    exchange_->write(events_);
    events_.clear();
  }
  if (running_ == 0 && fields_.stream) exchange_->finish_stream();
}

void Generation::fail(int status, std::string_view message) {
  failed_ = true;
  exchange_->respond(error_response(status, message.empty() ? "generation failed" : message, "",
                                    "generation_failed"));
  abort_all();
}

void Generation::answer(std::string body) {
  HttpResponse response;
  response.body = std::move(body);
  exchange_->respond(std::move(response));
}

std::string Generation::object_head() const {
  std::string out = R"({"id":)";
  append_json_string(out, id_);
  out += R"(,"object":")" + object_ + R"(","created":)";
  append_json_int(out, created_);
  out += R"(,"model":)";
  append_json_string(out, fields_.model);
  out += R"(,"system_fingerprint":")" + context_.system_fingerprint + '"';
  return out;
}

void Generation::append_usage(std::string& out, int64_t prompt_tokens, int64_t completion_tokens,
                              int64_t cached_tokens) {
  fmt::format_to(std::back_inserter(out),
                 R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},)"
                 R"("prompt_tokens_details":{{"cached_tokens":{}}}}})",
                 prompt_tokens, completion_tokens, prompt_tokens + completion_tokens,
                 cached_tokens);
}

void Generation::append_usage(std::string& out) const {
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  for (const auto& prompt : prompts_) prompt_tokens += static_cast<int64_t>(prompt.size());
  for (int64_t count : completion_tokens_) completion_tokens += count;
  for (int64_t count : cached_tokens_) cached_tokens += count;
  append_usage(out, prompt_tokens, completion_tokens, cached_tokens);
}

void Generation::append_finish(std::string& out, const GenerationUpdate& update, bool called) {
  out += R"(,"finish_reason":)";
  if (update.finish_reason == FinishReason::kNone) {
    out += "null";
    return;
  }
  out += '"';
  const bool for_calls = called && update.finish_reason == FinishReason::kStop;
  out += for_calls ? "tool_calls" : finish_reason_name(update.finish_reason);
  out += R"(","stop_reason":)";
  if (const auto* id = std::get_if<int32_t>(&update.stop_reason)) {
    append_json_int(out, *id);
  } else if (const auto* text = std::get_if<std::string>(&update.stop_reason)) {
    append_json_string(out, *text);
  } else {
    out += "null";
  }
}

void append_token_ids(std::string& out, const std::vector<int32_t>& ids) {
  out += '[';
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, ids[i]);
  }
  out += ']';
}

}  // namespace reft
