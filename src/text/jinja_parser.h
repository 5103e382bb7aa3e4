// Jinja's grammar, as transformers configures it (with loop controls and `generation` blocks).
#pragma once

#include <memory>
#include <string_view>

#include "text/jinja_ast.h"

namespace reft::jinja {

// Throws Error with line and column.
std::shared_ptr<const Program> parse_template(std::string_view source);

}  // namespace reft::jinja
