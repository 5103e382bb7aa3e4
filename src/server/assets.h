// The files of the web page, embedded in the executable at build time.
#pragma once

#include <string_view>

namespace reft {

struct Asset {
  std::string_view path;          // as in the URL: "/ui.html", "/ui/app.js"
  std::string_view content_type;  // with charset for text
  std::string_view bytes;
  bool gzip;  // `bytes` are gzip-compressed: send Content-Encoding: gzip (every browser accepts it)
  std::string_view etag;  // quoted, as it goes into the header
};

// The asset served at `path` ("/" is "/ui.html"), or null. Thread-safe; the pointer is valid for
// ever.
const Asset* find_asset(std::string_view path);

}  // namespace reft
