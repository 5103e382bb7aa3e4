// /v1/completions.
#include "server/generation.h"
#include "server/handlers.h"
#include "server/json_writer.h"
#include "server/logprobs.h"
#include "server/openai_requests.h"

namespace reft {
namespace {

class CompletionGeneration final : public Generation {
 public:
  CompletionGeneration(ServeContext& context, std::shared_ptr<Exchange> exchange,
                       CompletionRequest request)
      : Generation(context, std::move(exchange), std::move(request.generation), "cmpl-",
                   "text_completion"),
        echo_(std::move(request.echo)),
        wants_echo_(request.wants_echo),
        wants_prompt_logprobs_(request.wants_prompt_logprobs),
        num_top_(request.num_top),
        writer_(context.request.tokenizer.get(), fields_.tokens_as_ids),
        outputs_(request.prompts.size() * num_outputs()),
        prompt_logprobs_(request.prompts.size()) {
    hide_output_ = request.hide_output;
    if (fields_.stream) chunk_head_ = "data: " + object_head() + R"(,"choices":[{"index":)";
  }

 private:
  struct Output {
    bool started = false;
    std::string text;
    CompletionLogprobs logprobs;
    std::vector<int32_t> token_ids;
    GenerationUpdate last;
  };

  void on_update(size_t prompt, GenerationUpdate& update) override {
    const size_t index = prompt * num_outputs() + static_cast<size_t>(update.index);
    Output& output = outputs_[index];
    if (!update.prompt_logprobs.empty())
      prompt_logprobs_[prompt] = std::move(update.prompt_logprobs);
    const bool first = !output.started;
    if (first) {
      output.started = true;
      if (wants_echo_) {
        output.text = echo_[prompt];
        echo_logprobs(output, prompt);
      }
    }
    if (hide_output_) {
      update.text.clear();
      update.token_ids.clear();
      update.logprobs.clear();
      update.num_output_tokens = 0;
      if (update.finish_reason != FinishReason::kAbort) {
        update.finish_reason = FinishReason::kLength;
        update.stop_reason = std::monostate();
      }
    }
    output.text += update.text;
    for (size_t i = 0; i < update.logprobs.size() && i < update.token_ids.size(); ++i) {
      output.logprobs.add(writer_, update.token_ids[i], update.logprobs[i], num_top_);
    }
    output.token_ids.insert(output.token_ids.end(), update.token_ids.begin(),
                            update.token_ids.end());
    if (fields_.stream) {
      add_chunk(prompt, index, output, update, first);
    } else if (update.finish_reason != FinishReason::kNone) {
      output.last = std::move(update);
    }
  }

  void echo_logprobs(Output& output, size_t prompt) {
    if (!fields_.params.logprobs) return;
    for (size_t i = 0; i < prompts_[prompt].size(); ++i) {
      static const TokenLogprobs kNone;
      const TokenLogprobs& token =
          i < prompt_logprobs_[prompt].size() ? prompt_logprobs_[prompt][i] : kNone;
      output.logprobs.add(writer_, prompts_[prompt][i], token, num_top_);
    }
  }

  // `"text":…,"logprobs":…,"finish_reason":…,"stop_reason":…` and the token ids.
  void append_output(std::string& out, const Output& output, const GenerationUpdate& update,
                     const std::vector<int32_t>* prompt_ids) const {
    out += R"("text":)";
    append_json_string(out, output.text);
    out += R"(,"logprobs":)";
    if (fields_.params.logprobs && !output.logprobs.empty()) {
      output.logprobs.append(out);
    } else {
      out += "null";
    }
    append_finish(out, update);
    if (fields_.return_token_ids) {
      out += R"(,"token_ids":)";
      append_token_ids(out, output.token_ids);
      if (prompt_ids != nullptr) {
        out += R"(,"prompt_token_ids":)";
        append_token_ids(out, *prompt_ids);
      }
    }
  }

  void add_chunk(size_t prompt, size_t index, Output& output, const GenerationUpdate& update,
                 bool first) {
    const bool ends = update.finish_reason != FinishReason::kNone;
    const bool wants_tokens = fields_.return_token_ids && !output.token_ids.empty();
    if (output.text.empty() && output.logprobs.empty() && !ends && !wants_tokens) return;
    events_ += chunk_head_;
    append_json_int(events_, static_cast<int64_t>(index));
    events_ += ',';
    append_output(events_, output, update, first ? &prompts_[prompt] : nullptr);
    events_ += R"(}],"usage":)";
    if (fields_.continuous_usage) {
      append_usage(events_, static_cast<int64_t>(prompts_[prompt].size()), update.num_output_tokens,
                   update.num_cached_tokens);
    } else {
      events_ += "null";
    }
    events_ += "}\n\n";
    output.text.clear();
    output.logprobs.clear();
    output.token_ids.clear();
  }

  void on_complete() override {
    if (!fields_.stream) return answer(whole_answer());
    if (fields_.include_usage) {
      events_ += "data: " + object_head() + R"(,"choices":[],"usage":)";
      append_usage(events_);
      events_ += "}\n\n";
    }
    events_ += "data: [DONE]\n\n";
  }

  std::string whole_answer() const {
    std::string out = object_head() + R"(,"choices":[)";
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const size_t prompt = i / num_outputs();
      if (i > 0) out += ',';
      out += R"({"index":)";
      append_json_int(out, static_cast<int64_t>(i));
      out += ',';
      append_output(out, outputs_[i], outputs_[i].last, &prompts_[prompt]);
      if (wants_prompt_logprobs_) {
        out += R"(,"prompt_logprobs":)";
        writer_.append_prompt(out, prompt_logprobs_[prompt]);
      }
      out += '}';
    }
    out += R"(],"service_tier":null,"usage":)";
    append_usage(out);
    out += '}';
    return out;
  }

  const std::vector<std::string> echo_;
  const bool wants_echo_;
  const bool wants_prompt_logprobs_;
  const int num_top_;
  const LogprobWriter writer_;
  std::vector<Output> outputs_;
  std::vector<std::vector<TokenLogprobs>> prompt_logprobs_;  // by prompt
  std::string chunk_head_;                                   // the same bytes start every chunk
};

}  // namespace

void handle_completions(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  context.engine();
  CompletionRequest request =
      parse_completion_request(parse_request_body(exchange->request().body), context.request);
  std::vector<std::vector<int32_t>> prompts = request.prompts;
  std::make_shared<CompletionGeneration>(context, exchange, std::move(request))
      ->start(std::move(prompts));
}

}  // namespace reft
