#include "hub/http_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

namespace reft {
namespace {

template <class... Args>
[[noreturn]] void broken(fmt::format_string<Args...> format, Args&&... args) {
  throw HttpError(fmt::format(format, std::forward<Args>(args)...), true);
}
template <class... Args>
[[noreturn]] void hopeless(fmt::format_string<Args...> format, Args&&... args) {
  throw HttpError(fmt::format(format, std::forward<Args>(args)...), false);
}

std::string tls_error() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = code != 0 ? ERR_reason_error_string(code) : nullptr;
  return reason != nullptr ? reason : "unknown TLS error";
}

// Where distributions keep their certificate authorities: a static OpenSSL knows only the place of
// the system that it was built on.
void load_authorities(SSL_CTX* context) {
  for (const char* variable : {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}) {
    const char* path = std::getenv(variable);
    if (path == nullptr || *path == '\0') continue;
    if (SSL_CTX_load_verify_file(context, path) != 1) {
      hopeless("{}: cannot read certificates from '{}'", variable, path);
    }
    return;
  }
  SSL_CTX_set_default_verify_paths(context);
  for (const char* path : {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
                           "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}) {
    if (::access(path, R_OK) == 0 && SSL_CTX_load_verify_file(context, path) == 1) break;
  }
  ERR_clear_error();
}

SSL_CTX* tls_context() {
  static SSL_CTX* const context = [] {
    SSL_CTX* made = SSL_CTX_new(TLS_client_method());
    check(made != nullptr, "cannot set up TLS: {}", tls_error());
    SSL_CTX_set_min_proto_version(made, TLS1_2_VERSION);
    SSL_CTX_set_verify(made, SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_mode(made, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    load_authorities(made);
    // OpenSSL writes to sockets without MSG_NOSIGNAL.
    if (std::signal(SIGPIPE, SIG_IGN) != SIG_DFL) std::signal(SIGPIPE, SIG_IGN);
    return made;
  }();
  return context;
}

struct Addresses {
  addrinfo* first = nullptr;
  ~Addresses() {
    if (first != nullptr) ::freeaddrinfo(first);
  }
};

void resolve(const std::string& host, uint16_t port, Addresses& out) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | AI_ADDRCONFIG;
  int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &out.first);
  if (error == EAI_NONAME ||
      error == EAI_ADDRFAMILY) {  // AI_ADDRCONFIG hides loopback on an offline machine
    hints.ai_flags = AI_NUMERICSERV;
    error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &out.first);
  }
  if (error == EAI_AGAIN) broken("cannot look up '{}': {}", host, ::gai_strerror(error));
  if (error != 0) hopeless("cannot look up '{}': {}", host, ::gai_strerror(error));
}

}  // namespace

HttpSocket::HttpSocket(const std::string& host, uint16_t port, Deadline deadline)
    : peer_(fmt::format("{}:{}", host, port)), tls_(nullptr, &SSL_free) {
  Addresses addresses;
  resolve(host, port, addresses);
  std::string problem = "no address";
  for (const addrinfo* a = addresses.first; a != nullptr; a = a->ai_next) {
    fd_ = ::socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
    if (fd_ < 0) {
      problem = std::strerror(errno);
      continue;
    }
    int error = ::connect(fd_, a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      try {
        wait(POLLOUT, deadline, "connecting to");
        socklen_t length = sizeof(error);
        ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length);
      } catch (const HttpError&) {
        error = ETIMEDOUT;
      }
    }
    if (error == 0) {
      const int on = 1;
      ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      return;
    }
    problem = std::strerror(error);
    ::close(fd_);
    fd_ = -1;
  }
  broken("cannot connect to {}: {}", peer_, problem);
}

HttpSocket::~HttpSocket() {
  tls_.reset();
  if (fd_ >= 0) ::close(fd_);
}

