// One HTTP request's generations: submits its prompts to the engine, brings the updates to the
// connection's strand, aborts all when the client leaves or one of them fails.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/request.h"
#include "server/http.h"
#include "server/sampling_request.h"
#include "server/serve_context.h"

namespace reft {

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  virtual ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // Any thread. Submits one engine request per prompt with the same parameters. When the engine
  // refuses one, all are aborted and the refusal is the answer.
  void start(std::vector<std::vector<int32_t>> prompts);

 protected:
  Generation(ServeContext& context, std::shared_ptr<Exchange> exchange, GenerationFields fields,
             const std::string& id_prefix, std::string object);

  // On the strand, in the engine's order. Streams append to events_.
  virtual void on_update(size_t prompt, GenerationUpdate& update) = 0;
  // All outputs ended: answer with `answer`, or append the stream's end to events_.
  virtual void on_complete() = 0;
  void answer(std::string body);

  // `{"id":…,"object":…,"created":…,"model":…,"system_fingerprint":…` without the closing brace.
  std::string object_head() const;
  // Appends the usage object of all prompts and outputs.
  void append_usage(std::string& out) const;
  static void append_usage(std::string& out, int64_t prompt_tokens, int64_t completion_tokens,
                           int64_t cached_tokens);
  // `,"index":…` is left to the caller; appends `,"finish_reason":…` and, when ended,
  // `,"stop_reason":…`. Where `called`, an answer that stopped did so for its tool calls.
  static void append_finish(std::string& out, const GenerationUpdate& update, bool called = false);

  size_t num_outputs() const { return static_cast<size_t>(fields_.params.n); }

  ServeContext& context_;
  const std::shared_ptr<Exchange> exchange_;
  GenerationFields fields_;
  const std::string id_;
  const std::string object_;
  const int64_t created_;
  std::string events_;
  std::vector<std::vector<int32_t>> prompts_;
  bool hide_output_ = false;  // max_tokens 0: one token is generated and not shown

 private:
  void push(size_t prompt, GenerationUpdate&& update);
  void drain();
  void fail(int status, std::string_view message);
  void abort_all();
  void log_request() const;

  std::mutex mutex_;
  std::vector<std::pair<size_t, GenerationUpdate>> queue_;
  bool scheduled_ = false;
  std::vector<std::string> engine_ids_;  // submitted so far
  bool aborted_ = false;
  // On the strand.
  size_t running_ = 0;
  bool failed_ = false;
  std::vector<int64_t> completion_tokens_;  // by prompt and output
  std::vector<int64_t> cached_tokens_;      // by prompt
};

void append_token_ids(std::string& out, const std::vector<int32_t>& ids);

}  // namespace reft
