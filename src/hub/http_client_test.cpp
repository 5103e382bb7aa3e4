#include "hub/http_client.h"
#include "base/error_of_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>  // NOLINT: setenv

#include <atomic>
#include <optional>
#include <semaphore>

#include "hub/fake_hub_test.h"

namespace reft {
namespace {

using testing::HasSubstr;
using Request = TestServer::Request;
using Socket = TestServer::Socket;

std::string answer(const std::string& body, const std::string& headers = "",
                   const char* status = "200 OK") {
  return fmt::format("HTTP/1.1 {}\r\n{}Content-Length: {}\r\n\r\n{}", status, headers, body.size(),
                     body);
}

// A server that sends the same bytes to everybody.
TestServer canned(const std::string& text, bool keep_open = true) {
  return TestServer([text, keep_open](const Request&, Socket& socket) {
    TestServer::send(socket, text);
    return keep_open;
  });
}
ClientResponse get(const std::string& url) {
  HttpClient client;
  ClientRequest request;
  request.url = url;
  request.idle_timeout_s = 5;
  return client.send(request);
}
std::string get_error(const std::string& url) {
  return error_of([&] { get(url); });
}

TEST(Url, Parses) {
  const Url url = parse_url("HTTP://Example.com:8080?q=1#x");
  EXPECT_EQ(url.scheme, "http");
  EXPECT_EQ(url.host, "example.com");
  EXPECT_EQ(url.port, 8080);
  EXPECT_EQ(url.target, "/?q=1");
  EXPECT_EQ(url.str(), "http://example.com:8080/?q=1");
  EXPECT_EQ(parse_url("https://[::1]/a").host, "::1");
  EXPECT_EQ(parse_url("https://[::1]:7/a").authority(), "[::1]:7");
  EXPECT_EQ(parse_url("https://h").port, 443);
  for (const char* bad :
       {"", "h", "ftp://h/", "file:///etc/passwd", "http://", "http://:80/", "http://u@h/",
        "http://h\\@x/", "http://h:0/", "http://h:99999/", "http://h:1x/", "http://h /",
        "http://h/\r\nX: y", "http://[::1", "http://[::1]x/"}) {
    EXPECT_NE(error_of([&] { parse_url(bad); }), "") << bad;
  }
}

TEST(Url, ResolvesLocations) {
  const Url base = parse_url("https://h:1/a/b?q=x://y");
  EXPECT_EQ(resolve_url(base, "http://o/p").str(), "http://o/p");
  EXPECT_EQ(resolve_url(base, "//o/p").str(), "https://o/p");
  EXPECT_EQ(resolve_url(base, "/p").str(), "https://h:1/p");
  EXPECT_EQ(resolve_url(base, "c?d").str(), "https://h:1/a/c?d");
  EXPECT_EQ(resolve_url(base, "?d=http://z").str(), "https://h:1/a/b?d=http://z");
  EXPECT_EQ(encode_url_path("a b/ü+%.x"), "a%20b/%C3%BC%2B%25.x");
}

TEST(HttpClient, SendsAndReceives) {
  std::string seen;
  TestServer server([&](const Request& request, Socket& socket) {
    seen = fmt::format("{} {} {} {} {}", std::string(request.method_string()),
                       std::string(request.target()), std::string(request["Host"]),
                       std::string(request["X-Test"]), request.body());
    TestServer::send(socket, answer("hello", "X-Reply: yes\r\n", "201 Created"));
    return true;
  });
  HttpClient client;
  ClientRequest request;
  request.method = "POST";
  request.url = server.address() + "/path?q=1";
  request.headers = {{"X-Test", "value"}};
  request.body = "the body";
  const ClientResponse response = client.send(request);
  EXPECT_EQ(response.status, 201);
  EXPECT_EQ(response.body, "hello");
  EXPECT_EQ(response.header("x-reply"), "yes");
  EXPECT_EQ(seen, "POST /path?q=1 " + server.address().substr(7) + " value the body");
}

TEST(HttpClient, KeepsConnectionsAlive) {
  TestServer server = canned(answer("x"));
  HttpClient client;
  ClientRequest request;
  request.url = server.address();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(client.send(request).body, "x");
  EXPECT_EQ(server.num_connections(), 1);
  // A server that closes after each answer is no fault.
  TestServer closing = canned(answer("x"), false);
  request.url = closing.address();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(client.send(request).body, "x");
  EXPECT_EQ(closing.num_connections(), 5);
}

TEST(HttpClient, RepeatsARequestThatAKeptConnectionLost) {
  // Promises to keep the connection, then closes it when the second request has arrived.
  std::atomic<int> answered = 0, dropped = 0;
  TestServer server([&](const Request&, Socket& socket) {
    const bool is_first_of_connection = answered == dropped;
    ++(is_first_of_connection ? answered : dropped);
    if (is_first_of_connection) TestServer::send(socket, answer("x"));
    return is_first_of_connection;
  });
  HttpClient client;
  ClientRequest request;
  request.url = server.address();
  request.method = "POST";
  EXPECT_EQ(client.send(request).body, "x");
  EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("closed the connection"));
  request.repeatable = true;
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(client.send(request).body, "x");
    EXPECT_EQ(answered, i + 1);
    EXPECT_EQ(dropped, i);
  }
  // A fresh connection that is dropped is an error: asking for ever would hide a broken server.
  TestServer closing([](const Request&, Socket&) { return false; });
  request.url = closing.address();
  EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("closed the connection"));
  EXPECT_EQ(closing.num_connections(), 1);
}

