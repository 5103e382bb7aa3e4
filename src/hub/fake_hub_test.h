// A server on the loopback that talks like the hub, and misbehaves when told to.
#pragma once

#include <openssl/evp.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"

namespace reft {

inline std::string hex_digest(const EVP_MD* algorithm, const std::string& data) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_Digest(data.data(), data.size(), digest, &length, algorithm, nullptr);
  std::string text;
  for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}
inline std::string sha256_of(const std::string& data) { return hex_digest(EVP_sha256(), data); }
inline std::string git_hash_of(const std::string& data) {
  return hex_digest(EVP_sha1(), fmt::format("blob {}", data.size()) + '\0' + data);
}

// Answers every request with what `handler` writes. One thread per connection, blocking.
class TestServer {
 public:
  using Request = boost::beast::http::request<boost::beast::http::string_body>;
  using Socket = boost::asio::ip::tcp::socket;
  // Writes a complete answer to the socket; false closes the connection.
  using Handler = std::function<bool(const Request&, Socket&)>;

  explicit TestServer(Handler handler)
      : handler_(std::move(handler)),
        acceptor_(context_, {boost::asio::ip::make_address("127.0.0.1"), 0}),
        thread_([this] { accept(); }) {}
  ~TestServer() {
    stopping_ = true;
    boost::system::error_code ignored;
    Socket(context_).connect(acceptor_.local_endpoint(), ignored);  // wakes accept()
    thread_.join();
    {
      std::lock_guard lock(mutex_);
      for (Socket& socket : sockets_) socket.shutdown(Socket::shutdown_both, ignored);
    }
    for (std::thread& thread : connections_) thread.join();
  }
  std::string address() const {
    return fmt::format("http://127.0.0.1:{}", acceptor_.local_endpoint().port());
  }
  int num_connections() const { return num_connections_; }

  static void send(Socket& socket, const std::string& data) {
    boost::system::error_code ignored;
    boost::asio::write(socket, boost::asio::buffer(data), ignored);
  }

 private:
  void accept() {
    for (;;) {
      Socket socket(context_);
      boost::system::error_code error;
      acceptor_.accept(socket, error);
      if (stopping_) return;
      if (error) continue;
      ++num_connections_;
      std::lock_guard lock(mutex_);
      sockets_.push_back(std::move(socket));
      connections_.emplace_back([this, &kept = sockets_.back()] { serve(kept); });
    }
  }
  void serve(Socket& socket) {
    boost::beast::flat_buffer buffer;
    boost::system::error_code error;
    while (!error) {
      Request request;
      boost::beast::http::read(socket, buffer, request, error);
      if (error || !handler_(request, socket)) break;
    }
    std::lock_guard lock(mutex_);
    socket.shutdown(Socket::shutdown_both, error);
    socket.close(error);
  }

  Handler handler_;
  boost::asio::io_context context_;
  boost::asio::ip::tcp::acceptor acceptor_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> num_connections_ = 0;
  std::mutex mutex_;
  std::list<Socket> sockets_;
  std::list<std::thread> connections_;
  std::thread thread_;
};

// What a file of the fake hub is and how it misbehaves.
struct FakeFile {
  std::string content;
  bool large = false;  // in large-file storage: sha256, and redirected to the storage host
  // Each counts down, one request of the content a time.
  int break_off = 0;  // closes after break_after bytes of the body
  int64_t break_after = 0;
  int corrupt = 0;    // flips a byte
  int errors = 0;     // answers 503
  bool mute = false;  // never answers
  bool ranges = true;
  int64_t available = -1;  // closes where this byte of the file would come
  int64_t promised = -1;   // the size that HEAD claims
  int64_t extra = 0;       // bytes too many (too few, when negative) in what GET says and sends
};

class FakeHub {
 public:
  struct Seen {
    std::string method, target, range, authorization;
    bool storage;
  };

  explicit FakeHub(std::string repo = "org/model")
      : repo_(std::move(repo)),
        storage_(
            [this](const auto& request, auto& socket) { return serve(request, socket, true); }),
        hub_([this](const auto& request, auto& socket) { return serve(request, socket, false); }) {}

  // After the files and settings have been written.
  std::string address() {
    sync();
    return hub_.address();
  }
  // Orders what the test does with files and settings before and after what the server does.
  void sync() { std::lock_guard lock(mutex_); }
  FakeFile& operator[](const std::string& path) { return files_[path]; }

  std::string commit = "0123456789abcdef0123456789abcdef01234567";
  std::string token;   // needed for everything when not empty
  bool gated = false;  // the listing is public, the files need the token
  std::string answer;  // instead of the listing

  std::vector<Seen> seen() {
    std::lock_guard lock(mutex_);
    return seen_;
  }
  size_t num_content_requests() {
    size_t count = 0;
    for (const Seen& s : seen())
      count += s.method == "GET" && s.target.find("/resolve/") != std::string::npos;
    return count;
  }

 private:
  using Request = TestServer::Request;
  using Socket = TestServer::Socket;

  static std::string head(const std::string& status, const std::string& headers, size_t length) {
    return fmt::format("HTTP/1.1 {}\r\n{}Content-Length: {}\r\n\r\n", status, headers, length);
  }
  static bool fail_with(Socket& socket, const Request& request, const std::string& status,
                        const std::string& code) {
    const std::string body = request.method_string() == "HEAD" ? "" : "no";
    TestServer::send(socket, head(status, "X-Error-Code: " + code + "\r\n", 2) + body);
    return true;
  }

