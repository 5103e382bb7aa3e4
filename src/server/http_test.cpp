// HTTP itself: limits, lies, slow and vanishing clients, CORS, keys, shutdown.
#include <sys/resource.h>

#include "server/app.h"
#include "server/server_fake.h"

namespace reft {
namespace {

using fake::Client;
using fake::Reply;
using fake::TestServer;
using fake::user;
using fake::writes;

std::string long_request(int max_tokens) {
  const Json body = {{"prompt", "go"}, {"max_tokens", max_tokens}, {"ignore_eos", true}};
  return body.dump();
}

std::string stream_request(int max_tokens) {
  const Json body = {
      {"prompt", "go"}, {"max_tokens", max_tokens}, {"ignore_eos", true}, {"stream", true}};
  return body.dump();
}

std::string post_head(const std::string& path, size_t length) {
  return "POST " + path +
         " HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: " +
         std::to_string(length) + "\r\n\r\n";
}

std::string post_text(const std::string& path, const std::string& body) {
  return post_head(path, body.size()) + body;
}

ServerOptions short_limits() {
  ServerOptions options;
  options.max_body_bytes = 10'000;
  options.request_timeout_seconds = 0.3;
  options.keep_alive_seconds = 0.6;
  return options;
}

TEST(Http, AnswersTheSimpleRoutes) {
  TestServer server;
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(server.get("/ping").status, 200);
  EXPECT_EQ(server.get("/version").json()["version"], REFT_VERSION);
  EXPECT_EQ(server.post("/ping", Json::object()).status, 200);
  const Reply reply = Client(server.port()).request("HEAD", "/v1/models");
  EXPECT_EQ(reply.status, 200);
  EXPECT_NE(reply.headers.at("content-length"), "0");
}

TEST(Http, KeepsTheConnectionOpenAndTakesPipelinedRequests) {
  TestServer server(writes("abc"));
  Client client(server.port());
  std::string batch;
  for (int i = 0; i < 20; ++i) {
    batch += "GET /version HTTP/1.1\r\nhost: a\r\n\r\n";
    batch += post_text("/v1/completions", long_request(3));
  }
  ASSERT_TRUE(client.send(batch));
  for (int i = 0; i < 40; ++i) {
    const Reply reply = client.read_reply();
    ASSERT_EQ(reply.status, 200) << i;
    EXPECT_EQ(reply.json().contains("version"), i % 2 == 0);
  }
}

TEST(Http, SkipsEmptyLinesBeforeARequest) {
  TestServer server(writes("abc"));
  Client client(server.port());
  ASSERT_TRUE(client.send("\r\n"));  // alone, so that the connection stays idle
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(client.send(post_text("/v1/completions", long_request(1)) + "\r\n"));
    EXPECT_EQ(client.read_reply().status, 200);
  }
}

TEST(Http, Http10AndConnectionClose) {
  TestServer server(writes("abc"));
  Client old(server.port());
  const std::string body = stream_request(4);
  old.send("POST /v1/completions HTTP/1.0\r\ncontent-length: " + std::to_string(body.size()) +
           "\r\n\r\n" + body);
  const Reply reply = old.read_reply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(fake::stream_events(reply.body).size(), 4u);
  Client closing(server.port());
  closing.send("GET /version HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
  EXPECT_EQ(closing.read_reply().headers.at("connection"), "close");
  EXPECT_TRUE(closing.becomes_closed());
}

TEST(Http, HeaderLimits) {
  TestServer server;
  Client big(server.port());
  big.send("GET /version HTTP/1.1\r\nhost: a\r\nx: " + std::string(70'000, 'a') + "\r\n\r\n");
  EXPECT_EQ(big.read_reply().status, 431);
  Client endless(server.port());
  std::string line = "y: " + std::string(1000, 'b') + "\r\n";
  endless.send("GET /version HTTP/1.1\r\nhost: a\r\n");
  for (int i = 0; i < 200 && endless.send(line); ++i) {
  }
  EXPECT_EQ(endless.read_reply().status, 431);
  Client many(server.port());
  std::string text = "GET /version HTTP/1.1\r\nhost: a\r\n";
  for (int i = 0; i < 300; ++i) text += fmt::format("x-{}: 1\r\n", i);
  many.send(text + "\r\n");
  EXPECT_EQ(many.read_reply().status, 431);
  EXPECT_TRUE(server.alive());
}

TEST(Http, BodyLimitAnswersBeforeTheBody) {
  TestServer server({}, short_limits());
  Client client(server.port());
  client.send(post_head("/v1/completions", 20'000'000));
  const Reply reply = client.read_reply();
  EXPECT_EQ(reply.status, 413);
  EXPECT_EQ(reply.error("type"), "invalid_request_error");
  // Also when all of it is sent, and when chunks hide the length.
  Client sending(server.port());
  sending.send(post_text("/v1/completions", std::string(3'000'000, 'x')));
  EXPECT_EQ(sending.read_reply().status, 413);
  Client chunked(server.port());
  chunked.send("POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; ++i) chunked.send("400\r\n" + std::string(1024, 'y') + "\r\n");
  EXPECT_EQ(chunked.read_reply().status, 413);
  EXPECT_TRUE(server.alive());
}

TEST(Http, ContentLengthLies) {
  TestServer server({}, short_limits());
  for (const char* length : {"-5", "abc", "1e3", "99999999999999999999999", "0x10", ""}) {
    Client client(server.port());
    client.send(std::string("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: ") +
                length + "\r\n\r\n{}");
    const int status = client.read_reply().status;
    EXPECT_TRUE(status == 400 || status == 413) << length << " gave " << status;
  }
  Client two(server.port());
  two.send(
      "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n"
      "{}x");
  EXPECT_EQ(two.read_reply().status, 400);
  // Too short: the rest is not a request.
  Client brief(server.port());
  brief.send(post_head("/tokenize", 2) + "{}GARBAGE\r\n\r\n");
  EXPECT_EQ(brief.read_reply().status, 400);
  EXPECT_EQ(brief.read_reply().status, 400);
  EXPECT_TRUE(brief.becomes_closed());
  // Too long: the body never comes.
  Client slow(server.port());
  slow.send(post_head("/tokenize", 5000) + "{}");
  EXPECT_EQ(slow.read_reply().status, 408);
  Client gone(server.port());
  gone.send(post_head("/tokenize", 5000) + "{}");
  gone.close();
  EXPECT_TRUE(server.alive());
}

TEST(Http, ChunkedBodies) {
  TestServer server(writes("abc"), short_limits());
  Client good(server.port());
  good.send(
      "POST /tokenize HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
      "5;x=y\r\n{\"pro\r\n10\r\nmpt\": \"hello\"   \r\n1\r\n}\r\n0\r\ntrailer: 1\r\n\r\n");
  const Reply reply = good.read_reply();
  EXPECT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(good.request("GET", "/version").status, 200);
  for (const char* chunks : {"zz\r\n{}\r\n0\r\n\r\n", "-1\r\n{}\r\n", "2\r\n{}GARBAGE",
                             "ffffffffffffffffffff\r\n{}", "\r\n\r\n"}) {
    Client bad(server.port());
    bad.send(
        std::string("POST /tokenize HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n") +
        chunks);
    const int status = bad.read_reply().status;
    EXPECT_TRUE(status >= 400 && status < 500) << chunks << " gave " << status;
  }
  // Both lengths: request smuggling.
  for (const char* head : {"content-length: 4\r\ntransfer-encoding: chunked\r\n",
                           "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
                           "transfer-encoding: xchunked\r\n", "transfer-encoding: gzip\r\n"}) {
    Client client(server.port());
    client.send(std::string("POST /tokenize HTTP/1.1\r\nhost: a\r\n") + head +
                "\r\n0\r\n\r\nGET /version HTTP/1.1\r\nhost: a\r\n\r\n");
    const int status = client.read_reply().status;
    EXPECT_TRUE(status == 0 || (status >= 400 && status < 500)) << head << " gave " << status;
    EXPECT_TRUE(client.becomes_closed()) << head;
  }
  EXPECT_TRUE(server.alive());
}

TEST(Http, GarbageAndTls) {
  TestServer server;
  Client tls(server.port());
  tls.send(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) +
           std::string(500, '\x01'));
  EXPECT_TRUE(tls.becomes_closed());
  for (const std::string& text :
       {std::string("hello\r\n\r\n"), std::string("GET\r\n\r\n"),
        std::string("GET / HTTP/9.9\r\n\r\n"), std::string("GET /\r\n\r\n"),
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), std::string(1000, '\0') + "\r\n\r\n",
        std::string("GET / HTTP/1.1\r\nbad header\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nx: a\x01b\r\n\r\n")}) {
    Client client(server.port());
    client.send(text);
    const int status = client.read_reply().status;
    EXPECT_TRUE(status == 0 || status == 400 || status == 505) << text << " gave " << status;
  }
  EXPECT_TRUE(server.alive());
}

TEST(Http, SlowlorisIsCut) {
  TestServer server({}, short_limits());
  Client head(server.port()), body(server.port());
  body.send(post_head("/tokenize", 5000));
  head.send("GET /version HTTP/1.1\r\n");
  // (Neither limit would end a header or a body for which bytes keep coming.)
  bool head_open = true, body_open = true;
  EXPECT_TRUE(fake::becomes_true([&] {
    head_open = head_open && head.send("x: 1\r\n");
    body_open = body_open && body.send("a");
    return !head_open && !body_open;
  }));
  EXPECT_TRUE(server.alive());
}

TEST(Http, IdleConnectionsEndAfterKeepAlive) {
  TestServer server({}, short_limits());
  Client fresh(server.port()), used(server.port());
  EXPECT_EQ(used.request("GET", "/version").status, 200);
  EXPECT_TRUE(fresh.becomes_closed());
  EXPECT_TRUE(used.becomes_closed());
}

TEST(Http, ExpectContinue) {
  TestServer server({}, short_limits());
  Client client(server.port());
  client.send(
      "POST /tokenize HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 15\r\n\r\n");
  ASSERT_TRUE(client.wait_for("100 Continue"));
  client.send(R"({"prompt": "a"})");
  EXPECT_EQ(client.read_reply().status, 200);
  Client refused(server.port());
  refused.send(
      "POST /nope HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 15\r\n\r\n");
  EXPECT_EQ(refused.read_reply().status, 404);
}

TEST(Http, DisconnectAbortsTheRequest) {
  TestServer server(writes("abc", 2));
  {  // before the body
    Client client(server.port());
    client.send(post_head("/v1/completions", 100));
  }
  {  // not streaming
    Client client(server.port());
    client.send(post_text("/v1/completions", long_request(4000)));
    ASSERT_TRUE(server.becomes_busy());
  }
  EXPECT_TRUE(server.becomes_idle());
  {  // in the middle of a stream
    Client client(server.port());
    client.send(post_text("/v1/completions", stream_request(4000)));
    ASSERT_TRUE(client.wait_for("data: "));
  }
  EXPECT_TRUE(server.becomes_idle());
  {  // with n outputs and several prompts
    Client client(server.port());
    const Json body = {{"prompt", {"a", "b", "c"}},
                       {"n", 3},
                       {"max_tokens", 4000},
                       {"ignore_eos", true},
                       {"stream", true}};
    client.send(post_text("/v1/completions", body.dump()));
    ASSERT_TRUE(client.wait_for("data: "));
  }
  EXPECT_TRUE(server.becomes_idle());
  {  // half-closed counts as gone
    Client client(server.port());
    client.send(post_text("/v1/completions", long_request(4000)));
    ASSERT_TRUE(server.becomes_busy());
    ::shutdown(client.fd(), SHUT_WR);
    EXPECT_TRUE(server.becomes_idle());
  }
  {  // after [DONE]
    Client client(server.port());
    client.send(post_text("/v1/completions", stream_request(3)));
    ASSERT_TRUE(client.wait_for("[DONE]"));
  }
  EXPECT_GE(server.engine().stats().finished[static_cast<size_t>(FinishReason::kAbort)], 4u);
  EXPECT_TRUE(server.alive());
}

TEST(Http, DisconnectDuringALongPrefillAborts) {
  EngineOptions engine;
  engine.max_num_batched_tokens = 16;
  // The prefill would take 12 s.
  TestServer server(writes("abc", 50), {}, engine);
  {
    Client client(server.port());
    const Json body = {{"prompt", std::string(4000, 'p')}, {"max_tokens", 5}};
    client.send(post_text("/v1/completions", body.dump()));
    ASSERT_TRUE(server.becomes_busy());
  }
  EXPECT_TRUE(server.becomes_idle());
  EXPECT_EQ(server.engine().stats().generation_tokens, 0u);
}

TEST(Http, PingsWhileAStreamIsSilent) {
  ServerOptions options;
  options.ping_seconds = 0.1;
  fake::Gate gate;
  fake::ModelSettings model = writes("abc");
  model.on_step = gate.step();
  TestServer server(model, options);
  Client client(server.port());
  client.send(post_text("/v1/completions", stream_request(2)));
  ASSERT_TRUE(client.wait_for(": ping\n\n"));
  EXPECT_EQ(client.data().find("data: "), std::string::npos);
  gate.open();
  const Reply reply = client.read_reply();
  EXPECT_EQ(reply.headers.at("cache-control"), "no-cache");
  EXPECT_EQ(reply.headers.at("x-accel-buffering"), "no");
  EXPECT_EQ(reply.headers.at("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(fake::stream_events(reply.body).size(), 2u);
}

TEST(Http, ASlowReaderIsAbortedAndOthersAreNotHeldUp) {
  ServerOptions options;
  options.max_stream_buffer_bytes = 20'000;
  TestServer server(writes("abc"), options);
  Client slow(server.port(), 2048);
  slow.send(post_text("/v1/completions", Json{{"prompt", "go"},
                                              {"n", 64},
                                              {"max_tokens", 4000},
                                              {"ignore_eos", true},
                                              {"stream", true},
                                              {"logprobs", 5}}
                                             .dump()));
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "x"}, {"max_tokens", 3}}).status, 200);
  // Idle it may also be before it has read the first request.
  EXPECT_TRUE(fake::becomes_true([&] {
    return server.engine().stats().finished[static_cast<size_t>(FinishReason::kAbort)] > 0;
  }));
  EXPECT_TRUE(server.becomes_idle());
}

TEST(Http, ThousandsOfIdleConnections) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  // Client and server ends live in this process.
  const size_t count = std::min<size_t>(10'000, (limit.rlim_cur - 200) / 2);
  if (count < 1000) GTEST_SKIP() << "the descriptor limit is too low: " << limit.rlim_cur;
  TestServer server(writes("abc"));
  std::vector<std::unique_ptr<Client>> clients;
  for (size_t i = 0; i < count; ++i) clients.push_back(std::make_unique<Client>(server.port()));
  EXPECT_TRUE(server.alive());
  EXPECT_EQ(clients.front()->request("GET", "/version").status, 200);
  EXPECT_EQ(clients.back()->request("GET", "/version").status, 200);
  clients.clear();
  EXPECT_TRUE(server.alive());
}

TEST(Http, OverTheConnectionLimitTheLongestIdleGoes) {
  ServerOptions options;
  options.max_connections = 4;
  TestServer server(writes("abc", 2), options);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<Client>(server.port()));
    EXPECT_EQ(clients.back()->request("GET", "/version").status, 200);
    ASSERT_TRUE(server.becomes_idle_on(std::min<size_t>(clients.size(), 4)));
  }
  EXPECT_TRUE(clients[0]->becomes_closed());
  EXPECT_EQ(clients[5]->request("GET", "/version").status, 200);
  // All busy: refused, and served again later.
  clients.clear();
  ASSERT_TRUE(server.becomes_idle_on(0));
  for (int i = 0; i < 4; ++i) {
    clients.push_back(std::make_unique<Client>(server.port()));
    clients.back()->send(post_text("/v1/completions", stream_request(4000)));
    ASSERT_TRUE(clients.back()->wait_for("data: "));
  }
  EXPECT_EQ(Client(server.port()).read_reply().status, 503);
  clients.clear();
  EXPECT_TRUE(server.becomes_idle());
  ASSERT_TRUE(server.becomes_idle_on(0));  // what is closed is no longer counted
  EXPECT_TRUE(server.alive());
}