TEST(HttpClient, HandsOnPiecesAsTheyCome) {
  std::counting_semaphore<> handed_on(0);
  std::atomic<int> waited_in_vain = 0;
  // Goes on only when the client has handed on what was sent before.
  const auto wait = [&] { waited_in_vain += !handed_on.try_acquire_for(std::chrono::seconds(10)); };
  TestServer server([&](const Request&, Socket& socket) {
    TestServer::send(socket, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata1\r\n");
    wait();
    TestServer::send(socket, "6;x=y\r\nda");
    wait();
    TestServer::send(socket, "ta22\r\n0\r\nTrailer: x\r\n\r\n");
    return true;
  });
  HttpClient client;
  ClientRequest request;
  request.url = server.address();
  std::vector<std::string> pieces;
  int heads = 0;
  request.on_head = [&](const ClientResponse& head) { heads += head.status == 200 ? 1 : 100; };
  request.on_body = [&](std::string_view piece) {
    pieces.emplace_back(piece);
    handed_on.release();
  };
  EXPECT_EQ(client.send(request).body, "");
  EXPECT_EQ(heads, 1);
  EXPECT_EQ(pieces, (std::vector<std::string>{"data1", "da", "ta22"}));
  EXPECT_EQ(waited_in_vain, 0);
  client.send(request);
  EXPECT_EQ(server.num_connections(), 1);
}

TEST(HttpClient, BodiesWithoutLengthEndWithTheConnection) {
  TestServer server = canned("HTTP/1.0 200 OK\r\n\r\nall of it", false);
  EXPECT_EQ(get(server.address()).body, "all of it");
}

TEST(HttpClient, InterimAnswersAreSkipped) {
  TestServer server = canned("HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + answer("x"));
  const ClientResponse response = get(server.address());
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.header("X"), "");
}

TEST(HttpClient, HeadHasNoBody) {
  TestServer server = canned("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
  HttpClient client;
  ClientRequest request;
  request.method = "HEAD";
  request.url = server.address();
  EXPECT_EQ(client.send(request).header("content-length"), "1000");
  EXPECT_EQ(client.send(request).status, 200);
  EXPECT_EQ(server.num_connections(), 1);
}

TEST(HttpClient, BrokenAnswersAreErrors) {
  EXPECT_THAT(
      get_error(canned("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", false).address()),
      HasSubstr("after 4 of 10 bytes"));
  EXPECT_THAT(
      get_error(
          canned("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", false).address()),
      HasSubstr("closed the connection after 2 of ? bytes"));
  EXPECT_THAT(get_error(canned("", false).address()), HasSubstr("closed the connection"));
  EXPECT_THAT(get_error(canned("SSH-2.0-x\r\n\r\n", false).address()),
              HasSubstr("does not answer in HTTP"));
  EXPECT_THAT(get_error(canned("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", false).address()),
              HasSubstr("does not answer in HTTP"));
  EXPECT_THAT(
      get_error(canned("HTTP/1.1 200 OK\r\nX: " + std::string(100'000, 'x'), false).address()),
      HasSubstr("http"));
  EXPECT_THAT(get_error("http://127.0.0.1:1"), HasSubstr("cannot connect to 127.0.0.1:1"));
  EXPECT_THAT(get_error("http://no-such-host.invalid"), HasSubstr("cannot look up"));
}

TEST(HttpClient, RequestsCannotBeForged) {
  HttpClient client;
  ClientRequest request;
  request.url = "http://127.0.0.1:1";
  request.headers = {{"X", "a\r\nEvil: b"}};
  EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("bad HTTP header value"));
}

TEST(HttpClient, TimesOut) {
  using Clock = std::chrono::steady_clock;
  std::atomic<bool> gave_up = false;
  HttpClient client;
  ClientRequest request;
  {  // Nothing comes.
    TestServer silent([&](const Request&, Socket& socket) {
      TestServer::send(socket, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
      while (!gave_up) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return false;
    });
    request.url = silent.address();
    request.idle_timeout_s = 0.05;
    EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("timed out"));
    gave_up = true;
  }
  // A little comes all the time: for longer than the client would wait for nothing, or for ever.
  gave_up = false;
  std::atomic<bool> for_ever = false;
  TestServer slow([&](const Request&, Socket& socket) {
    TestServer::send(socket, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    const auto end = Clock::now() + std::chrono::milliseconds(2500);
    while (for_ever ? !gave_up : Clock::now() < end) {
      TestServer::send(socket, "1\r\nx\r\n");
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    TestServer::send(socket, "0\r\n\r\n");
    return true;
  });
  request.url = slow.address();
  request.idle_timeout_s = 2;
  EXPECT_THAT(client.send(request).body, HasSubstr("xxxxx"));
  for_ever = true;
  request.total_timeout_s = 0.2;
  EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("timed out"));
  gave_up = true;
}

TEST(HttpClient, ACallbackEndsTheRequest) {
  TestServer server = canned(answer(std::string(100'000, 'x')));
  HttpClient client;
  ClientRequest request;
  request.url = server.address();
  request.on_body = [](std::string_view) { throw std::runtime_error("enough"); };
  EXPECT_THROW(client.send(request), std::runtime_error);
  request.on_body = nullptr;
  EXPECT_EQ(client.send(request).body.size(), 100'000U);
  request.max_body_bytes = 99'999;
  EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("more than 99999 bytes"));
}

TEST(HttpClient, FollowsRedirectsWithinLimits) {
  std::optional<std::string> authorization;
  TestServer other([&](const Request& request, Socket& socket) {
    authorization = std::string(request["Authorization"]);
    TestServer::send(socket, answer("arrived"));
    return true;
  });
  std::string same_host_authorization;
  TestServer server([&](const Request& request, Socket& socket) {
    const std::string target(request.target());
    std::string location = target == "/loop"   ? "/loop"
                           : target == "/away" ? other.address() + "/"
                                               : "/away";
    if (target == "/tls") location = "file:///etc/passwd";
    if (target == "/away") same_host_authorization = std::string(request["Authorization"]);
    TestServer::send(socket, answer("moved", "Location: " + location + "\r\n", "302 Found"));
    return true;
  });
  HttpClient client;
  ClientRequest request;
  request.url = server.address() + "/start";
  request.headers = {{"Authorization", "Bearer secret"}};
  int heads = 0;
  request.on_head = [&](const ClientResponse&) { ++heads; };
  const ClientResponse response = client.send(request);
  EXPECT_EQ(response.body, "arrived");
  EXPECT_EQ(response.url.str(), other.address() + "/");
  EXPECT_EQ(heads, 1);
  EXPECT_EQ(same_host_authorization, "Bearer secret");
  EXPECT_EQ(authorization, "") << "the token was sent to another host";
  EXPECT_EQ(server.num_connections(), 1);

  request.redirects = Redirects::kSameHost;
  EXPECT_EQ(client.send(request).header("Location"), other.address() + "/");
  request.redirects = Redirects::kNone;
  EXPECT_EQ(client.send(request).header("Location"), "/away");
  request.redirects = Redirects::kAll;
  request.url = server.address() + "/loop";
  EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("more than 5 redirects"));
  request.url = server.address() + "/tls";
  EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("expected http:// or https://"));
}

TEST(HttpClient, GoesThroughAProxy) {
  std::string seen;
  TestServer proxy([&](const Request& request, Socket& socket) {
    seen = std::string(request.method_string()) + " " + std::string(request.target()) + " " +
           std::string(request["Proxy-Authorization"]);
    TestServer::send(socket, request.method_string() == "CONNECT" ? answer("", "", "403 Forbidden")
                                                                  : answer("proxied"));
    return true;
  });
  ::setenv("http_proxy", ("http://user:pw@" + proxy.address().substr(7)).c_str(), 1);
  ::setenv("https_proxy", proxy.address().c_str(), 1);
  ::setenv("no_proxy", "other.test, .inner.test", 1);
  HttpClient client(true);
  ClientRequest request;
  request.url = "http://somewhere.test/x";
  EXPECT_EQ(client.send(request).body, "proxied");
  EXPECT_EQ(seen, "GET http://somewhere.test/x Basic dXNlcjpwdw==");
  request.url = "https://somewhere.test/x";
  EXPECT_THAT(error_of([&] { client.send(request); }),
              HasSubstr("refuses to connect to somewhere.test:443"));
  EXPECT_EQ(seen, "CONNECT somewhere.test:443 ");
  for (const char* direct : {"http://other.test/", "http://a.inner.test/"}) {
    request.url = direct;
    EXPECT_THAT(error_of([&] { client.send(request); }), HasSubstr("cannot look up"));
  }
  for (const char* name : {"http_proxy", "https_proxy", "no_proxy"}) ::unsetenv(name);
}

}  // namespace
}  // namespace reft