  bool serve(const Request& request, Socket& socket, bool storage) {
    std::lock_guard lock(mutex_);
    const std::string target(request.target());
    seen_.push_back({std::string(request.method_string()), target, std::string(request["Range"]),
                     std::string(request["Authorization"]), storage});
    const bool allowed = token.empty() || request["Authorization"] == "Bearer " + token;
    if (target.starts_with("/api/")) {
      if (!allowed && !gated) return fail_with(socket, request, "401 Unauthorized", "RepoNotFound");
      return list(request, socket, target);
    }
    if (!storage && !allowed) {
      return gated ? fail_with(socket, request, "403 Forbidden", "GatedRepo")
                   : fail_with(socket, request, "401 Unauthorized", "RepoNotFound");
    }
    const std::string prefix =
        storage ? "/storage/" : fmt::format("/{}/resolve/{}/", repo_, commit);
    const auto file =
        target.starts_with(prefix) ? files_.find(target.substr(prefix.size())) : files_.end();
    if (file == files_.end()) return fail_with(socket, request, "404 Not Found", "EntryNotFound");
    return request.method_string() == "HEAD"
               ? describe(file->second, file->first, socket)
               : content(request, file->second, file->first, socket, storage);
  }

  bool list(const Request& request, Socket& socket, const std::string& target) {
    const std::string prefix = "/api/models/" + repo_ + "/revision/";
    if (!target.starts_with(prefix))
      return fail_with(socket, request, "404 Not Found", "RepoNotFound");
    if (target != prefix + "main" && target != prefix + commit) {
      return fail_with(socket, request, "404 Not Found", "RevisionNotFound");
    }
    std::string body = answer;
    if (body.empty()) {
      for (const auto& [path, file] : files_) {
        body += fmt::format(R"({}{{"rfilename":"{}"}})", body.empty() ? "" : ",", path);
      }
      body = fmt::format(R"({{"id":"{}","sha":"{}","siblings":[{}]}})", repo_, commit, body);
    }
    TestServer::send(socket,
                     head("200 OK", "Content-Type: application/json\r\n", body.size()) + body);
    return true;
  }

  bool describe(const FakeFile& file, const std::string& path, Socket& socket) {
    const int64_t size =
        file.promised >= 0 ? file.promised : static_cast<int64_t>(file.content.size());
    const std::string headers = fmt::format("X-Repo-Commit: {}\r\n", commit);
    if (file.large) {
      TestServer::send(
          socket,
          head("302 Found",
               headers + fmt::format("X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\n"
                                     "Location: {}/storage/{}\r\n",
                                     sha256_of(file.content), size, storage_.address(), path),
               10));
    } else {
      TestServer::send(
          socket,
          head("200 OK", headers + fmt::format("ETag: W/\"{}\"\r\n", git_hash_of(file.content)),
               static_cast<size_t>(size)));
    }
    return true;
  }

  bool content(const Request& request, FakeFile& file, const std::string& path, Socket& socket,
               bool storage) {
    if (file.large && !storage) {
      TestServer::send(
          socket, head("302 Found",
                       fmt::format("Location: {}/storage/{}\r\n", storage_.address(), path), 5) +
                      "moved");
      return true;
    }
    if (file.mute) return true;
    if (file.errors > 0) {
      --file.errors;
      return fail_with(socket, request, "503 Service Unavailable", "");
    }
    std::string body = file.content;
    if (file.corrupt > 0) {
      --file.corrupt;
      body[body.size() / 2] ^= 1;
    }
    if (file.extra > 0) body.append(static_cast<size_t>(file.extra), 'x');
    if (file.extra < 0) body.resize(body.size() - static_cast<size_t>(-file.extra));
    std::string status = "200 OK";
    std::string headers;
    const std::string range(request["Range"]);
    size_t first = 0;
    if (!range.empty() && file.ranges) {
      const size_t total = body.size();
      const size_t begin = std::stoull(range.substr(6));
      const size_t end =
          std::min<size_t>(total, std::stoull(range.substr(range.find('-') + 1)) + 1);
      if (begin >= total) return fail_with(socket, request, "416 Range Not Satisfiable", "");
      status = "206 Partial Content";
      headers = fmt::format("Content-Range: bytes {}-{}/{}\r\n", begin, end - 1, total);
      body = body.substr(begin, end - begin);
      first = begin;
    }
    std::string out = head(status, headers, body.size());
    const int64_t left = file.available - static_cast<int64_t>(first);
    if (file.available >= 0 && left < static_cast<int64_t>(body.size())) {
      TestServer::send(socket,
                       out + body.substr(0, static_cast<size_t>(std::max<int64_t>(left, 0))));
      return false;
    }
    if (file.break_off > 0) {
      --file.break_off;
      TestServer::send(socket, out + body.substr(0, static_cast<size_t>(file.break_after)));
      return false;
    }
    TestServer::send(socket, out + body);
    return true;
  }

  std::string repo_;
  std::mutex mutex_;
  std::map<std::string, FakeFile> files_;
  std::vector<Seen> seen_;
  TestServer storage_;
  TestServer hub_;
};

}  // namespace reft
