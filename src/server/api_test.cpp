// The endpoints: shapes of answers and streams, and that bad requests are refused with the field at
// fault.
#include "server/server_fake.h"

namespace reft {
namespace {

using fake::Client;
using fake::Reply;
using fake::stream_events;
using fake::TestServer;
using fake::user;
using fake::writes;

std::string pasted(const std::vector<Json>& events, const char* kind) {
  std::string text;
  for (const Json& event : events) {
    for (const Json& choice : event["choices"]) {
      if (std::string(kind) == "text") {
        text += choice["text"].get<std::string>();
      } else if (choice["delta"].contains("content")) {
        text += choice["delta"]["content"].get<std::string>();
      }
    }
  }
  return text;
}

TEST(Api, ChatAnswer) {
  TestServer server(writes("hello "));
  const Reply reply = server.post("/v1/chat/completions",
                                  {{"model", "alias"}, {"messages", user("x")}, {"max_tokens", 6}});
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(reply.headers.at("content-type"), "application/json");
  const Json body = reply.json();
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_GT(body["created"].get<int64_t>(), 1'700'000'000);
  EXPECT_EQ(body["model"], "fake") << "the first name, whichever was asked for";
  EXPECT_TRUE(body["system_fingerprint"].get<std::string>().starts_with("fp_"));
  ASSERT_EQ(body["choices"].size(), 1u);
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"].get<std::string>().size(), 6u);
  EXPECT_TRUE(choice["message"]["refusal"].is_null());
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_TRUE(choice["stop_reason"].is_null());
  EXPECT_TRUE(choice["logprobs"].is_null());
  const int64_t prompt = std::string("<user>x<assistant>").size();
  EXPECT_EQ(body["usage"]["prompt_tokens"], prompt);
  EXPECT_EQ(body["usage"]["completion_tokens"], 6);
  EXPECT_EQ(body["usage"]["total_tokens"], prompt + 6);
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

TEST(Api, ChatStream) {
  TestServer server(writes("hello "));
  const Reply reply =
      server.post("/v1/chat/completions", {{"messages", user("x")},
                                           {"max_tokens", 12},
                                           {"stream", true},
                                           {"stream_options", {{"include_usage", true}}}});
  ASSERT_EQ(reply.status, 200);
  const std::vector<Json> events = stream_events(reply.body);
  ASSERT_EQ(events.size(), 14u);
  EXPECT_EQ(events[0]["choices"][0]["delta"], (Json{{"role", "assistant"}}));
  for (const Json& event : events) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_EQ(event["id"], events[0]["id"]);
    EXPECT_EQ(event["created"], events[0]["created"]);
    EXPECT_EQ(event["model"], "fake");
    EXPECT_EQ(event["system_fingerprint"], events[0]["system_fingerprint"]);
    EXPECT_TRUE(event.contains("usage"));
    if (event["choices"].empty()) continue;
    EXPECT_TRUE(event["usage"].is_null());
    EXPECT_TRUE(event["choices"][0]["logprobs"].is_null());
    EXPECT_EQ(event["choices"][0]["index"], 0);
  }
  for (size_t i = 0; i < 12; ++i) EXPECT_TRUE(events[i]["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(events[12]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(events[13]["choices"], Json::array());
  EXPECT_EQ(events[13]["usage"]["completion_tokens"], 12);
  const Reply whole =
      server.post("/v1/chat/completions", {{"messages", user("x")}, {"max_tokens", 12}});
  EXPECT_EQ(pasted(events, "delta"), whole.json()["choices"][0]["message"]["content"]);
}

TEST(Api, ContinuousUsage) {
  TestServer server(writes("hello "));
  const Reply reply = server.post(
      "/v1/completions",
      {{"prompt", "abc"},
       {"max_tokens", 4},
       {"stream", true},
       {"stream_options", {{"include_usage", true}, {"continuous_usage_stats", true}}}});
  const std::vector<Json> events = stream_events(reply.body);
  ASSERT_EQ(events.size(), 5u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(events[i]["usage"]["completion_tokens"], i + 1);
    EXPECT_EQ(events[i]["usage"]["prompt_tokens"], 3);
  }
}

TEST(Api, CompletionAnswerAndStreamOverAllPromptKinds) {
  TestServer server(writes("hello "));
  for (const Json& prompt : {Json("abc"), Json::array({"abc", "de"}), Json::array({97, 98, 99}),
                             Json::array({{97, 98, 99}, {100, 101}})}) {
    const Json request = {{"prompt", prompt}, {"max_tokens", 5}, {"n", 2}};
    const Json body = server.post("/v1/completions", request).json();
    const size_t prompts = prompt.is_array() && !prompt[0].is_number() ? prompt.size() : 1;
    ASSERT_EQ(body["choices"].size(), prompts * 2) << prompt;
    EXPECT_EQ(body["object"], "text_completion");
    EXPECT_TRUE(body["id"].get<std::string>().starts_with("cmpl-"));
    EXPECT_EQ(body["usage"]["prompt_tokens"], prompts == 1 ? 3 : 5);
    EXPECT_EQ(body["usage"]["completion_tokens"], static_cast<int64_t>(prompts) * 10);
    Json streaming = request;
    streaming["stream"] = true;
    std::vector<std::string> texts(prompts * 2);
    for (const Json& event : stream_events(server.post("/v1/completions", streaming).body)) {
      texts[event["choices"][0]["index"].get<size_t>()] +=
          event["choices"][0]["text"].get<std::string>();
    }
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(body["choices"][i]["index"], i);
      EXPECT_EQ(body["choices"][i]["text"], texts[i]);
    }
  }
}

TEST(Api, EchoAndZeroTokens) {
  TestServer server(writes("hello "));
  Json body =
      server.post("/v1/completions", {{"prompt", "abc"}, {"max_tokens", 3}, {"echo", true}}).json();
  EXPECT_EQ(body["choices"][0]["text"].get<std::string>().substr(0, 3), "abc");
  EXPECT_EQ(body["choices"][0]["text"].get<std::string>().size(), 6u);
  for (const bool stream : {false, true}) {
    const Reply reply = server.post("/v1/completions", {{"prompt", {"abc", "de"}},
                                                        {"max_tokens", 0},
                                                        {"echo", true},
                                                        {"logprobs", 2},
                                                        {"stream", stream}});
    ASSERT_EQ(reply.status, 200) << reply.body;
    body = stream ? stream_events(reply.body)[0] : reply.json();
    const Json& choice = body["choices"][0];
    EXPECT_EQ(choice["text"], choice["index"] == 0 ? "abc" : "de");
    EXPECT_EQ(choice["finish_reason"], "length");
    const Json& logprobs = choice["logprobs"];
    EXPECT_EQ(logprobs["tokens"].size(), choice["text"].get<std::string>().size());
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
    EXPECT_LE(logprobs["token_logprobs"][1].get<double>(), 0);
    EXPECT_GE(logprobs["top_logprobs"][1].size(), 2u);
    EXPECT_EQ(logprobs["text_offset"][1], 1);
    if (!stream) {
      EXPECT_EQ(body["usage"]["completion_tokens"], 0);
    }
  }
}

TEST(Api, Logprobs) {
  TestServer server(writes("hello "));
  const Json request = {
      {"messages", user("x")}, {"max_tokens", 4}, {"logprobs", true}, {"top_logprobs", 3}};
  const Json body = server.post("/v1/chat/completions", request).json();
  const Json& content = body["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 4u);
  std::string text;
  for (const Json& token : content) {
    text += token["token"].get<std::string>();
    EXPECT_LE(token["logprob"].get<double>(), 0);
    ASSERT_EQ(token["top_logprobs"].size(), 3u);
    EXPECT_EQ(token["bytes"].size(), token["token"].get<std::string>().size());
    EXPECT_GE(token["top_logprobs"][0]["logprob"].get<double>(),
              token["top_logprobs"][2]["logprob"].get<double>());
    EXPECT_EQ(token["top_logprobs"][0]["token"], token["token"]);  // the script is certain
  }
  EXPECT_EQ(text, body["choices"][0]["message"]["content"]);
  Json streaming = request;
  streaming["stream"] = true;
  Json pasted_content = Json::array();
  for (const Json& event : stream_events(server.post("/v1/chat/completions", streaming).body)) {
    const Json& logprobs = event["choices"][0]["logprobs"];
    if (logprobs.is_null()) continue;
    for (const Json& token : logprobs["content"]) pasted_content.push_back(token);
  }
  EXPECT_EQ(pasted_content, content);

  const Json by_id = server
                         .post("/v1/completions", {{"prompt", "abc"},
                                                   {"max_tokens", 2},
                                                   {"logprobs", 0},
                                                   {"return_tokens_as_token_ids", true}})
                         .json();
  const Json& plain = by_id["choices"][0]["logprobs"];
  EXPECT_TRUE(plain["tokens"][0].get<std::string>().starts_with("token_id:"));
  EXPECT_EQ(plain["top_logprobs"][0].size(), 1u);
}

TEST(Api, PromptLogprobsAndTokenIds) {
  TestServer server(writes("hello "));
  const Json body = server
                        .post("/v1/completions", {{"prompt", "abc"},
                                                  {"max_tokens", 2},
                                                  {"prompt_logprobs", 1},
                                                  {"return_tokens_as_token_ids", true},
                                                  {"return_token_ids", true}})
                        .json();
  const Json& choice = body["choices"][0];
  ASSERT_EQ(choice["prompt_logprobs"].size(), 3u);
  EXPECT_TRUE(choice["prompt_logprobs"][0].is_null());
  const Json& entry = choice["prompt_logprobs"][1]["98"];
  EXPECT_EQ(entry["decoded_token"], "b") << "text, whatever the logprobs of the answer name";
  EXPECT_GE(entry["rank"].get<int>(), 1);
  EXPECT_EQ(choice["prompt_token_ids"], Json::array({97, 98, 99}));
  EXPECT_EQ(choice["token_ids"].size(), 2u);
  const std::vector<Json> events =
      stream_events(server
                        .post("/v1/chat/completions", {{"messages", user("x")},
                                                       {"max_tokens", 3},
                                                       {"stream", true},
                                                       {"return_token_ids", true}})
                        .body);
  EXPECT_EQ(events[0]["prompt_token_ids"].size(), std::string("<user>x<assistant>").size());
  size_t ids = 0;
  for (size_t i = 1; i < events.size(); ++i) ids += events[i]["choices"][0]["token_ids"].size();
  EXPECT_EQ(ids, 3u);
}

TEST(Api, StopStringsAndIds) {
  TestServer server(writes("hello world. "));
  for (const bool stream : {false, true}) {
    const Reply reply = server.post("/v1/completions", {{"prompt", "abcdefghijklm"},
                                                        {"max_tokens", 30},
                                                        {"stop", {"zzz", "wor"}},
                                                        {"stream", stream}});
    const std::string text = stream ? pasted(stream_events(reply.body), "text")
                                    : reply.json()["choices"][0]["text"].get<std::string>();
    EXPECT_EQ(text.find("wor"), std::string::npos);
    const Json last = stream ? stream_events(reply.body).back() : reply.json();
    EXPECT_EQ(last["choices"][0]["finish_reason"], "stop");
    EXPECT_EQ(last["choices"][0]["stop_reason"], "wor");
  }
  const Json body =
      server
          .post("/v1/completions",
                {{"prompt", "abcdefghijklm"}, {"max_tokens", 30}, {"stop_token_ids", {'w'}}})
          .json();
  EXPECT_EQ(body["choices"][0]["stop_reason"], 'w');
}

TEST(Api, SeedsRepeat) {
  TestServer server;
  const auto text = [&](int seed) {
    return server.post("/v1/completions", {{"prompt", "abc"}, {"max_tokens", 20}, {"seed", seed}})
        .json()["choices"][0]["text"]
        .get<std::string>();
  };
  EXPECT_EQ(text(5), text(5));
  EXPECT_NE(text(5), text(6));
  EXPECT_EQ(text(-5), text(-5));
}

TEST(Api, ModelsAndMetrics) {
  ServerOptions options;
  options.served_model_names = {"org/model\"x"};
  TestServer server(writes("abc"), options);
  const Json models = server.get("/v1/models").json();
  EXPECT_EQ(models["object"], "list");
  EXPECT_EQ(models["data"][0]["id"], "org/model\"x");
  EXPECT_EQ(models["data"][0]["max_model_len"], server.engine().max_model_len());
  EXPECT_EQ(server.get("/v1/models/org/model%22x").json()["object"], "model");
  Client client(server.port());  // the server counts an answer before it reads the next request
  ASSERT_EQ(client.post("/v1/completions", {{"prompt", "abc"}, {"max_tokens", 3}}).status, 200);
  const Reply reply = client.request("GET", "/metrics");
  EXPECT_TRUE(reply.headers.at("content-type").starts_with("text/plain"));
  const std::string labels = R"({model_name="org/model\"x",engine="0"})";
  for (const char* name : {"vllm:num_requests_running",
                           "vllm:num_requests_waiting",
                           "vllm:kv_cache_usage_perc",
                           "vllm:gpu_cache_usage_perc",
                           "vllm:prefix_cache_queries_total",
                           "vllm:prefix_cache_hits_total",
                           "vllm:num_preemptions_total",
                           "vllm:prompt_tokens_total",
                           "vllm:generation_tokens_total",
                           "vllm:time_to_first_token_seconds_sum",
                           "vllm:inter_token_latency_seconds_count",
                           "vllm:time_per_output_token_seconds_count",
                           "vllm:e2e_request_latency_seconds_count",
                           "vllm:request_queue_time_seconds_count",
                           "vllm:request_inference_time_seconds_count",
                           "vllm:request_prefill_time_seconds_count",
                           "vllm:request_decode_time_seconds_count",
                           "vllm:request_prompt_tokens_count",
                           "vllm:request_generation_tokens_count",
                           "vllm:request_params_n_count",
                           "vllm:request_params_max_tokens_count",
                           "vllm:iteration_tokens_total_count"}) {
    EXPECT_NE(reply.body.find(std::string(name) + labels), std::string::npos) << name;
  }
  EXPECT_NE(reply.body.find("vllm:generation_tokens_total" + labels + " 3\n"), std::string::npos);
  EXPECT_NE(reply.body.find(R"(vllm:request_success_total{model_name="org/model\"x",engine="0",)"
                            R"(finished_reason="length"} 1)"),
            std::string::npos);
  EXPECT_NE(reply.body.find("vllm:cache_config_info{"), std::string::npos);
  EXPECT_NE(reply.body.find(R"(http_requests_total{handler="/v1/completions",method="POST",)"
                            R"(status="2xx"} 1)"),
            std::string::npos);
}

TEST(Api, TokenizeAndTemplates) {
  TestServer server;
  Json body = server.post("/tokenize", {{"prompt", "ab"}, {"return_token_strs", true}}).json();
  EXPECT_EQ(body["count"], 2);
  EXPECT_EQ(body["tokens"], Json::array({97, 98}));
  EXPECT_EQ(body["token_strs"], Json::array({"a", "b"}));
  EXPECT_EQ(body["max_model_len"], server.engine().max_model_len());
  body = server.post("/tokenize", {{"messages", user("x")}}).json();
  EXPECT_EQ(body["count"], std::string("<user>x<assistant>").size());
  EXPECT_EQ(server.post("/detokenize", {{"tokens", {104, 105}}}).json()["prompt"], "hi");
  body =
      server
          .post("/apply_template",
                {{"messages", user("x")},
                 {"add_generation_prompt", false},
                 {"chat_template_kwargs", {{"extra", "E"}}},
                 {"tools", Json::array({{{"type", "function"}, {"function", {{"name", "f"}}}}})}})
          .json();
  EXPECT_EQ(body["prompt"], "<user>x[1 tools]E");
  // Not shown with tool_choice none; parts are joined; developer speaks as system.
  body =
      server
          .post("/apply_template",
                {{"messages",
                  {{{"role", "developer"}, {"content", "s"}},
                   {{"role", "user"},
                    {"content",
                     {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}}}}}},
                 {"tool_choice", "none"},
                 {"tools", Json::array({{{"type", "function"}, {"function", {{"name", "f"}}}}})}})
          .json();
  EXPECT_EQ(body["prompt"], "<system>s<user>a\nb<assistant>");
  body = server
             .post("/apply_template", {{"messages",
                                        {{{"role", "user"}, {"content", "q"}},
                                         {{"role", "assistant"}, {"content", "Sure"}}}},
                                       {"continue_final_message", true}})
             .json();
  EXPECT_EQ(body["prompt"], "<user>q<assistant>Sure");
}

TEST(Api, RequestTemplatesNeedTrust) {
  ServerOptions options;
  options.trust_request_chat_template = true;
  TestServer server({}, options);
  const Json request = {{"messages", user("x")}, {"chat_template", "T{{ messages[0].content }}"}};
  EXPECT_EQ(server.post("/apply_template", request).json()["prompt"], "Tx");
  for (const char* bad : {"{{", "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}",
                          "{% for i in range(1000000000) %}x{% endfor %}"}) {
    Json body = request;
    body["chat_template"] = bad;
    const Reply reply = server.post("/apply_template", body);
    // An unknown attribute renders as nothing; all else is refused.
    if (reply.status == 200) {
      EXPECT_EQ(reply.json()["prompt"], "") << bad;
    } else {
      EXPECT_EQ(reply.status, 400) << bad;
      EXPECT_EQ(reply.error("param"), "chat_template") << bad;
    }
  }
  EXPECT_TRUE(server.alive());
}

TEST(Api, ATemplateThatRaisesIsTheClientsFault) {
  ServerOptions options;
  options.chat_template =
      std::make_shared<const ChatTemplate>("{{ raise_exception('roles must alternate') }}");
  TestServer server({}, options);
  const Reply reply = server.post("/v1/chat/completions", {{"messages", user("x")}});
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("param"), "messages");
  EXPECT_NE(reply.error("message").find("roles must alternate"), std::string::npos);
}

