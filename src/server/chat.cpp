// /v1/chat/completions.
#include "server/chat_prompt.h"
#include "server/generation.h"
#include "server/handlers.h"
#include "server/json_writer.h"
#include "server/logprobs.h"
#include "server/openai_requests.h"
#include "text/harmony.h"

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
        include_reasoning_(request.include_reasoning),
        writer_(context.request.tokenizer.get(), fields_.tokens_as_ids),
        outputs_(num_outputs()) {
    if (request.harmony) {
      for (Output& output : outputs_) output.parser.emplace(context.request.require_tokenizer());
    }
    if (fields_.stream) chunk_head_ = "data: " + object_head();
  }

 private:
  struct ToolCall {
    std::string id, name, arguments;
  };
  struct Output {
    bool started = false;
    std::optional<HarmonyParser> parser;
    std::string text, reasoning;
    std::vector<ToolCall> calls;
    std::string logprobs;
    std::vector<int32_t> token_ids;
    GenerationUpdate last;
  };

  // The pieces of the update's tokens; without channels, its text.
  std::vector<AnswerDelta> read_deltas(Output& output, const GenerationUpdate& update) const {
    std::vector<AnswerDelta> deltas;
    if (!output.parser) {
      if (!update.text.empty()) deltas.push_back({.text = update.text, .tool_name = ""});
      return deltas;
    }
    const auto append = [&](std::vector<AnswerDelta> more) {
      for (AnswerDelta& delta : more) {
        if (delta.kind == AnswerDelta::Kind::kReasoning && !include_reasoning_) continue;
        deltas.push_back(std::move(delta));
      }
    };
    for (const int32_t id : update.token_ids) append(output.parser->add(id));
    if (update.finish_reason != FinishReason::kNone) append(output.parser->finish());
    return deltas;
  }

  static void keep(Output& output, AnswerDelta&& delta) {
    using Kind = AnswerDelta::Kind;
    if (delta.kind == Kind::kContent) output.text += delta.text;
    if (delta.kind == Kind::kReasoning) output.reasoning += delta.text;
    if (delta.kind != Kind::kToolCall) return;
    if (!delta.tool_name.empty())
      output.calls.push_back({"call_" + random_hex(24), std::move(delta.tool_name), ""});
    output.calls.back().arguments += delta.text;
  }

  void on_update(size_t, GenerationUpdate& update) override {
    Output& output = outputs_[static_cast<size_t>(update.index)];
    if (fields_.stream) return add_chunks(output, update);
    for (AnswerDelta& delta : read_deltas(output, update)) keep(output, std::move(delta));
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
    std::vector<AnswerDelta> deltas = read_deltas(output, update);
    const bool ends = update.finish_reason != FinishReason::kNone;
    const bool wants_tokens = fields_.return_token_ids && !update.token_ids.empty();
    if (deltas.empty() && update.logprobs.empty() && !ends && !wants_tokens) return;
    // The last piece's chunk carries what belongs to the update as a whole.
    for (size_t i = 0; i + 1 < deltas.size(); ++i) {
      start_chunk();
      append_delta(output, deltas[i]);
      events_ += R"(,"index":)";
      append_json_int(events_, update.index);
      events_ += R"(,"logprobs":null,"finish_reason":null)";
      end_chunk(update, nullptr);
    }
    start_chunk();
    if (!deltas.empty()) {
      append_delta(output, deltas.back());
    } else if (!output.parser && !update.logprobs.empty()) {
      events_ += R"({"content":""})";
    } else {
      events_ += "{}";
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
    append_finish(events_, update, !output.calls.empty());
    if (fields_.return_token_ids) {
      events_ += R"(,"token_ids":)";
      append_token_ids(events_, update.token_ids);
    }
    end_chunk(update, nullptr);
  }

  // Both names that clients look for.
  static void append_reasoning(std::string& out, const std::string& text) {
    out += R"("reasoning_content":)";
    append_json_string(out, text);
    out += R"(,"reasoning":)";
    append_json_string(out, text);
  }

  static void append_call_head(std::string& out, const ToolCall& call) {
    out += R"("id":")" + call.id + R"(","type":"function","function":{"name":)";
    append_json_string(out, call.name);
    out += ',';
  }

  // The delta's object; counts the calls.
  void append_delta(Output& output, const AnswerDelta& delta) {
    if (delta.kind == AnswerDelta::Kind::kContent) {
      events_ += R"({"content":)";
      append_json_string(events_, delta.text);
      events_ += '}';
      return;
    }
    if (delta.kind == AnswerDelta::Kind::kReasoning) {
      events_ += '{';
      append_reasoning(events_, delta.text);
      events_ += '}';
      return;
    }
    const bool begins = !delta.tool_name.empty();
    if (begins) output.calls.push_back({"call_" + random_hex(24), delta.tool_name, ""});
    events_ += R"({"tool_calls":[{"index":)";
    append_json_int(events_, static_cast<int64_t>(output.calls.size()) - 1);
    events_ += ',';
    if (begins) {
      append_call_head(events_, output.calls.back());
    } else {
      events_ += R"("function":{)";
    }
    events_ += R"("arguments":)";
    append_json_string(events_, delta.text);
    events_ += "}}]}";
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

  static void append_calls(std::string& out, const std::vector<ToolCall>& calls) {
    if (calls.empty()) return;
    out += R"(,"tool_calls":[)";
    for (size_t i = 0; i < calls.size(); ++i) {
      out += i > 0 ? ",{" : "{";
      append_call_head(out, calls[i]);
      out += R"("arguments":)";
      append_json_string(out, calls[i].arguments);
      out += "}}";
    }
    out += ']';
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
      if (output.text.empty() && echo_.empty() && output.parser) {
        out += "null";
      } else {
        append_json_string(out, echo_ + output.text);
      }
      if (!output.reasoning.empty()) {
        out += ',';
        append_reasoning(out, output.reasoning);
      }
      append_calls(out, output.calls);
      out += R"(,"refusal":null,"annotations":[]},"logprobs":)";
      if (output.logprobs.empty()) {
        out += "null";
      } else {
        out += R"({"content":[)" + output.logprobs + R"(],"refusal":null})";
      }
      append_finish(out, output.last, !output.calls.empty());
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
  const bool include_reasoning_;
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
