// A blocking HTTP/1.1 client: https with verified certificates, redirects, timeouts, bodies handed
// on piece by piece as they arrive, connections kept alive.
//
// Contract: a client is used by one thread at a time and keeps one idle connection per origin. Make
// one per thread; they share nothing but the TLS settings.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hub/http_socket.h"
#include "hub/url.h"

namespace reft {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct ClientResponse {
  int status = 0;
  HttpHeaders headers;
  std::string body;  // empty when on_body took it
  Url url;           // the one that answered, after redirects

  // First header of that name (any case), or an empty view.
  std::string_view header(std::string_view name) const;
};

enum class Redirects {
  kNone,      // a 3xx is the answer
  kSameHost,  // followed unless it leads to another host
  kAll,
};

struct ClientRequest {
  std::string method = "GET";
  std::string url;
  HttpHeaders headers;  // Host, Content-Length, User-Agent and Accept-Encoding are filled in
  std::string body;
  // Asking twice does no harm, as with GET and HEAD: the request is sent once more when a server
  // closes a kept connection instead of answering (RFC 9112 section 9.3.1).
  bool repeatable = false;
  Redirects redirects = Redirects::kAll;
  int max_redirects = 5;
  // Called once with the answer's status and headers, before its body; not for redirects that are
  // followed.
  std::function<void(const ClientResponse&)> on_head;
  // Gets pieces of the body right after they were read from the socket (chunked coding removed).
  // When empty, the body is collected in the answer. What the callbacks throw ends the request and
  // passes through.
  std::function<void(std::string_view)> on_body;
  double connect_timeout_s = 10;
  double idle_timeout_s = 60;         // between two reads
  double total_timeout_s = 0;         // 0: none
  size_t max_body_bytes = 256 << 20;  // of a collected body
};

class HttpClient {
 public:
  // With `environment_proxy`, HTTP_PROXY, HTTPS_PROXY and NO_PROXY (any case) are obeyed.
  explicit HttpClient(bool environment_proxy = false);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // Any HTTP status is an answer. Throws HttpError when the network or the server's HTTP is at
  // fault, Error on a bad request. Authorization and Cookie headers are not sent on to another
  // origin, nor is https left for http.
  ClientResponse send(const ClientRequest& request);

 private:
  class Exchange;
  std::unique_ptr<HttpSocket> connect(const Url& url, const ClientRequest& request,
                                      Deadline deadline) const;

  bool environment_proxy_;
  std::map<std::string, std::unique_ptr<HttpSocket>> idle_;  // by origin
  std::vector<char> buffer_;
};

}  // namespace reft
