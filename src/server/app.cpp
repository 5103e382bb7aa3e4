#include "server/app.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <strings.h>
#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/log.h"
#include "server/json_writer.h"

namespace reft {
namespace {

std::string sha256(std::string_view text) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

bool is_printable_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = static_cast<char>(c | 0x20);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

std::string join(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) out += (out.empty() ? "" : ", ") + item;
  return out;
}

bool contains(const std::vector<std::string>& items, std::string_view item) {
  return std::find(items.begin(), items.end(), item) != items.end();
}

// A header's value in an answer: nothing that could end its line.
std::string header_safe(std::string_view value) {
  std::string out;
  for (char c : value) {
    if (c >= 0x20 && c < 0x7f) out += c;
  }
  return out;
}

}  // namespace

std::string random_hex(size_t digits) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string bytes((digits + 1) / 2, '\0');
  check(RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()),
                   static_cast<int>(bytes.size())) == 1,
        "the system gives no random bytes");
  std::string out;
  for (unsigned char byte : bytes) {
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
  }
  out.resize(digits);
  return out;
}

std::string decode_target(std::string_view target) {
  if (target.starts_with("http://") || target.starts_with("https://")) {
    const size_t slash = target.find('/', target.find("//") + 2);
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  target = target.substr(0, target.find_first_of("?#"));
  if (target.empty() || target[0] != '/') return {};
  std::string path;
  for (size_t i = 0; i < target.size(); ++i) {
    char c = target[i];
    if (c == '%') {
      if (i + 2 >= target.size()) return {};
      const int high = hex_digit(target[i + 1]), low = hex_digit(target[i + 2]);
      if (high < 0 || low < 0) return {};
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\') return {};
    path += c;
  }
  if (to_valid_utf8(path) != path) return {};
  if ((path + '/').find("/../") != std::string::npos) return {};
  return path;
}

App::App(ServeContext& context, boost::asio::thread_pool& workers)
    : context_(context), workers_(workers) {
  using Run = Route::Run;
  using Body = Route::Body;
  routes_ = {
      {"POST", "/v1/chat/completions", handle_chat_completions, true, Run::kWorker},
      {"POST", "/v1/completions", handle_completions, true, Run::kWorker},
      {"POST", "/v1/audio/transcriptions", handle_transcriptions, true, Run::kWorker, Body::kForm},
      {"POST", "/v1/audio/translations", handle_translations, true, Run::kWorker, Body::kForm},
      {"POST", "/tokenize", handle_tokenize, true, Run::kWorker},
      {"POST", "/detokenize", handle_detokenize, true, Run::kWorker},
      {"POST", "/apply_template", handle_apply_template, true, Run::kWorker},
      {"POST", "/v1/load_lora_adapter", handle_load_adapter, true, Run::kWorker},
      {"POST", "/v1/unload_lora_adapter", handle_unload_adapter, true, Run::kWorker},
      {"GET", "/v1/models", handle_models, true, Run::kStrand},
      {"GET", "/v1/models/*", handle_model, true, Run::kStrand},
      {"GET", "/metrics", handle_metrics, true, Run::kWorker},
      {"GET", "/health", handle_health, false, Run::kStrand},
      {"GET", "/ping", handle_ping, false, Run::kStrand},
      {"POST", "/ping", handle_ping, false, Run::kStrand},
      {"GET", "/version", handle_version, false, Run::kStrand},
      {"GET", "/", handle_asset, false, Run::kStrand},
      {"GET", "/ui.html", handle_asset, false, Run::kStrand},
      {"GET", "/favicon.ico", handle_asset, false, Run::kStrand},
      {"GET", "/ui/*", handle_asset, false, Run::kStrand},
  };
  for (const std::string& key : context_.options.api_keys) {
    check(!key.empty(), "an API key is empty");
    key_digests_.push_back(sha256(key));
  }
}

// Digests are compared, so neither content nor length of the key shows in the time.
bool App::key_is_valid(const HttpRequest& request) const {
  std::string_view key = request.header("x-api-key");
  if (const std::string_view value = request.header("authorization"); !value.empty()) {
    constexpr std::string_view kScheme = "bearer ";
    if (value.size() <= kScheme.size() ||
        !equals_ignoring_case(value.substr(0, kScheme.size()), kScheme)) {
      return false;
    }
    key = value.substr(kScheme.size());
  }
  const std::string digest = sha256(key);
  bool valid = false;
  for (const std::string& known : key_digests_) {
    valid |= CRYPTO_memcmp(digest.data(), known.data(), digest.size()) == 0;
  }
  return valid && !key.empty();
}

const Route* App::find_route(const HttpRequest& request, std::string* allowed) const {
  // (Without the conversion the views would be of a temporary string.)
  const std::string_view method =
      request.method == "HEAD" ? "GET" : std::string_view(request.method);
  for (const Route& route : routes_) {
    std::string_view pattern = route.path;
    const bool prefix = pattern.back() == '*';
    if (prefix) pattern.remove_suffix(1);
    const bool matches =
        prefix ? request.path.size() > pattern.size() && request.path.starts_with(pattern)
               : request.path == pattern;
    if (!matches) continue;
    if (method == route.method) return &route;
    if (!allowed->empty()) *allowed += ", ";
    *allowed += route.method;
    if (std::string_view(route.method) == "GET") *allowed += ", HEAD";
  }
  return nullptr;
}

std::string App::cors_headers(const HttpRequest& request) const {
  const std::string_view origin = request.header("origin");
  if (origin.empty()) return "";
  const auto& origins = context_.options.allowed_origins;
  const bool any = contains(origins, "*");
  if (!any && !contains(origins, origin)) return "vary: Origin\r\n";
  std::string out;
  if (any && !context_.options.allow_credentials) {
    out = "access-control-allow-origin: *\r\n";
  } else {
    out = "access-control-allow-origin: " + header_safe(origin) + "\r\nvary: Origin\r\n";
  }
  if (context_.options.allow_credentials) out += "access-control-allow-credentials: true\r\n";
  out += "access-control-expose-headers: x-request-id\r\n";
  return out;
}

HttpResponse App::answer_options(const HttpRequest& request) const {
  HttpResponse response;
  response.status = 204;
  const std::string_view wanted = request.header("access-control-request-method");
  if (request.header("origin").empty() || wanted.empty()) {
    std::string allowed;
    find_route(request, &allowed);
    if (allowed.empty()) return error_response(404, "not found: " + request.path.substr(0, 200));
    response.extra_headers = "allow: " + allowed + ", OPTIONS\r\n";
    return response;
  }
  if (request.answer_headers.find("access-control-allow-origin") == std::string::npos) {
    return error_response(400, "this origin is not allowed", "origin");
  }
  const auto& methods = context_.options.allowed_methods;
  const auto& headers = context_.options.allowed_headers;
  const std::string requested = header_safe(request.header("access-control-request-headers"));
  response.extra_headers = fmt::format(
      "access-control-allow-methods: {}\r\naccess-control-allow-headers: {}\r\n"
      "access-control-max-age: 600\r\n",
      contains(methods, "*") ? "GET, POST, HEAD, OPTIONS" : join(methods),
      !contains(headers, "*") ? join(headers)
      : requested.empty()     ? "*"
                              : requested);
  return response;
}

std::optional<HttpResponse> App::on_head(HttpRequest& request) {
  if (context_.options.enable_request_id_headers) {
    const std::string_view id = request.header("x-request-id");
    request.client_request_id = is_printable_id(id);
    request.request_id = request.client_request_id ? std::string(id) : random_hex(32);
    request.answer_headers = "x-request-id: " + request.request_id + "\r\n";
  }
  request.answer_headers += cors_headers(request);
  const std::string path = decode_target(request.path);
  if (path.empty()) return error_response(400, "the request's path is malformed");
  request.path = path;
  if (const std::string& root = context_.options.root_path;
      !root.empty() && path.starts_with(root) &&
      (path.size() == root.size() || path[root.size()] == '/')) {
    request.path = path.size() == root.size() ? "/" : path.substr(root.size());
  }
  if (request.method == "OPTIONS") return answer_options(request);

  std::string allowed;
  request.route = find_route(request, &allowed);
  if (request.route == nullptr) {
    if (allowed.empty()) return error_response(404, "not found: " + request.path.substr(0, 200));
    HttpResponse response = error_response(
        405, fmt::format("{} is not allowed here; use {}", request.method.substr(0, 32), allowed));
    response.extra_headers = "allow: " + allowed + ", OPTIONS\r\n";
    return response;
  }
  if (request.route->needs_key && !key_digests_.empty() && !key_is_valid(request)) {
    return error_response(401, "the API key is missing or wrong", "", "invalid_api_key");
  }
  if (std::string_view(request.route->method) == "POST" && request.path != "/ping") {
    if (!request.header("content-encoding").empty() &&
        !equals_ignoring_case(request.header("content-encoding"), "identity")) {
      return error_response(415, "compressed bodies are not supported", "content-encoding");
    }
    std::string_view type = request.header("content-type");
    type = type.substr(0, type.find(';'));
    while (!type.empty() && type.back() == ' ') type.remove_suffix(1);
    const bool form = request.route->body == Route::Body::kForm;
    const char* wanted = form ? "multipart/form-data" : "application/json";
    if ((form || !type.empty()) && !equals_ignoring_case(type, wanted)) {
      return error_response(415, fmt::format("the body must be {}", wanted), "content-type");
    }
  }
  return std::nullopt;
}

void App::on_request(std::shared_ptr<Exchange> exchange) {
  const Route& route = *exchange->request().route;
  if (route.run == Route::Run::kStrand) return route.handler(context_, exchange);
  boost::asio::post(workers_, [this, &route, exchange = std::move(exchange)] {
    if (exchange->disconnected()) return;
    try {
      route.handler(context_, exchange);
    } catch (...) {
      exchange->respond(response_of_current_exception());
    }
  });
}

void App::on_answered(const HttpRequest& request, int status, double seconds) {
  const std::string handler = request.route != nullptr ? request.route->path : "none";
  const std::string method = request.route != nullptr ? request.method : "any";
  context_.http_metrics.observe(handler, method, status, seconds);
  if (context_.options.log_access) {
    log_info("Serve", "{} {} {} in {:.1f} ms, request {}", request.method.substr(0, 16),
             request.path.substr(0, 200), status, seconds * 1e3, request.request_id);
  }
}

}  // namespace reft