TEST(Api, ModelWithoutTemplate) {
  const auto tokenizer = std::make_shared<fake::ByteTokenizer>();
  Engine engine(fake::load(), tokenizer, {});
  ServerOptions options;
  options.host = "127.0.0.1";
  options.port = 0;
  options.handle_signals = false;
  Server server(engine, tokenizer, options);
  std::thread thread([&] { server.run(); });
  const Reply reply = Client(server.port()).post("/v1/chat/completions", {{"messages", user("x")}});
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("param"), "messages");
  server.stop();
  server.stop();
  thread.join();
}

TEST(Api, ContextLimits) {
  EngineOptions engine;
  engine.max_model_len = 64;
  TestServer server(writes("abc"), {}, engine);
  const auto with_prompt = [&](int length, Json extra = Json::object()) {
    Json body = {{"prompt", std::string(static_cast<size_t>(length), 'p')}};
    body.update(extra);
    return server.post("/v1/completions", body);
  };
  EXPECT_EQ(with_prompt(63, {{"max_tokens", 1}}).status, 200);
  for (int length : {64, 65, 1000}) {
    const Reply reply = with_prompt(length, {{"max_tokens", 1}});
    EXPECT_EQ(reply.status, 400) << length;
    EXPECT_EQ(reply.error("param"), "prompt");
    EXPECT_EQ(reply.error("code"), "context_length_exceeded");
    EXPECT_NE(reply.error("message").find(std::to_string(length)), std::string::npos);
  }
  EXPECT_EQ(with_prompt(60, {{"max_tokens", 4}}).json()["usage"]["completion_tokens"], 4);
  EXPECT_EQ(with_prompt(60, {{"max_tokens", 5}}).error("param"), "max_tokens");
  EXPECT_EQ(with_prompt(60).json()["usage"]["completion_tokens"], 4);  // the default is bounded
  // Without a limit, ignore_eos goes on to the end of the context.
  Reply reply =
      server.post("/v1/chat/completions", {{"messages", user("x")}, {"ignore_eos", true}});
  EXPECT_EQ(reply.json()["usage"]["total_tokens"], 64);
  reply = server.post("/v1/chat/completions", {{"messages", user(std::string(500, 'x'))}});
  EXPECT_EQ(reply.error("param"), "messages");
  reply = with_prompt(1000, {{"truncate_prompt_tokens", 10}, {"max_tokens", 2}});
  EXPECT_EQ(reply.json()["usage"]["prompt_tokens"], 10);
  reply = with_prompt(1000, {{"truncate_prompt_tokens", -1}, {"max_tokens", 1}});
  EXPECT_EQ(reply.json()["usage"]["prompt_tokens"], 63);
}

