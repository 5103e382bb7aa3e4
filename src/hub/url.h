// http and https addresses.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reft {

struct Url {
  std::string scheme;  // "http" or "https"
  std::string host;    // lower case, without the brackets of an IPv6 address
  uint16_t port = 0;
  std::string target;  // path and query, at least "/"

  bool tls() const { return scheme == "https"; }
  // "host", with ":port" unless it is the scheme's own: the Host header.
  std::string authority() const;
  std::string str() const;
  // Same scheme, host and port: what may see the same secrets.
  bool same_origin(const Url& other) const;
};

// Throws Error on another scheme, user names, a bad port, blanks or control characters. Fragments
// are dropped.
Url parse_url(std::string_view text);
// The address in a Location header, absolute or relative to `base`.
Url resolve_url(const Url& base, std::string_view location);
// Percent-encodes all but unreserved characters and '/'.
std::string encode_url_path(std::string_view path);

}  // namespace reft
