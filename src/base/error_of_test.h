// For tests of errors.
#pragma once

#include <string>

#include "base/check.h"

namespace reft {

// What the Error that f() throws says; empty when it throws none.
template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace reft
