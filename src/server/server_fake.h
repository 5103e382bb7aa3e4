// For tests: a server over the engine's fake model, and a raw HTTP client that can misbehave.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/json.h"
#include "engine/engine_fake.h"
#include "server/server.h"

namespace reft::fake {

struct Reply {
  int status = 0;  // 0: the connection ended without an answer
  std::map<std::string, std::string> headers;
  std::string body;

  Json json() const { return parse_json(body, "reply"); }
  std::string error(const char* field) const {
    const Json value = json()["error"][field];
    return value.is_null() ? "null" : value.get<std::string>();
  }
};

// Blocking, with a time limit on every read.
class Client {
 public:
  explicit Client(int port, int receive_buffer = 0) {
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0,
          "cannot connect to port {}: {}", port, std::strerror(errno));
  }
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  int fd() const { return fd_; }

  // False when the peer closed.
  bool send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      text.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }

  // Reads more; false at the end of the stream or after `timeout_ms`.
  bool fill(int timeout_ms = 20'000) {
    pollfd p{fd_, POLLIN, 0};
    if (::poll(&p, 1, timeout_ms) <= 0) return false;
    char chunk[16384];
    const ssize_t n = ::recv(fd_, chunk, sizeof(chunk), 0);
    if (n <= 0) return false;
    data_.append(chunk, static_cast<size_t>(n));
    return true;
  }
  // Whether the server closes the connection; a hang ends after 20 s.
  bool becomes_closed() {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (;;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          end - std::chrono::steady_clock::now());
      pollfd p{fd_, POLLIN, 0};
      if (left.count() <= 0 || ::poll(&p, 1, static_cast<int>(left.count())) <= 0) return false;
      char chunk[4096];
      if (::recv(fd_, chunk, sizeof(chunk), 0) <= 0) return true;
    }
  }
  bool wait_for(std::string_view text) {
    while (data_.find(text) == std::string::npos) {
      if (!fill()) return false;
    }
    return true;
  }
  const std::string& data() const { return data_; }

  Reply read_reply(bool without_body = false) {
    Reply reply;
    size_t end = 0;
    while ((end = data_.find("\r\n\r\n")) == std::string::npos) {
      if (!fill()) return reply;
    }
    const std::string head = data_.substr(0, end + 2);
    data_.erase(0, end + 4);
    reply.status = std::stoi(head.substr(9, 3));
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      const size_t stop = head.find("\r\n", at);
      const size_t colon = head.find(':', at);
      reply.headers[head.substr(at, colon - at)] = head.substr(colon + 2, stop - colon - 2);
      at = stop + 2;
    }
    if (reply.status == 100) return read_reply(without_body);
    if (without_body || reply.status == 204 || reply.status == 304) return reply;
    if (reply.headers.count("transfer-encoding") > 0) {
      read_chunks(reply);
    } else if (reply.headers.count("content-length") > 0) {
      const size_t length = std::stoul(reply.headers["content-length"]);
      while (data_.size() < length && fill()) {
      }
      reply.body = data_.substr(0, length);
      data_.erase(0, length);
    } else {
      while (fill()) {
      }
      reply.body.swap(data_);
    }
    return reply;
  }

  Reply request(const std::string& method, const std::string& path, const std::string& body = "",
                const std::map<std::string, std::string>& headers = {}) {
    std::string text = method + " " + path + " HTTP/1.1\r\nhost: test\r\n";
    if (headers.count("content-type") == 0 && method == "POST") {
      text += "content-type: application/json\r\n";
    }
    for (const auto& [name, value] : headers) text += name + ": " + value + "\r\n";
    if (method == "POST" || !body.empty()) {
      text += "content-length: " + std::to_string(body.size()) + "\r\n";
    }
    send(text + "\r\n" + body);
    return read_reply(method == "HEAD");
  }
  Reply post(const std::string& path, const Json& body,
             const std::map<std::string, std::string>& headers = {}) {
    return request("POST", path, body.dump(), headers);
  }

 private:
  void read_chunks(Reply& reply) {
    for (;;) {
      size_t line = 0;
      while ((line = data_.find("\r\n")) == std::string::npos) {
        if (!fill()) return;
      }
      const size_t length = std::stoul(data_.substr(0, line), nullptr, 16);
      while (data_.size() < line + 2 + length + 2) {
        if (!fill()) return;
      }
      reply.body += data_.substr(line + 2, length);
      data_.erase(0, line + 2 + length + 2);
      if (length == 0) return;
    }
  }

  int fd_ = -1;
  std::string data_;
};

