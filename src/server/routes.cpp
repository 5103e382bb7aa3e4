// The small routes: tokenize, detokenize, apply_template, models, health, version, metrics, the web
// UI.
#include <boost/beast/zlib/inflate_stream.hpp>
#include <cstring>

#include "server/assets.h"
#include "server/chat_prompt.h"
#include "server/handlers.h"
#include "server/json_writer.h"
#include "server/openai_requests.h"

namespace reft {
namespace {

void answer(const std::shared_ptr<Exchange>& exchange, std::string body) {
  HttpResponse response;
  response.body = std::move(body);
  exchange->respond(std::move(response));
}

// `parent`: of an adapter, whose folder is `root`; null: the base model.
std::string model_object(const ServeContext& context, const std::string& name,
                         const ServedAdapter* adapter) {
  std::string out = R"({"id":)";
  append_json_string(out, name);
  out += R"(,"object":"model","created":)";
  append_json_int(out, context.created);
  out += R"(,"owned_by":)";
  append_json_string(out, context.options.owned_by);
  out += R"(,"root":)";
  if (adapter != nullptr) {
    append_json_string(out, adapter->path);
    out += R"(,"parent":)";
    append_json_string(out, context.request.model_names.front());
  } else {
    append_json_string(out, context.options.model_path.empty() ? name : context.options.model_path);
    out += R"(,"parent":null)";
  }
  out += R"(,"max_model_len":)";
  append_json_int(out, context.request.max_model_len);
  if (context.speech != nullptr)
    out += R"(,"architecture":{"input_modalities":["audio"],"output_modalities":["text"]})";
  out += R"(,"permission":[]})";
  return out;
}

}  // namespace

void handle_tokenize(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  const Json body = parse_request_body(exchange->request().body);
  const Fields fields(body);
  const RequestContext& request = context.request;
  request.resolve_model(fields.string("model"));
  const bool with_strings = fields.boolean("return_token_strs").value_or(false);
  std::vector<int32_t> ids;
  if (fields.get("messages") != nullptr) {
    const ChatPrompt prompt = parse_chat_prompt(fields, request);
    ids = encode_chat_prompt(prompt, render_chat_prompt(prompt, request), request);
  } else {
    const auto text = fields.string("prompt");
    if (!text) fields.refuse("prompt", "is missing: send 'prompt' or 'messages'");
    EncodeOptions options;
    options.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
    ids = request.require_tokenizer().encode(*text, options);
  }
  std::string out = R"({"count":)";
  append_json_int(out, static_cast<int64_t>(ids.size()));
  out += R"(,"max_model_len":)";
  append_json_int(out, request.max_model_len);
  out += R"(,"tokens":[)";
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, ids[i]);
  }
  out += R"(],"token_strs":)";
  if (with_strings) {
    out += '[';
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) out += ',';
      append_json_string(out, request.require_tokenizer().id_to_token(ids[i]));
    }
    out += ']';
  } else {
    out += "null";
  }
  out += '}';
  answer(exchange, std::move(out));
}

void handle_detokenize(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  const Json body = parse_request_body(exchange->request().body);
  const Fields fields(body);
  context.request.resolve_model(fields.string("model"));
  const auto ids = fields.int_array("tokens", 0, context.request.vocab_size - 1);
  if (!ids) fields.refuse("tokens", "is missing");
  const bool skip_special = fields.boolean("skip_special_tokens").value_or(false);
  std::string out = R"({"prompt":)";
  append_json_string(out, context.request.require_tokenizer().decode(*ids, skip_special));
  out += '}';
  answer(exchange, std::move(out));
}

void handle_apply_template(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  const Json body = parse_request_body(exchange->request().body);
  const Fields fields(body);
  context.request.resolve_model(fields.string("model"));
  const ChatPrompt prompt = parse_chat_prompt(fields, context.request);
  std::string out = R"({"prompt":)";
  append_json_string(out, render_chat_prompt(prompt, context.request));
  out += '}';
  answer(exchange, std::move(out));
}

void handle_models(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  std::string out = R"({"object":"list","data":[)";
  for (size_t i = 0; i < context.request.model_names.size(); ++i) {
    if (i > 0) out += ',';
    out += model_object(context, context.request.model_names[i], nullptr);
  }
  if (context.text != nullptr) {
    for (const ServedAdapterPtr& adapter : context.text->adapters()) {
      out += ',';
      out += model_object(context, adapter->name, adapter.get());
    }
  }
  out += "]}";
  answer(exchange, std::move(out));
}

void handle_model(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  constexpr std::string_view kPrefix = "/v1/models/";
  const std::string name = exchange->request().path.substr(kPrefix.size());
  context.request.resolve_model(name);
  const ServedAdapterPtr adapter =
      context.text == nullptr ? nullptr : context.text->find_adapter(name);
  answer(exchange, model_object(context, name, adapter.get()));
}

