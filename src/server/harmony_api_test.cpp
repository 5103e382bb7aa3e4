// Chat completions of a model that answers in channels (GPT-OSS).
#include "server/server_fake.h"

namespace reft {
namespace {

using fake::Reply;
using fake::stream_events;
using fake::TestServer;
using fake::user;

constexpr int32_t kFirst = 256;
constexpr const char* kSpecial[] = {"<|start|>",     "<|end|>",    "<|message|>", "<|channel|>",
                                    "<|constrain|>", "<|return|>", "<|call|>"};

class Tokens final : public fake::ByteTokenizer {
 public:
  std::optional<int32_t> token_to_id(std::string_view token) const override {
    for (size_t i = 0; i < std::size(kSpecial); ++i) {
      if (token == kSpecial[i]) return kFirst + static_cast<int32_t>(i);
    }
    return std::nullopt;
  }
  bool is_special(int32_t id) const override { return id >= kFirst; }
};

constexpr const char* kTemplate =
    "{# <|channel|> #}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.thinking %}({{ m.thinking }}){% endif %}{% endfor %}{{ reasoning_effort }}";
const std::string kPrompt = "<user>x";

// A server whose model answers the prompt <user>x with `answer`.
std::unique_ptr<TestServer> server_that_says(const std::string& answer) {
  fake::ModelSettings model;
  model.script.assign(400, fake::kEos);
  size_t at = kPrompt.size() - 1;
  for (size_t i = 0; i < answer.size();) {
    int32_t id = static_cast<unsigned char>(answer[i]);
    size_t length = 1;
    for (size_t s = 0; s < std::size(kSpecial); ++s) {
      if (answer.compare(i, std::strlen(kSpecial[s]), kSpecial[s]) != 0) continue;
      id = kFirst + static_cast<int32_t>(s);
      length = std::strlen(kSpecial[s]);
    }
    model.script.at(at++) = id;
    i += length;
  }
  ServerOptions options;
  options.chat_template = std::make_shared<const ChatTemplate>(kTemplate);
  return std::make_unique<TestServer>(std::move(model), std::move(options), EngineOptions{},
                                      std::make_shared<Tokens>());
}

const std::string kCalls =
    "<|channel|>analysis<|message|>Why?<|end|><|start|>assistant<|channel|>commentary"
    " to=functions.f <|constrain|>json<|message|>{\"a\":1}<|end|><|start|>assistant"
    " to=functions.g<|channel|>commentary json<|message|>{}<|end|>";

TEST(HarmonyApi, WholeAnswer) {
  const auto server = server_that_says(
      "<|channel|>analysis<|message|>Why?<|end|><|start|>assistant<|channel|>final<|message|>Yes.");
  const Json choice =
      server->post("/v1/chat/completions", {{"messages", user("x")}}).json()["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "Yes.");
  EXPECT_EQ(choice["message"]["reasoning_content"], "Why?");
  EXPECT_EQ(choice["message"]["reasoning"], "Why?");
  EXPECT_FALSE(choice["message"].contains("tool_calls"));
  EXPECT_EQ(choice["finish_reason"], "stop");
  const Json quiet =
      server->post("/v1/chat/completions", {{"messages", user("x")}, {"include_reasoning", false}})
          .json()["choices"][0];
  EXPECT_EQ(quiet["message"]["content"], "Yes.");
  EXPECT_FALSE(quiet["message"].contains("reasoning_content"));
}

TEST(HarmonyApi, ToolCalls) {
  const auto server = server_that_says(kCalls);
  const Json choice =
      server->post("/v1/chat/completions", {{"messages", user("x")}}).json()["choices"][0];
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_EQ(choice["message"]["reasoning_content"], "Why?");
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  const Json& calls = choice["message"]["tool_calls"];
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0]["type"], "function");
  EXPECT_EQ(calls[0]["function"], (Json{{"name", "f"}, {"arguments", "{\"a\":1}"}}));
  EXPECT_EQ(calls[1]["function"], (Json{{"name", "g"}, {"arguments", "{}"}}));
  EXPECT_TRUE(calls[0]["id"].get<std::string>().starts_with("call_"));
  EXPECT_NE(calls[0]["id"], calls[1]["id"]);
  // Cut off by length, it did not stop for its calls.
  const Json cut =
      server->post("/v1/chat/completions", {{"messages", user("x")}, {"max_tokens", 40}})
          .json()["choices"][0];
  EXPECT_EQ(cut["finish_reason"], "length");
}

TEST(HarmonyApi, Stream) {
  const auto server = server_that_says(kCalls);
  const Reply reply = server->post(
      "/v1/chat/completions",
      {{"messages", user("x")}, {"stream", true}, {"logprobs", true}, {"top_logprobs", 0}});
  ASSERT_EQ(reply.status, 200) << reply.body;
  std::string reasoning, finish;
  std::vector<Json> calls;
  size_t tokens = 0;
  for (const Json& event : stream_events(reply.body)) {
    const Json& choice = event["choices"][0];
    const Json& delta = choice["delta"];
    if (delta.contains("reasoning_content")) reasoning += delta["reasoning_content"];
    EXPECT_FALSE(delta.contains("content")) << event;
    if (delta.contains("tool_calls")) {
      const Json& call = delta["tool_calls"][0];
      const auto index = call["index"].get<size_t>();
      if (index == calls.size()) {
        EXPECT_EQ(call["type"], "function");
        calls.push_back(call["function"]);
      } else {
        ASSERT_EQ(index + 1, calls.size());
        EXPECT_FALSE(call.contains("id"));
        calls[index]["arguments"] = calls[index]["arguments"].get<std::string>() +
                                    call["function"]["arguments"].get<std::string>();
      }
    }
    if (choice["logprobs"].is_object()) tokens += choice["logprobs"]["content"].size();
    if (choice["finish_reason"].is_string()) finish = choice["finish_reason"];
  }
  EXPECT_EQ(reasoning, "Why?");
  EXPECT_EQ(calls, (std::vector<Json>{{{"name", "f"}, {"arguments", "{\"a\":1}"}},
                                      {{"name", "g"}, {"arguments", "{}"}}}));
  EXPECT_EQ(finish, "tool_calls");
  EXPECT_GT(tokens, 40u);
}

TEST(HarmonyApi, PromptsHaveEffortAndThoughts) {
  const auto server = server_that_says("");
  const auto rendered = [&](const Json& body) {
    return server->post("/apply_template", body).json().dump();
  };
  EXPECT_NE(rendered({{"messages", user("x")}, {"reasoning_effort", "high"}}).find("<user>xhigh"),
            std::string::npos);
  const Json call = {
      {"id", "1"}, {"type", "function"}, {"function", {{"name", "f"}, {"arguments", "{}"}}}};
  const Json said = {{"role", "assistant"},
                     {"reasoning_content", "hm"},
                     {"content", nullptr},
                     {"tool_calls", Json::array({call})}};
  Json messages = user("x");
  messages.push_back(said);
  EXPECT_NE(rendered({{"messages", messages}}).find("<assistant>(hm)"), std::string::npos);
}

}  // namespace
}  // namespace reft