TEST(Http, RunningOutOfDescriptorsIsSurvived) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  TestServer server(writes("abc"));
  std::vector<int> hoard;
  rlimit low = limit;
  low.rlim_cur = std::min<rlim_t>(limit.rlim_cur, 512);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  for (;;) {
    const int fd = ::dup(0);
    if (fd < 0) break;
    hoard.push_back(fd);
  }
  ASSERT_FALSE(hoard.empty());
  ::close(hoard.back());
  hoard.pop_back();
  {
    Client waiting(server.port());  // takes the last descriptor: the server cannot accept
    waiting.send("GET /version HTTP/1.1\r\nhost: a\r\n\r\n");
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    for (int fd : hoard) ::close(fd);
    EXPECT_EQ(waiting.read_reply().status, 200);
  }
  ::setrlimit(RLIMIT_NOFILE, &limit);
  EXPECT_TRUE(server.alive());
}

TEST(Http, Cors) {
  TestServer server;
  Client client(server.port());
  Reply reply = client.request("OPTIONS", "/v1/chat/completions", "",
                               {{"origin", "http://evil.example"},
                                {"access-control-request-method", "POST"},
                                {"access-control-request-headers", "authorization,content-type"}});
  EXPECT_EQ(reply.status, 204);
  EXPECT_EQ(reply.headers.at("access-control-allow-origin"), "*");
  EXPECT_EQ(reply.headers.at("access-control-allow-headers"), "authorization,content-type");
  reply = client.request("OPTIONS", "/v1/models");
  EXPECT_EQ(reply.status, 204);
  EXPECT_EQ(reply.headers.at("allow"), "GET, HEAD, OPTIONS");
  EXPECT_EQ(client.request("OPTIONS", "/nope").status, 404);

  ServerOptions strict;
  strict.allowed_origins = {"http://good.example"};
  strict.allow_credentials = true;
  strict.api_keys = {"k"};
  TestServer closed({}, strict);
  Client other(closed.port());
  reply =
      other.request("OPTIONS", "/v1/models", "",
                    {{"origin", "http://evil.example"}, {"access-control-request-method", "GET"}});
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.headers.count("access-control-allow-origin"), 0u);
  reply = other.request("GET", "/version", "", {{"origin", "http://good.example"}});
  EXPECT_EQ(reply.headers.at("access-control-allow-origin"), "http://good.example");
  EXPECT_EQ(reply.headers.at("access-control-allow-credentials"), "true");
  // A refusal must be readable by the page, too.
  reply = other.request("GET", "/v1/models", "", {{"origin", "http://good.example"}});
  EXPECT_EQ(reply.status, 401);
  EXPECT_EQ(reply.headers.at("access-control-allow-origin"), "http://good.example");
}