namespace {

const char* const kForbidden =
    "adapters are not changed over HTTP: start with --allow_runtime_lora_updating";

void answer_text(const std::shared_ptr<Exchange>& exchange, std::string text) {
  HttpResponse response;
  response.content_type = "text/plain; charset=utf-8";
  response.body = std::move(text);
  exchange->respond(std::move(response));
}

std::string required(const Fields& fields, const char* key) {
  const auto value = fields.string(key);
  if (!value || value->empty()) fields.refuse(key, "is missing");
  return *value;
}

}  // namespace

void handle_load_adapter(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  if (!context.options.allow_runtime_lora_updating)
    throw RequestError(kForbidden, "", 403, "forbidden");
  const Json body = parse_request_body(exchange->request().body);
  const Fields fields(body);
  const std::string name = required(fields, "lora_name"), path = required(fields, "lora_path");
  try {
    check_adapter_name(name, context.request);
    context.engine().load_adapter(name, path);
  } catch (const RequestError&) {
    throw;
  } catch (const Error& e) {
    throw RequestError(e.what(), "lora_path", 400, "invalid_adapter");
  }
  answer_text(exchange, fmt::format("Success: LoRA adapter '{}' added successfully.", name));
}

void handle_unload_adapter(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  if (!context.options.allow_runtime_lora_updating)
    throw RequestError(kForbidden, "", 403, "forbidden");
  const Json body = parse_request_body(exchange->request().body);
  const Fields fields(body);
  const std::string name = required(fields, "lora_name");
  if (!context.engine().unload_adapter(name)) {
    throw RequestError(fmt::format("the adapter '{}' cannot be found", name.substr(0, 200)),
                       "lora_name", 404, "not_found");
  }
  answer_text(exchange, fmt::format("Success: LoRA adapter '{}' removed successfully.", name));
}

void handle_health(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  std::string reason;
  if (context.text != nullptr && !context.text->healthy(&reason)) {
    return exchange->respond(
        error_response(503, "the engine stopped: " + reason, "", "engine_dead"));
  }
  exchange->respond({});
}

void handle_ping(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  handle_health(context, exchange);
}

void handle_version(ServeContext&, const std::shared_ptr<Exchange>& exchange) {
  answer(exchange, R"({"version":")" REFT_VERSION R"("})");
}

void handle_metrics(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = prometheus_text(context);
  exchange->respond(std::move(response));
}

namespace {

// Whether an Accept-Encoding header allows gzip: named, or "*", without q=0.
bool accepts_gzip(std::string_view header) {
  for (size_t begin = 0; begin < header.size();) {
    const size_t end = std::min(header.find(',', begin), header.size());
    std::string_view item = header.substr(begin, end - begin);
    item.remove_prefix(std::min(item.find_first_not_of(' '), item.size()));
    const std::string_view name = item.substr(0, item.find_first_of("; "));
    if (name == "gzip" || name == "*") {
      const size_t q = item.find("q=0");
      return q == std::string_view::npos || item.find_first_of("123456789", q + 3) != item.npos;
    }
    begin = end + 1;
  }
  return false;
}

// The contents of an embedded gzip member without optional header fields (`gzip -n`).
std::string gunzip(std::string_view member) {
  constexpr size_t kHeader = 10, kTrailer = 8;
  check(member.size() > kHeader + kTrailer && member[3] == 0, "an embedded file is not plain gzip");
  uint32_t size = 0;
  std::memcpy(&size, member.data() + member.size() - 4, 4);
  std::string out(size, '\0');
  boost::beast::zlib::inflate_stream inflater;
  boost::beast::zlib::z_params params;
  params.next_in = member.data() + kHeader;
  params.avail_in = member.size() - kHeader - kTrailer;
  params.next_out = out.data();
  params.avail_out = out.size();
  boost::system::error_code error;
  inflater.write(params, boost::beast::zlib::Flush::finish, error);
  check(params.total_out == size, "an embedded file cannot be expanded: {}", error.message());
  return out;
}

}  // namespace

void handle_asset(ServeContext&, const std::shared_ptr<Exchange>& exchange) {
  const HttpRequest& request = exchange->request();
  if (const Asset* asset = find_asset(request.path == "/" ? "/ui.html" : request.path)) {
    HttpResponse response;
    response.content_type = std::string(asset->content_type);
    response.extra_headers = fmt::format("cache-control: no-cache\r\netag: {}\r\n", asset->etag);
    if (!asset->etag.empty() && request.header("if-none-match") == asset->etag) {
      response.status = 304;
    } else {
      response.extra_headers += "vary: accept-encoding\r\n";
      if (asset->gzip && !accepts_gzip(request.header("accept-encoding"))) {
        response.body = gunzip(asset->bytes);
      } else {
        if (asset->gzip) response.extra_headers += "content-encoding: gzip\r\n";
        response.static_body = asset->bytes;
      }
    }
    return exchange->respond(std::move(response));
  }
  exchange->respond(error_response(404, "not found: " + exchange->request().path.substr(0, 200)));
}

}  // namespace reft
