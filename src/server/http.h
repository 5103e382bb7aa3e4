// HTTP as the handlers see it: a request, a whole answer or a stream of events. No sockets here.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace reft {

struct Route;

struct HttpRequest {
  std::string method;  // "POST"
  std::string path;    // decoded, without query and root path
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string request_id;  // the client's x-request-id when it is printable, else made up
  bool client_request_id = false;
  const Route* route = nullptr;
  std::string answer_headers;  // complete lines that go into every answer (CORS, x-request-id)

  // First header of that name (any case), or an empty view.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  // A body that outlives the server (the embedded files of the web UI), instead of `body`.
  std::string_view static_body;
  std::string extra_headers;  // complete lines: "retry-after: 1\r\n"
};

const char* http_status_text(int status);

// OpenAI's error object. `type` follows from the status; an empty `param` or `code` becomes null.
std::string error_json(int status, std::string_view message, std::string_view param = "",
                       std::string_view code = "");
HttpResponse error_response(int status, std::string_view message, std::string_view param = "",
                            std::string_view code = "");
// The answer to the exception being handled: RequestError as it says, Error as 400, all else as
// 500.
HttpResponse response_of_current_exception();

// One request and its answer. Exactly one of `respond` and `finish_stream` ends it.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const HttpRequest& request() const = 0;

  // Any thread.
  virtual void respond(HttpResponse response) = 0;
  // Runs `f` on the connection's strand.
  virtual void post(std::function<void()> f) = 0;
  // `f` runs once on the strand when the client leaves (or the server gives up) before the answer
  // is complete; at once if that already happened. Cleared when the answer ends.
  virtual void on_disconnect(std::function<void()> f) = 0;
  virtual bool disconnected() const = 0;
  // The answer will be an event stream: pings start, the head goes out with the first event or
  // ping.
  virtual void expect_stream() = 0;

  // On the strand only. Events are sent when the current function returns to the strand.
  virtual bool stream_started() const = 0;
  virtual void write(std::string_view events) = 0;
  virtual void finish_stream() = 0;
};

}  // namespace reft