TEST(Api, DefaultsComeFromTheGenerationConfig) {
  const auto tokens = [](const ServerOptions& options, Json extra) {
    TestServer server(writes("abc"), options);
    Json body = {{"messages", user("x")}};
    body.update(extra);
    return server.post("/v1/chat/completions", body)
        .json()["usage"]["completion_tokens"]
        .get<int64_t>();
  };
  ServerOptions options;
  options.override_generation_config = R"({"max_new_tokens": 7, "temperature": 0.0, "top_k": 5})";
  EXPECT_EQ(tokens(options, Json::object()), 7);
  EXPECT_EQ(tokens(options, {{"max_tokens", 3}}), 3);
  EXPECT_EQ(tokens(options, {{"max_tokens", 3}, {"max_completion_tokens", 5}}), 5);
  options.override_generation_config = R"({"max_new_tokens": "many", "top_p": 7})";  // ignored
  EXPECT_EQ(tokens(options, {{"max_tokens", 3}}), 3);
}

TEST(Api, CachedTokensAndSalt) {
  TestServer server(writes("abc"));
  const auto cached = [&](const char* salt) {
    Json body = {{"prompt", std::string(100, 'q')}, {"max_tokens", 2}};
    if (salt != nullptr) body["cache_salt"] = salt;
    return server.post("/v1/completions", body)
        .json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        .get<int64_t>();
  };
  EXPECT_EQ(cached(nullptr), 0);
  EXPECT_GT(cached(nullptr), 0);
  EXPECT_EQ(cached("tenant"), 0);
  EXPECT_GT(cached("tenant"), 0);
  // 1024 characters, however many bytes they have.
  std::string salt;
  for (int i = 0; i < 1024; ++i) salt += "é";
  EXPECT_EQ(cached(salt.c_str()), 0);
  const Reply reply = server.post("/v1/completions",
                                  {{"prompt", "x"}, {"max_tokens", 1}, {"cache_salt", salt + "é"}});
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("param"), "cache_salt");
}

