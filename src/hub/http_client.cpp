#include "hub/http_client.h"

#include <openssl/evp.h>
#include <strings.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace reft {
namespace {

namespace http = boost::beast::http;
using boost::beast::string_view;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

// Also the longest header that is accepted.
constexpr size_t kBufferBytes = 64 << 10;
// A redirect's body up to this size is read so that the connection can be kept.
constexpr size_t kMaxDrainedBytes = 64 << 10;

bool same_name(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

Deadline after(double seconds) {
  constexpr double kAYear = 365.0 * 86400;
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(std::clamp(seconds, 0.0, kAYear)));
}

// Beast's parser with the pieces handed on instead of stored.
class AnswerParser : public http::basic_parser<false> {
 public:
  AnswerParser(ClientResponse& response, const std::function<void(std::string_view)>& on_body)
      : response_(response), on_body_(on_body) {
    header_limit(kBufferBytes - 1);
    body_limit(boost::none);
  }
  uint64_t body_bytes() const { return body_bytes_; }

 private:
  void on_request_impl(http::verb, string_view, string_view, int, error_code&) override {}
  void on_response_impl(int code, string_view, int, error_code&) override {
    response_.status = code;
  }
  void on_field_impl(http::field, string_view name, string_view value, error_code&) override {
    response_.headers.emplace_back(std::string(name), std::string(value));
  }
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(const boost::optional<uint64_t>&, error_code&) override {}
  size_t on_body_impl(string_view data, error_code&) override { return take(data); }
  void on_chunk_header_impl(uint64_t, string_view, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, string_view data, error_code&) override { return take(data); }
  void on_finish_impl(error_code&) override {}

  size_t take(string_view data) {
    body_bytes_ += data.size();
    on_body_({data.data(), data.size()});
    return data.size();
  }

  ClientResponse& response_;
  const std::function<void(std::string_view)>& on_body_;
  uint64_t body_bytes_ = 0;
};

void check_field(std::string_view text, std::string_view what) {
  check(text.find_first_of(std::string_view("\r\n\0", 3)) == std::string_view::npos, "bad HTTP {}",
        what);
}

std::string request_text(const ClientRequest& request, const Url& url, const std::string& target) {
  check_field(request.method, "method");
  std::string out =
      fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, target, url.authority());
  bool has_agent = false;
  for (const auto& [name, value] : request.headers) {
    check_field(name, "header name");
    check_field(value, "header value");
    has_agent |= same_name(name, "User-Agent");
    out += fmt::format("{}: {}\r\n", name, value);
  }
  if (!has_agent) out += "User-Agent: reft/" REFT_VERSION "\r\n";
  out += "Accept-Encoding: identity\r\n";
  if (!request.body.empty() || request.method == "POST" || request.method == "PUT") {
    out += fmt::format("Content-Length: {}\r\n", request.body.size());
  }
  return out + "\r\n" + request.body;
}

// Where the answer sends us, when the request says that we go there.
std::optional<Url> redirect_target(const ClientRequest& request, const ClientResponse& response) {
  const int status = response.status;
  const bool redirect =
      status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
  const std::string_view location = response.header("Location");
  if (!redirect || location.empty() || request.redirects == Redirects::kNone) return std::nullopt;
  Url next;
  try {
    next = resolve_url(response.url, location);
  } catch (const Error& e) {
    throw HttpError(fmt::format("{} redirects to a {}", response.url.str(), e.what()), false);
  }
  if (request.redirects == Redirects::kSameHost && !next.same_origin(response.url))
    return std::nullopt;
  if (response.url.tls() && !next.tls()) {
    throw HttpError(fmt::format("{} redirects from https to {}, which is refused",
                                response.url.str(), next.str()),
                    false);
  }
  return next;
}

// --- Proxies ---

std::string environment(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return value;
  }
  return "";
}

bool excluded_from_proxy(const std::string& host) {
  if (host == "localhost" || host == "::1" || host.starts_with("127.")) return true;
  const std::string list = environment({"no_proxy", "NO_PROXY"});
  std::string_view rest = list;
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    std::string_view entry = rest.substr(0, comma);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    while (entry.starts_with(' ') || entry.starts_with('.')) entry.remove_prefix(1);
    while (entry.ends_with(' ')) entry.remove_suffix(1);
    if (entry == "*") return true;
    if (entry.empty() || !host.ends_with(entry)) continue;
    if (host.size() == entry.size() || host[host.size() - entry.size() - 1] == '.') return true;
  }
  return false;
}

