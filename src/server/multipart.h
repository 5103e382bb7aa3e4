// Bodies of the type multipart/form-data (RFC 7578).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace reft {

struct FormPart {
  std::string name;
  std::string filename;   // empty for a plain field
  std::string_view body;  // a view of the request's body
};

// The parts in their order. Throws RequestError 400 when the body is not what its type says.
std::vector<FormPart> parse_multipart(std::string_view content_type, std::string_view body);

}  // namespace reft
