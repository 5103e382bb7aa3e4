#include "server/multipart.h"

#include <strings.h>

#include <algorithm>
#include <optional>

#include "engine/request.h"

namespace reft {
namespace {

constexpr size_t kMostParts = 256;

[[noreturn]] void refuse(const std::string& what) {
  throw RequestError("the multipart body is malformed: " + what, "");
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool is(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

// The value of `name` in `form-data; name="file"; filename="a.wav"`. Quoted values may hold
// semicolons and escaped quotes.
std::optional<std::string> parameter(std::string_view header, std::string_view name) {
  size_t at = header.find(';');
  while (at != std::string_view::npos && at < header.size()) {
    ++at;
    const size_t equals = header.find('=', at);
    if (equals == std::string_view::npos) return std::nullopt;
    const std::string_view key = trim(header.substr(at, equals - at));
    std::string value;
    at = equals + 1;
    while (at < header.size() && header[at] == ' ') ++at;
    if (at < header.size() && header[at] == '"') {
      for (++at; at < header.size() && header[at] != '"'; ++at) {
        if (header[at] == '\\' && at + 1 < header.size() && header[at + 1] == '"') ++at;
        value += header[at];
      }
      at = header.find(';', std::min(at, header.size()));
    } else {
      const size_t end = std::min(header.find(';', at), header.size());
      value = trim(header.substr(at, end - at));
      at = end;
    }
    if (is(key, name)) return value;
  }
  return std::nullopt;
}

FormPart parse_head(std::string_view head) {
  for (size_t at = 0; at < head.size();) {
    const size_t end = std::min(head.find("\r\n", at), head.size());
    const std::string_view line = head.substr(at, end - at);
    at = end + 2;
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || !is(trim(line.substr(0, colon)), "content-disposition"))
      continue;
    const std::string_view value = trim(line.substr(colon + 1));
    const auto name = parameter(value, "name");
    if (!name) refuse("a part without a name");
    return {*name, parameter(value, "filename").value_or(""), {}};
  }
  refuse("a part without content-disposition");
}

}  // namespace

std::vector<FormPart> parse_multipart(std::string_view content_type, std::string_view body) {
  const auto boundary = parameter(content_type, "boundary");
  if (!boundary || boundary->empty() || boundary->size() > 200)
    refuse("its content-type has no boundary");
  const std::string first = "--" + *boundary, next = "\r\n" + first;
  size_t at = 0;
  if (!body.starts_with(first)) {  // a preamble is allowed
    at = body.find(next);
    if (at == std::string_view::npos) refuse("its boundary does not occur");
    at += 2;
  }
  at += first.size();
  std::vector<FormPart> parts;
  for (;;) {
    if (body.substr(at).starts_with("--")) return parts;
    at = body.find("\r\n", at);
    if (at == std::string_view::npos) refuse("it ends within a boundary");
    at += 2;
    const size_t head_end = body.find("\r\n\r\n", at);
    if (head_end == std::string_view::npos) refuse("it ends within a part's head");
    const size_t end = body.find(next, head_end + 2);
    if (end == std::string_view::npos) refuse("it ends without its closing boundary");
    if (parts.size() == kMostParts) refuse("too many parts");
    parts.push_back(parse_head(body.substr(at, head_end - at)));
    const size_t begin = std::min(head_end + 4, end);
    parts.back().body = body.substr(begin, end - begin);
    at = end + next.size();
  }
}

}  // namespace reft