// The `data:` events of a stream, without the last "[DONE]" (which must be there).
inline std::vector<Json> stream_events(const std::string& body) {
  std::vector<Json> out;
  bool done = false;
  for (size_t at = 0; at < body.size();) {
    size_t end = body.find("\n\n", at);
    check(end != std::string::npos, "an event does not end");
    const std::string event = body.substr(at, end - at);
    at = end + 2;
    if (event.starts_with(":")) continue;
    check(event.starts_with("data: "), "not an event: {}", event);
    check(!done, "an event after [DONE]: {}", event);
    if (event == "data: [DONE]") {
      done = true;
    } else {
      out.push_back(parse_json(event.substr(6), "event"));
    }
  }
  check(done, "the stream has no [DONE]: {}", body);
  return out;
}

inline constexpr const char* kTemplate =
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if tools %}[{{ tools | length }} tools]{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{{ extra }}";

// A running server over a fake model. The model may be slowed down with `on_step`.
class TestServer {
 public:
  explicit TestServer(
      ModelSettings model = {}, ServerOptions options = {}, EngineOptions engine_options = {},
      std::shared_ptr<const Tokenizer> tokenizer = std::make_shared<ByteTokenizer>())
      : tokenizer_(std::move(tokenizer)) {
    engine_ = std::make_unique<Engine>(load(std::move(model)), tokenizer_, engine_options);
    options.host = "127.0.0.1";
    options.port = 0;
    options.handle_signals = false;
    if (options.served_model_names.empty()) options.served_model_names = {"fake", "alias"};
    if (options.chat_template == nullptr) {
      options.chat_template = std::make_shared<const ChatTemplate>(kTemplate);
    }
    server_ = std::make_unique<Server>(*engine_, tokenizer_, std::move(options));
    thread_ = std::thread([this] { server_->run(); });
  }
  ~TestServer() { stop(); }

  void stop() {
    if (!thread_.joinable()) return;
    server_->stop();
    server_->stop();
    thread_.join();
  }
  // The client may see its answer before the server counts the connection as idle.
  bool becomes_idle_on(size_t connections) {
    return becomes_true([&] { return server_->num_idle_connections() == connections; });
  }
  // Begins a graceful shutdown.
  void drain() { server_->stop(); }
  void join() { thread_.join(); }
  int port() const { return server_->port(); }
  Engine& engine() { return *engine_; }

  Reply post(const std::string& path, const Json& body) { return Client(port()).post(path, body); }
  Reply get(const std::string& path) { return Client(port()).request("GET", path); }
  // The server still serves.
  bool alive() {
    const Reply reply = post("/v1/completions", {{"prompt", "hi"}, {"max_tokens", 2}});
    return reply.status == 200 && get("/health").status == 200;
  }
  // Waits until no request is in the engine.
  bool becomes_idle() {
    return becomes_true([&] {
      const EngineStats stats = engine_->stats();
      return stats.num_requests_running == 0 && stats.num_requests_waiting == 0 &&
             stats.num_free_kv_blocks == stats.num_kv_blocks;
    });
  }
  // Waits until the engine has that many requests and runs some.
  bool becomes_busy(int64_t requests = 1) {
    return becomes_true([&] {
      const EngineStats stats = engine_->stats();
      return stats.num_requests_running > 0 &&
             stats.num_requests_running + stats.num_requests_waiting >= requests;
    });
  }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

// A model that writes `text` over and over, `step_ms` per step.
inline ModelSettings writes(std::string_view text, int step_ms = 0) {
  ModelSettings settings;
  for (char c : text) settings.script.push_back(static_cast<unsigned char>(c));
  if (step_ms > 0) {
    settings.on_step = [step_ms](const Batch&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(step_ms));
    };
  }
  return settings;
}

inline Json user(const std::string& text) {
  return Json::array({{{"role", "user"}, {"content", text}}});
}

}  // namespace reft::fake