struct Proxy {
  Url url;
  std::string authorization;  // a complete header line, or empty
};

std::optional<Proxy> proxy_for(const Url& url) {
  if (excluded_from_proxy(url.host)) return std::nullopt;
  std::string text = url.tls()
                         ? environment({"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"})
                         : environment({"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"});
  if (text.empty()) return std::nullopt;
  if (text.find("://") == std::string::npos) text.insert(0, "http://");
  Proxy proxy;
  const size_t begin = text.find("://") + 3;
  const size_t at = text.rfind('@');
  if (at != std::string::npos && at > begin) {
    const std::string user = text.substr(begin, at - begin);
    std::string encoded((user.size() + 2) / 3 * 4 + 1, '\0');
    const int length = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(encoded.data()),
                                       reinterpret_cast<const unsigned char*>(user.data()),
                                       static_cast<int>(user.size()));
    encoded.resize(static_cast<size_t>(length));
    proxy.authorization = "Proxy-Authorization: Basic " + encoded + "\r\n";
    text.erase(begin, at + 1 - begin);
  }
  proxy.url = parse_url(text);
  return proxy;
}

void open_tunnel(HttpSocket& socket, const Url& url, const Proxy& proxy, Deadline deadline) {
  const std::string to = fmt::format("{}:{}", url.host, url.port);
  socket.write(
      fmt::format("CONNECT {} HTTP/1.1\r\nHost: {}\r\n{}\r\n", to, to, proxy.authorization),
      deadline);
  std::string head;
  char byte;
  while (!head.ends_with("\r\n\r\n")) {
    const bool good = head.size() < kBufferBytes && socket.read({&byte, 1}, deadline) == 1;
    if (!good) throw HttpError(fmt::format("the proxy {} broke off", proxy.url.authority()), true);
    head += byte;
  }
  if (head.find(" 200") != 8) {
    throw HttpError(fmt::format("the proxy {} refuses to connect to {}: {}", proxy.url.authority(),
                                to, head.substr(0, head.find('\r'))),
                    false);
  }
}

}  // namespace

std::string_view ClientResponse::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (same_name(key, name)) return value;
  }
  return {};
}

// One request over one connection and its answer.
class HttpClient::Exchange {
 public:
  Exchange(const ClientRequest& request, const Url& url, std::vector<char>& buffer,
           Deadline deadline)
      : request_(request), buffer_(buffer), total_deadline_(deadline) {
    response.url = url;
  }

  ClientResponse response;
  std::optional<Url> next;  // of a redirect to follow
  bool reusable = false;    // the connection may serve another request
  bool got_bytes = false;   // the server began to answer

  void run(HttpSocket& socket, const std::string& text) {
    socket.write(text, deadline());
    // 1xx answers precede the real one.
    while (!read_answer(socket)) response.headers.clear();
  }

 private:
  Deadline deadline() const { return std::min(total_deadline_, after(request_.idle_timeout_s)); }

  // False after an interim answer.
  bool read_answer(HttpSocket& socket) {
    AnswerParser parser(response, sink_);
    parser.skip(request_.method == "HEAD");
    while (!parser.is_header_done()) advance(parser, socket);
    if (response.status >= 100 && response.status < 200 && response.status != 101) return false;
    next = redirect_target(request_, response);
    if (next) {
      sink_ = [this](std::string_view data) {
        drained_ += data.size();
        too_much_ = drained_ > kMaxDrainedBytes;
      };
    } else {
      if (request_.on_head) request_.on_head(response);
      sink_ =
          request_.on_body ? request_.on_body : [this](std::string_view data) { collect(data); };
    }
    while (!parser.is_done() && !too_much_) advance(parser, socket);
    reusable = parser.is_done() && parser.keep_alive() && begin_ == end_;
    return true;
  }

  void collect(std::string_view data) {
    if (data.size() > request_.max_body_bytes - response.body.size()) {
      throw HttpError(
          fmt::format("{} sends more than {} bytes", response.url.str(), request_.max_body_bytes),
          false);
    }
    response.body += data;
  }