void HttpSocket::start_tls(const std::string& host, Deadline deadline) {
  tls_.reset(SSL_new(tls_context()));
  check(tls_ != nullptr, "cannot set up TLS: {}", tls_error());
  SSL_set_fd(tls_.get(), fd_);
  in6_addr address;
  const bool is_address = ::inet_pton(AF_INET, host.c_str(), &address) == 1 ||
                          ::inet_pton(AF_INET6, host.c_str(), &address) == 1;
  if (is_address) {
    X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls_.get()), host.c_str());
  } else {
    SSL_set_tlsext_host_name(tls_.get(), host.c_str());
    SSL_set1_host(tls_.get(), host.c_str());
  }
  for (;;) {
    ERR_clear_error();
    const int result = SSL_connect(tls_.get());
    if (result == 1) return;
    const long verified = SSL_get_verify_result(tls_.get());
    if (verified != X509_V_OK) {
      hopeless("the certificate of {} is not accepted: {}", peer_,
               X509_verify_cert_error_string(verified));
    }
    if (!tls_again(result, deadline, "the TLS handshake with"))
      broken("{} closed during the TLS handshake", peer_);
  }
}

bool HttpSocket::tls_again(int result, Deadline deadline, const char* doing) {
  const int saved_errno = errno;
  switch (SSL_get_error(tls_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      wait(POLLIN, deadline, doing);
      return true;
    case SSL_ERROR_WANT_WRITE:
      wait(POLLOUT, deadline, doing);
      return true;
    case SSL_ERROR_ZERO_RETURN:
      return false;
    case SSL_ERROR_SYSCALL:
      if (saved_errno == EINTR) return true;
      broken("{} {} failed: {}", doing, peer_,
             saved_errno != 0 ? std::strerror(saved_errno) : "connection closed");
    default:
      broken("{} {} failed: {}", doing, peer_, tls_error());
  }
}

void HttpSocket::write(std::string_view data, Deadline deadline) {
  while (!data.empty()) {
    if (tls_) {
      ERR_clear_error();
      const int written = SSL_write(tls_.get(), data.data(),
                                    static_cast<int>(std::min<size_t>(data.size(), 1 << 20)));
      if (written > 0) {
        data.remove_prefix(static_cast<size_t>(written));
      } else if (!tls_again(written, deadline, "sending to")) {
        broken("{} closed the connection", peer_);
      }
      continue;
    }
    const ssize_t written = ::send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
    if (written >= 0) {
      data.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EAGAIN) {
      wait(POLLOUT, deadline, "sending to");
    } else if (errno != EINTR) {
      broken("sending to {} failed: {}", peer_, std::strerror(errno));
    }
  }
}

size_t HttpSocket::read(std::span<char> buffer, Deadline deadline) {
  for (;;) {
    if (tls_) {
      ERR_clear_error();
      errno = 0;
      const int got = SSL_read(tls_.get(), buffer.data(),
                               static_cast<int>(std::min<size_t>(buffer.size(), 1 << 20)));
      if (got > 0) return static_cast<size_t>(got);
      if (!tls_again(got, deadline, "reading from")) return 0;
      continue;
    }
    const ssize_t got = ::recv(fd_, buffer.data(), buffer.size(), 0);
    if (got >= 0) return static_cast<size_t>(got);
    if (errno == EAGAIN) {
      wait(POLLIN, deadline, "reading from");
    } else if (errno != EINTR) {
      broken("reading from {} failed: {}", peer_, std::strerror(errno));
    }
  }
}

bool HttpSocket::stale() const {
  pollfd entry{fd_, POLLIN, 0};
  if (::poll(&entry, 1, 0) == 0) return false;
  if (!tls_) return true;
  // TLS may have sent session tickets: those are no answer, and reading takes them in.
  char byte;
  const int got = SSL_peek(tls_.get(), &byte, 1);
  const bool quiet = got <= 0 && SSL_get_error(tls_.get(), got) == SSL_ERROR_WANT_READ;
  ERR_clear_error();
  return !quiet;
}

void HttpSocket::wait(short events, Deadline deadline, const char* doing) const {
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) broken("{} {} timed out", doing, peer_);
    pollfd entry{fd_, events, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(std::min<int64_t>(left.count(), 1 << 30)));
    if (ready > 0) return;
    if (ready < 0 && errno != EINTR) broken("{} {} failed: {}", doing, peer_, std::strerror(errno));
  }
}

}  // namespace reft
