#include "server/http.h"

#include <strings.h>

#include "base/log.h"
#include "engine/request.h"
#include "server/json_writer.h"

namespace reft {

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key.size() == name.size() && strncasecmp(key.data(), name.data(), name.size()) == 0) {
      return value;
    }
  }
  return {};
}

const char* http_status_text(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Unknown";
  }
}

namespace {

const char* error_type(int status) {
  if (status == 401) return "authentication_error";
  if (status == 429) return "rate_limit_error";
  if (status >= 500) return "server_error";
  return "invalid_request_error";
}

void append_string_or_null(std::string& out, std::string_view text) {
  if (text.empty()) {
    out += "null";
  } else {
    append_json_string(out, text);
  }
}

}  // namespace

std::string error_json(int status, std::string_view message, std::string_view param,
                       std::string_view code) {
  std::string out = R"({"error":{"message":)";
  append_json_string(out, message);
  out += R"(,"type":")";
  out += error_type(status);
  out += R"(","param":)";
  append_string_or_null(out, param);
  out += R"(,"code":)";
  append_string_or_null(out, code);
  out += "}}";
  return out;
}

HttpResponse error_response(int status, std::string_view message, std::string_view param,
                            std::string_view code) {
  HttpResponse response;
  response.status = status;
  response.body = error_json(status, message, param, code);
  if (status == 503 || status == 429) response.extra_headers = "retry-after: 1\r\n";
  if (status == 401) response.extra_headers = "www-authenticate: Bearer\r\n";
  return response;
}

HttpResponse response_of_current_exception() {
  try {
    throw;
  } catch (const RequestError& e) {
    return error_response(e.status(), e.what(), e.param(), e.code());
  } catch (const Error& e) {
    return error_response(400, e.what());
  } catch (const std::bad_alloc&) {
    return error_response(503, "out of memory", "", "out_of_memory");
  } catch (const std::exception& e) {
    log_error("Serve", "internal error: {}", e.what());
    return error_response(500, "internal error", "", "internal_error");
  }
}

}  // namespace reft
