// A TCP or TLS connection with deadlines. Blocking calls over a non-blocking socket; one thread at
// a time.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/check.h"

struct ssl_st;  // OpenSSL's SSL

namespace reft {

// The network's fault: refused, reset, timed out, cut short. `retryable` is false where another try
// must end the same way (a certificate that does not fit, a name that does not exist).
class HttpError : public Error {
 public:
  HttpError(const std::string& message, bool retryable) : Error(message), retryable_(retryable) {}
  bool retryable() const { return retryable_; }

 private:
  bool retryable_;
};

using Deadline = std::chrono::steady_clock::time_point;

class HttpSocket {
 public:
  // Connects to the first of the host's addresses that answers.
  HttpSocket(const std::string& host, uint16_t port, Deadline deadline);
  ~HttpSocket();
  HttpSocket(const HttpSocket&) = delete;
  HttpSocket& operator=(const HttpSocket&) = delete;

  // TLS from here on; the certificate must be valid for `host` under the system's authorities
  // (SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE name others).
  void start_tls(const std::string& host, Deadline deadline);

  void write(std::string_view data, Deadline deadline);
  // At least one byte into `buffer`; 0 when the peer closed its side.
  size_t read(std::span<char> buffer, Deadline deadline);
  // Whether the peer has closed, or sent what nobody asked for, while the connection was idle.
  bool stale() const;

 private:
  void wait(short events, Deadline deadline, const char* doing) const;
  // Handles SSL_get_error of a call that returned `result`; true: try again.
  bool tls_again(int result, Deadline deadline, const char* doing);

  std::string peer_;
  int fd_ = -1;
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> tls_;
};

}  // namespace reft
