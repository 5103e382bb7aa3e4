// Routes, CORS and API keys: what happens to a request between its head and its handler.
#pragma once

#include <boost/asio/thread_pool.hpp>
#include <string>
#include <vector>

#include "server/connection.h"
#include "server/handlers.h"
#include "server/serve_context.h"

namespace reft {

struct Route {
  enum class Run { kStrand, kWorker };
  enum class Body { kJson, kForm };
  const char* method;  // GET routes answer HEAD too
  std::string path;    // a trailing "*" matches the rest
  Handler handler;
  bool needs_key;
  Run run;
  Body body = Body::kJson;
};

class App final : public HttpApp {
 public:
  App(ServeContext& context, boost::asio::thread_pool& workers);

  std::optional<HttpResponse> on_head(HttpRequest& request) override;
  void on_request(std::shared_ptr<Exchange> exchange) override;
  void on_answered(const HttpRequest& request, int status, double seconds) override;

 private:
  std::string cors_headers(const HttpRequest& request) const;
  HttpResponse answer_options(const HttpRequest& request) const;
  const Route* find_route(const HttpRequest& request, std::string* allowed) const;
  bool key_is_valid(const HttpRequest& request) const;

  ServeContext& context_;
  boost::asio::thread_pool& workers_;
  std::vector<Route> routes_;
  std::vector<std::string> key_digests_;
};

// A request target ("/a%20b?x=1", "http://host/a") as a decoded path without query. Empty when it
// is malformed: bad escapes, control characters, invalid UTF-8, or ".." segments.
std::string decode_target(std::string_view target);

}  // namespace reft
