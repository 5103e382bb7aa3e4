#include "hub/url.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/check.h"

namespace reft {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

uint16_t default_port(std::string_view scheme) { return scheme == "https" ? 443 : 80; }

std::string_view without_fragment(std::string_view text) { return text.substr(0, text.find('#')); }

void check_printable(std::string_view text, std::string_view whole) {
  const bool good = std::ranges::all_of(
      text, [](char c) { return static_cast<unsigned char>(c) > ' ' && c != 0x7f; });
  check(good, "bad address '{}': blanks or control characters", whole);
}

}  // namespace

std::string Url::authority() const {
  const std::string name = host.find(':') != std::string::npos ? "[" + host + "]" : host;
  return port == default_port(scheme) ? name : fmt::format("{}:{}", name, port);
}

std::string Url::str() const { return scheme + "://" + authority() + target; }

bool Url::same_origin(const Url& other) const {
  return scheme == other.scheme && host == other.host && port == other.port;
}

Url parse_url(std::string_view text) {
  const std::string_view whole = text;
  check_printable(text, whole);
  Url url;
  const size_t colon = text.find("://");
  check(colon != std::string_view::npos, "bad address '{}': expected http:// or https://", whole);
  url.scheme = lower(text.substr(0, colon));
  check(url.scheme == "http" || url.scheme == "https",
        "bad address '{}': expected http:// or https://", whole);
  text = without_fragment(text.substr(colon + 3));

  const size_t end = std::min(text.find_first_of("/?"), text.size());
  std::string_view authority = text.substr(0, end);
  url.target = std::string(text.substr(end));
  if (url.target.empty() || url.target.front() != '/') url.target.insert(0, "/");
  check(authority.find_first_of("@\\") == std::string_view::npos, "bad address '{}': no user names",
        whole);

  std::string_view port;
  if (authority.starts_with('[')) {
    const size_t bracket = authority.find(']');
    check(bracket != std::string_view::npos, "bad address '{}': no ']'", whole);
    url.host = lower(authority.substr(1, bracket - 1));
    port = authority.substr(bracket + 1);
  } else {
    const size_t at = std::min(authority.find(':'), authority.size());
    url.host = lower(authority.substr(0, at));
    port = authority.substr(at);
  }
  check(!url.host.empty(), "bad address '{}': no host", whole);
  url.port = default_port(url.scheme);
  if (!port.empty()) {
    check(port.front() == ':', "bad address '{}': bad port", whole);
    port.remove_prefix(1);
    const auto [last, error] = std::from_chars(port.data(), port.data() + port.size(), url.port);
    check(error == std::errc() && last == port.data() + port.size() && url.port != 0,
          "bad address '{}': bad port", whole);
  }
  return url;
}

Url resolve_url(const Url& base, std::string_view location) {
  check_printable(location, location);
  const size_t colon = location.find("://");
  if (colon != std::string_view::npos && colon < location.find_first_of("/?#"))
    return parse_url(location);
  if (location.starts_with("//")) return parse_url(base.scheme + ":" + std::string(location));
  Url url = base;
  location = without_fragment(location);
  const std::string path = base.target.substr(0, base.target.find('?'));
  if (location.empty()) return url;
  if (location.front() == '/') {
    url.target = std::string(location);
  } else if (location.front() == '?') {
    url.target = path + std::string(location);
  } else {
    url.target = path.substr(0, path.rfind('/') + 1) + std::string(location);
  }
  return url;
}

std::string encode_url_path(std::string_view path) {
  std::string out;
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    const bool letter_or_digit = std::isalnum(byte) != 0 && byte < 0x80;
    if (letter_or_digit || std::string_view("-._~/").find(c) != std::string_view::npos) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", byte);
    }
  }
  return out;
}

}  // namespace reft
