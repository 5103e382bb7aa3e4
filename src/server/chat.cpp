// /v1/chat/completions.
#include "server/chat_prompt.h"
#include "server/generation.h"
#include "server/handlers.h"
#include "server/json_writer.h"
#include "server/logprobs.h"
#include "server/openai_requests.h"

namespace reft {
namespace {

class ChatGeneration final : public Generation {
 public:
  ChatGeneration(ServeContext& context, std::shared_ptr<Exchange> exchange, ChatRequest request)
      : Generation(context, std::move(exchange), std::move(request.generation), "chatcmpl-",
                   request.generation.stream ? "chat.completion.chunk" : "chat.completion"),
        echo_(std::move(request.echo)),
        role_(std::move(request.role)),
        num_top_(request.num_top),
        writer_(context.request.tokenizer.get(), fields_.tokens_as_ids),
        outputs_(num_outputs()) {
    if (fields_.stream) chunk_head_ = "data: " + object_head();
  }

 private:
  struct Output {
    bool started = false;
    std::string text;
    std::string logprobs;
    std::vector<int32_t> token_ids;
    GenerationUpdate last;
  };

  void on_update(size_t, GenerationUpdate& update) override {
    Output& output = outputs_[static_cast<size_t>(update.index)];
    if (fields_.stream) return add_chunks(output, update);
    output.text += update.text;
    output.token_ids.insert(output.token_ids.end(), update.token_ids.begin(),
                            update.token_ids.end());
    append_logprobs(output.logprobs, update);
    if (!update.prompt_logprobs.empty()) prompt_logprobs_ = std::move(update.prompt_logprobs);
    if (update.finish_reason != FinishReason::kNone) output.last = std::move(update);
  }

  void append_logprobs(std::string& out, const GenerationUpdate& update) const {
    for (const TokenLogprobs& token : update.logprobs) {
      if (!out.empty()) out += ',';
      writer_.append_chat(out, token, num_top_);
    }
  }

  void start_chunk() { events_ += chunk_head_ + R"(,"choices":[{"delta":)"; }

  void end_chunk(const GenerationUpdate& update, const Output* first) {
    events_ += R"(}],"usage":)";
    if (fields_.continuous_usage) {
      append_usage(events_, static_cast<int64_t>(prompts_[0].size()), update.num_output_tokens,
                   update.num_cached_tokens);
    } else {
      events_ += "null";
    }
    if (first != nullptr && fields_.return_token_ids) {
      events_ += R"(,"prompt_token_ids":)";
      append_token_ids(events_, prompts_[0]);
    }
    events_ += "}\n\n";
  }

  void add_plain_chunk(std::string_view key, std::string_view value, const GenerationUpdate& update,
                       const Output* first) {
    start_chunk();
    events_ += "{\"";
    events_ += key;
    events_ += "\":";
    append_json_string(events_, value);
    events_ += R"(},"index":)";
    append_json_int(events_, update.index);
    events_ += R"(,"logprobs":null,"finish_reason":null)";
    end_chunk(update, first);
  }

  void add_chunks(Output& output, const GenerationUpdate& update) {
    if (!output.started) {
      output.started = true;
      add_plain_chunk("role", role_, update, &output);
      if (!echo_.empty()) add_plain_chunk("content", echo_, update, nullptr);
    }
    const bool ends = update.finish_reason != FinishReason::kNone;
    const bool wants_tokens = fields_.return_token_ids && !update.token_ids.empty();
    if (update.text.empty() && update.logprobs.empty() && !ends && !wants_tokens) return;
    start_chunk();
    if (update.text.empty() && update.logprobs.empty()) {
      events_ += "{}";
    } else {
      events_ += R"({"content":)";
      append_json_string(events_, update.text);
      events_ += '}';
    }
    events_ += R"(,"index":)";
    append_json_int(events_, update.index);
    events_ += R"(,"logprobs":)";
    if (update.logprobs.empty()) {
      events_ += "null";
    } else {
      std::string items;
      append_logprobs(items, update);
      events_ += R"({"content":[)" + items + R"(],"refusal":null})";
    }
    append_finish(events_, update);
    if (fields_.return_token_ids) {
      events_ += R"(,"token_ids":)";
      append_token_ids(events_, update.token_ids);
    }
    end_chunk(update, nullptr);
  }

  void on_complete() override {
    if (!fields_.stream) return answer(whole_answer());
    if (fields_.include_usage) {
      events_ += chunk_head_ + R"(,"choices":[],"usage":)";
      append_usage(events_);
      events_ += "}\n\n";
    }
    events_ += "data: [DONE]\n\n";
  }

  std::string whole_answer() const {
    std::string out = object_head() + R"(,"choices":[)";
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const Output& output = outputs_[i];
      if (i > 0) out += ',';
      out += R"({"index":)";
      append_json_int(out, static_cast<int64_t>(i));
      out += R"(,"message":{"role":)";
      append_json_string(out, role_);
      out += R"(,"content":)";
      append_json_string(out, echo_ + output.text);
      out += R"(,"refusal":null,"annotations":[]},"logprobs":)";
      if (output.logprobs.empty()) {
        out += "null";
      } else {
        out += R"({"content":[)" + output.logprobs + R"(],"refusal":null})";
      }
      append_finish(out, output.last);
      if (fields_.return_token_ids) {
        out += R"(,"token_ids":)";
        append_token_ids(out, output.token_ids);
      }
      out += '}';
    }
    out += R"(],"service_tier":null,"usage":)";
    append_usage(out);
    if (!prompt_logprobs_.empty()) {
      out += R"(,"prompt_logprobs":)";
      writer_.append_prompt(out, prompt_logprobs_);
    }
    if (fields_.return_token_ids) {
      out += R"(,"prompt_token_ids":)";
      append_token_ids(out, prompts_[0]);
    }
    out += '}';
    return out;
  }

  const std::string echo_;
  const std::string role_;
  const int num_top_;
  const LogprobWriter writer_;
  std::vector<Output> outputs_;
  std::vector<TokenLogprobs> prompt_logprobs_;
  std::string chunk_head_;  // the same bytes start every chunk
};

}  // namespace

void handle_chat_completions(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  context.engine();
  ChatRequest request =
      parse_chat_request(parse_request_body(exchange->request().body), context.request);
  std::vector<std::vector<int32_t>> prompts = {std::move(request.prompt)};
  std::make_shared<ChatGeneration>(context, exchange, std::move(request))
      ->start(std::move(prompts));
}

}  // namespace reft