  // Parses what is buffered; reads more when that is not enough.
  void advance(AnswerParser& parser, HttpSocket& socket) {
    error_code error = http::error::need_more;
    if (begin_ < end_) {
      error = {};
      begin_ +=
          parser.put(boost::asio::const_buffer(buffer_.data() + begin_, end_ - begin_), error);
    }
    if (!error) return;
    if (error != http::error::need_more) {
      throw HttpError(
          fmt::format("{} does not answer in HTTP: {}", response.url.str(), error.message()), true);
    }
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
    if (end_ == buffer_.size())
      throw HttpError(fmt::format("{}: the header is too long", response.url.str()), false);
    const size_t got = socket.read(std::span(buffer_).subspan(end_), deadline());
    end_ += got;
    if (got > 0) {
      got_bytes = true;
      return;
    }
    error = {};
    if (parser.is_header_done()) parser.put_eof(error);
    if (parser.is_header_done() && !error) return;
    boost::optional<uint64_t> total;
    if (parser.is_header_done()) total = parser.content_length();
    throw HttpError(fmt::format("{} closed the connection after {} of {} bytes", response.url.str(),
                                parser.body_bytes(), total ? std::to_string(*total) : "?"),
                    true);
  }

  const ClientRequest& request_;
  std::vector<char>& buffer_;
  Deadline total_deadline_;
  std::function<void(std::string_view)> sink_;
  size_t begin_ = 0;  // of the bytes not yet parsed
  size_t end_ = 0;
  size_t drained_ = 0;
  bool too_much_ = false;
};

HttpClient::HttpClient(bool environment_proxy)
    : environment_proxy_(environment_proxy), buffer_(kBufferBytes) {}
HttpClient::~HttpClient() = default;

std::unique_ptr<HttpSocket> HttpClient::connect(const Url& url, const ClientRequest& request,
                                                Deadline deadline) const {
  deadline = std::min(deadline, after(request.connect_timeout_s));
  std::unique_ptr<HttpSocket> socket;
  const auto proxy = environment_proxy_ ? proxy_for(url) : std::nullopt;
  if (proxy) {
    socket = std::make_unique<HttpSocket>(proxy->url.host, proxy->url.port, deadline);
    if (proxy->url.tls()) throw HttpError("an https proxy is not supported, only http", false);
    if (url.tls()) open_tunnel(*socket, url, *proxy, deadline);
  } else {
    socket = std::make_unique<HttpSocket>(url.host, url.port, deadline);
  }
  if (url.tls()) socket->start_tls(url.host, deadline);
  return socket;
}

ClientResponse HttpClient::send(const ClientRequest& original) {
  const Deadline deadline = after(original.total_timeout_s > 0 ? original.total_timeout_s : 1e9);
  ClientRequest request = original;
  Url url = parse_url(request.url);
  for (int redirects = 0;; ++redirects) {
    const auto proxy = environment_proxy_ && !url.tls() ? proxy_for(url) : std::nullopt;
    std::string text = request_text(request, url, proxy ? url.str() : url.target);
    if (proxy) text.insert(text.find("\r\n") + 2, proxy->authorization);
    const std::string origin = url.scheme + "://" + url.authority();

    std::unique_ptr<HttpSocket> socket = std::move(idle_[origin]);
    if (socket && socket->stale()) socket.reset();
    const bool reused = socket != nullptr;
    auto exchange = std::make_unique<Exchange>(request, url, buffer_, deadline);
    try {
      if (!socket) socket = connect(url, request, deadline);
      exchange->run(*socket, text);
    } catch (const HttpError&) {
      // The server may close an idle connection at the moment that we use it.
      const bool repeatable =
          request.repeatable || request.method == "GET" || request.method == "HEAD";
      if (!reused || !repeatable || exchange->got_bytes || Clock::now() >= deadline) throw;
      exchange = std::make_unique<Exchange>(request, url, buffer_, deadline);
      socket = connect(url, request, deadline);
      exchange->run(*socket, text);
    }
    if (exchange->reusable) idle_[origin] = std::move(socket);
    if (!exchange->next) return std::move(exchange->response);

    if (redirects >= request.max_redirects) {
      throw HttpError(
          fmt::format("{}: more than {} redirects", original.url, request.max_redirects), false);
    }
    const int status = exchange->response.status;
    if (status == 303 || (status <= 302 && request.method == "POST")) {
      if (request.method != "HEAD") request.method = "GET";
      request.body.clear();
    }
    if (!exchange->next->same_origin(url)) {
      std::erase_if(request.headers, [](const auto& header) {
        return same_name(header.first, "Authorization") || same_name(header.first, "Cookie");
      });
    }
    url = *exchange->next;
  }
}

}  // namespace reft