TEST(Http, ApiKeys) {
  ServerOptions options;
  options.api_keys = {"first-key", "second"};
  TestServer server(writes("abc"), options);
  Client client(server.port());
  for (const char* open : {"/health", "/ping", "/version"}) {
    EXPECT_EQ(client.request("GET", open).status, 200) << open;
  }
  const std::string body = long_request(2);
  for (const char* path :
       {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/apply_template"}) {
    const Reply reply = client.request("POST", path, body);
    EXPECT_EQ(reply.status, 401) << path;
    EXPECT_EQ(reply.error("code"), "invalid_api_key");
  }
  EXPECT_EQ(client.request("GET", "/metrics").status, 401);
  EXPECT_EQ(client.request("GET", "/v1/models").status, 401);
  for (const char* bad : {"Bearer wrong", "Bearer first-ke", "Bearer first-keyy", "Bearer ",
                          "Basic first-key", "first-key", "Bearerfirst-key"}) {
    EXPECT_EQ(client.request("GET", "/v1/models", "", {{"authorization", bad}}).status, 401) << bad;
  }
  EXPECT_EQ(client
                .request("GET", "/v1/models", "",
                         {{"authorization", "Bearer " + std::string(50'000, 'k')}})
                .status,
            401);
  for (const char* good : {"Bearer first-key", "bearer second"}) {
    EXPECT_EQ(client.request("GET", "/v1/models", "", {{"authorization", good}}).status, 200);
  }
  EXPECT_EQ(client.request("GET", "/v1/models", "", {{"x-api-key", "second"}}).status, 200);
  EXPECT_EQ(
      client.request("POST", "/v1/completions", body, {{"authorization", "Bearer second"}}).status,
      200);
}

TEST(Http, RequestIds) {
  TestServer server(writes("abc"));
  Client client(server.port());
  Reply reply = client.request("GET", "/version", "", {{"x-request-id", "my-id-1"}});
  EXPECT_EQ(reply.headers.at("x-request-id"), "my-id-1");
  reply = client.request("GET", "/version");
  EXPECT_EQ(reply.headers.at("x-request-id").size(), 32u);
  for (const std::string& odd :
       {std::string("a b"), std::string(500, 'x'), std::string("\xff\xfe")}) {
    reply = client.request("GET", "/version", "", {{"x-request-id", odd}});
    EXPECT_EQ(reply.status, 200);
    EXPECT_NE(reply.headers.at("x-request-id"), odd);
  }
  reply = client.request("POST", "/v1/completions", long_request(2), {{"x-request-id", "abc"}});
  EXPECT_EQ(reply.json()["id"], "cmpl-abc");
}

TEST(Http, RootPath) {
  ServerOptions options;
  options.root_path = "/llm";
  TestServer server({}, options);
  EXPECT_EQ(server.get("/llm/version").status, 200);
  EXPECT_EQ(server.get("/version").status, 200);
  EXPECT_EQ(server.get("/llmversion").status, 404);
}

TEST(Http, GracefulShutdownFinishesRunningRequests) {
  fake::Gate gate;
  fake::ModelSettings model = writes("abc");
  model.on_step = gate.step();
  TestServer server(model);
  Client streaming(server.port()), waiting(server.port()), idle(server.port());
  idle.request("GET", "/version");
  streaming.send(post_text("/v1/completions", stream_request(60)));
  waiting.send(post_text("/v1/completions", long_request(60)));
  ASSERT_TRUE(server.becomes_busy(2));
  server.drain();
  EXPECT_TRUE(idle.becomes_closed());
  gate.open();
  const Reply streamed = streaming.read_reply();
  const auto events = fake::stream_events(streamed.body);
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "length");
  const Reply reply = waiting.read_reply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("connection"), "close");
  EXPECT_EQ(reply.json()["usage"]["completion_tokens"], 60);
  server.join();
  EXPECT_THROW(Client(server.port()), Error);
}

TEST(Http, ShutdownAbortsAfterTheTimeout) {
  ServerOptions options;
  options.shutdown_timeout_seconds = 0.2;
  TestServer server(writes("abc", 5), options);
  Client streaming(server.port()), waiting(server.port());
  streaming.send(post_text("/v1/completions", stream_request(4000)));
  waiting.send(post_text("/v1/completions", long_request(4000)));
  ASSERT_TRUE(streaming.wait_for("data: "));
  ASSERT_TRUE(server.becomes_busy(2));
  server.drain();
  const auto events = fake::stream_events(streaming.read_reply().body);
  EXPECT_EQ(events.back()["error"]["code"], "shutting_down");
  const Reply refused = waiting.read_reply();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.json()["error"]["code"], "shutting_down");
  server.join();
  EXPECT_TRUE(fake::becomes_true([&] {
    return server.engine().stats().finished[static_cast<size_t>(FinishReason::kAbort)] == 2;
  }));
}

TEST(Http, PortInUseIsAClearError) {
  TestServer server;
  ServerOptions options;
  options.host = "127.0.0.1";
  options.port = server.port();
  try {
    Server second(server.engine(), nullptr, options);
    FAIL() << "bound twice";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("--port"), std::string::npos) << e.what();
  }
}

TEST(Http, DecodesTargets) {
  EXPECT_EQ(decode_target("/a%20b?x=1"), "/a b");
  EXPECT_EQ(decode_target("http://host:80/a"), "/a");
  EXPECT_EQ(decode_target("http://host"), "/");
  for (const char* bad : {"", "*", "a", "/%", "/%4", "/%zz", "/%00", "/a/../b", "/..", "/%2e%2e/x",
                          "/%c0%ae", "/\\..\\x", "/%0d%0a"}) {
    EXPECT_EQ(decode_target(bad), "") << bad;
  }
}

}  // namespace
}  // namespace reft