TEST(Api, AnEngineFailureIsA500AndTheNextRequestWorks) {
  fake::ModelSettings model = writes("abc");
  model.poison = 'Z';
  TestServer server(model);
  const Reply reply = server.post("/v1/completions", {{"prompt", "aZ"}, {"max_tokens", 2}});
  EXPECT_EQ(reply.status, 500);
  EXPECT_EQ(reply.error("type"), "server_error");
  EXPECT_TRUE(server.alive());
  // In the middle of a stream the error is an event: the step that fails waits until the client has
  // read a token.
  fake::Gate gate;
  model = writes("aaaaaaZZ");
  model.poison = 'Z';
  std::atomic<int> step = 0;
  model.on_step = [&](const Batch&) {
    if (++step > 4) gate.pass();
  };
  TestServer later(model);
  Client client(later.port());
  const std::string body = R"({"prompt": "a", "max_tokens": 9, "stream": true})";
  client.send(
      "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
      "content-length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  EXPECT_TRUE(client.wait_for("data: "));
  gate.open();
  const Reply stream = client.read_reply();
  EXPECT_EQ(stream.status, 200);
  EXPECT_NE(stream.body.find("data: {\"error\":"), std::string::npos) << stream.body;
  EXPECT_TRUE(later.alive());
}

TEST(Api, AFullQueueIsA503) {
  EngineOptions engine;
  engine.max_num_seqs = 1;
  engine.max_queued_requests = 1;
  fake::Gate gate;
  fake::ModelSettings model = writes("abc");
  model.on_step = gate.step();
  TestServer server(model, {}, engine);
  std::vector<std::unique_ptr<Client>> clients;
  const std::string body = Json{{"prompt", "x"}, {"max_tokens", 5}, {"ignore_eos", true}}.dump();
  for (int i = 0; i < 6; ++i) {
    if (i == 2) {
      ASSERT_TRUE(server.becomes_busy(2));
    }
    clients.push_back(std::make_unique<Client>(server.port()));
    clients.back()->send(
        "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        "content-length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body);
    if (i < 2) continue;  // one runs, one waits
    const Reply reply = clients.back()->read_reply();
    ASSERT_EQ(reply.status, 503);
    EXPECT_EQ(reply.headers.at("retry-after"), "1");
  }
  gate.open();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(clients[static_cast<size_t>(i)]->read_reply().status, 200);
  EXPECT_TRUE(server.becomes_idle());
}

TEST(Api, TheSameRequestIdTwiceIsFine) {
  TestServer server(writes("abc", 2));
  Client a(server.port()), b(server.port());
  const std::string body = Json{{"prompt", "x"}, {"max_tokens", 20}, {"request_id", "same"}}.dump();
  const std::string text =
      "POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-request-id: same\r\n"
      "content-length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body;
  a.send(text);
  b.send(text);
  EXPECT_EQ(a.read_reply().json()["id"], "cmpl-same");
  EXPECT_EQ(b.read_reply().json()["id"], "cmpl-same");
}

// The table that the Python suite sends to a real server, too.
TEST(Api, BadRequestsAreRefusedWithTheFieldAtFault) {
  TestServer server(writes("abc"));
  Client client(server.port());
  for (const Json& item : read_json_file(REFT_SOURCE_DIR "/tests/serve/bad_requests.json")) {
    const std::string name = item["name"];
    const std::string method = json_get<std::string>(item, "method", "POST");
    std::map<std::string, std::string> headers;
    if (item.contains("headers")) {
      for (const auto& header : item["headers"].items()) headers[header.key()] = header.value();
    }
    std::string body;
    if (item.contains("raw")) body = item["raw"];
    if (item.contains("json")) body = item["json"].dump();
    const Reply reply = client.request(method, item["path"], body, headers);
    ASSERT_EQ(reply.status, item["status"]) << name << ": " << reply.body;
    const Json error = reply.json()["error"];
    EXPECT_TRUE(error["message"].is_string()) << name;
    EXPECT_EQ(error["type"], "invalid_request_error") << name;
    if (item.contains("param")) {
      EXPECT_EQ(error["param"], item["param"]) << name << ": " << reply.body;
    }
    if (item.contains("code")) {
      EXPECT_EQ(error["code"], item["code"]) << name;
    }
    EXPECT_EQ(client.request("GET", "/version").status, 200) << name;
  }
  EXPECT_TRUE(server.becomes_idle());
  EXPECT_TRUE(server.alive());
}

// Odd but legal: answered.
TEST(Api, OddRequestsThatAreFine) {
  TestServer server(writes("abc"));
  Client client(server.port());
  for (const Json& item : read_json_file(REFT_SOURCE_DIR "/tests/serve/odd_requests.json")) {
    std::string body = item.contains("raw") ? item["raw"].get<std::string>() : item["json"].dump();
    const Reply reply = client.request("POST", item["path"], body);
    EXPECT_EQ(reply.status, 200) << item["name"] << ": " << reply.body;
  }
}

TEST(Api, LargeInputs) {
  EngineOptions engine;
  engine.max_model_len = 4096;
  TestServer server(writes("abc"), {}, engine);
  const auto refused = [&](const std::string& path, const std::string& body, const char* param) {
    const Reply reply = Client(server.port()).request("POST", path, body);
    EXPECT_EQ(reply.status, 400) << body.substr(0, 60);
    EXPECT_EQ(reply.error("param"), param) << reply.body.substr(0, 300);
  };
  const std::string big(10 << 20, 'x');
  refused("/v1/completions", Json{{"prompt", big}}.dump(), "prompt");
  refused("/v1/chat/completions", Json{{"messages", user(big)}}.dump(), "messages");
  refused("/v1/chat/completions",
          Json{{"messages", Json::array({{{"role", big}, {"content", "x"}}})}}.dump(),
          "messages[0].role");
  refused("/v1/completions", Json{{"prompt", "x"}, {"stop", std::string(1 << 20, 's')}}.dump(),
          "stop");
  refused("/v1/completions", "{\"prompt\": " + std::string(100'000, '[') + "}", "prompt");
  Json ids = Json::array();
  for (int i = 0; i < 1'000'000; ++i) ids.push_back(5);
  refused("/v1/completions", Json{{"prompt", ids}}.dump(), "prompt");
  refused("/v1/completions", Json{{"prompt", std::vector<std::string>(100'000, "a")}}.dump(),
          "prompt");
  Json bias = Json::object();
  for (int i = 0; i < 299; ++i) bias[std::to_string(i)] = -100;
  EXPECT_EQ(
      server.post("/v1/completions", {{"prompt", "x"}, {"logit_bias", bias}, {"max_tokens", 2}})
          .status,
      200);
  std::string many_keys = "{\"prompt\": \"x\", \"logit_bias\": {\"0\": 1";
  for (int i = 0; i < 100'000; ++i) many_keys += fmt::format(",\"{}\": 1", i);
  refused("/v1/completions", many_keys + "}}", "logit_bias");
  Json parts = Json::array();
  for (int i = 0; i < 100'000; ++i) parts.push_back({{"type", "text"}, {"text", "y"}});
  refused("/v1/chat/completions",
          Json{{"messages", Json::array({{{"role", "user"}, {"content", parts}}})}}.dump(),
          "messages");
  refused("/v1/chat/completions",
          Json{{"messages", user("x")}, {"tools", Json::array()}}.dump().replace(
              0, 1, "{\"max_tokens\": 999999,"),
          "max_tokens");
  Json tools = Json::array();
  for (int i = 0; i < 10'000; ++i) {
    tools.push_back({{"type", "function"}, {"function", {{"name", fmt::format("f{}", i)}}}});
  }
  refused("/v1/chat/completions", Json{{"messages", user("x")}, {"tools", tools}}.dump(), "tools");
  EXPECT_EQ(server
                .post("/v1/completions", {{"prompt", "x"},
                                          {"max_tokens", 4},
                                          {"stop", std::vector<std::string>(1000, "zzz")}})
                .status,
            200);
  EXPECT_EQ(server
                .post("/v1/completions", {{"prompt", "x"},
                                          {"max_tokens", 4},
                                          {"bad_words", std::vector<std::string>(1000, "zz")}})
                .status,
            200);
  EXPECT_TRUE(server.alive());
}

// Every field with every wrong type: never a 5xx, and null counts as absent.
TEST(Api, EveryFieldWithEveryType) {
  TestServer server(writes("abc"));
  Client client(server.port());
  const std::vector<Json> values = {
      nullptr, true, -7, 0.5, "text", Json::array(), {1, 2}, Json::object(), {{"a", {{"b", 1}}}}};
  for (const char* field : {"model",
                            "messages",
                            "prompt",
                            "max_tokens",
                            "max_completion_tokens",
                            "stop",
                            "temperature",
                            "top_p",
                            "seed",
                            "n",
                            "best_of",
                            "frequency_penalty",
                            "presence_penalty",
                            "logit_bias",
                            "logprobs",
                            "top_logprobs",
                            "response_format",
                            "modalities",
                            "tools",
                            "tool_choice",
                            "parallel_tool_calls",
                            "functions",
                            "function_call",
                            "stream",
                            "stream_options",
                            "metadata",
                            "store",
                            "service_tier",
                            "user",
                            "suffix",
                            "echo",
                            "top_k",
                            "min_p",
                            "repetition_penalty",
                            "length_penalty",
                            "use_beam_search",
                            "min_tokens",
                            "ignore_eos",
                            "stop_token_ids",
                            "include_stop_str_in_output",
                            "skip_special_tokens",
                            "spaces_between_special_tokens",
                            "allowed_token_ids",
                            "bad_words",
                            "prompt_logprobs",
                            "truncate_prompt_tokens",
                            "add_generation_prompt",
                            "continue_final_message",
                            "add_special_tokens",
                            "documents",
                            "chat_template",
                            "chat_template_kwargs",
                            "reasoning_effort",
                            "priority",
                            "request_id",
                            "cache_salt",
                            "return_token_ids",
                            "return_tokens_as_token_ids",
                            "__proto__",
                            "unknown"}) {
    for (const char* path : {"/v1/chat/completions", "/v1/completions"}) {
      for (const Json& value : values) {
        Json body = {{"messages", user("x")}, {"prompt", "x"}, {"max_tokens", 2}};
        if (std::string(field) == "n" && value == Json(true)) continue;
        body[field] = value;
        const Reply reply = client.post(path, body);
        const std::string what = fmt::format("{} {}={}", path, field, value.dump());
        ASSERT_TRUE(reply.status == 200 || reply.status == 400 || reply.status == 404)
            << what << " gave " << reply.status;
        const bool required = std::string(field) == "messages" || std::string(field) == "prompt";
        if (value.is_null() && !required) {
          EXPECT_EQ(reply.status, 200) << what << reply.body;
        }
        if (reply.status != 200) {
          EXPECT_TRUE(reply.error("param").starts_with(field) ||
                      reply.error("param") == "messages" || reply.error("param") == "min_tokens")
              << what << ": " << reply.body;
        }
      }
    }
  }
  EXPECT_TRUE(server.alive());
}

}  // namespace
}  // namespace reft
