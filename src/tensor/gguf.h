// GGUF v2 and v3: typed metadata and tensors of ggml types. Source: ggml's docs/gguf.md.
// GGUF stores shapes innermost first; entries here have the row-major order of safetensors ([out,
// in]).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "tensor/checkpoint_reader.h"

namespace reft {

// A metadata value. Integers are widened to int64 (uint64 above its range is refused), floats to
// double. Arrays are homogeneous; arrays of arrays are refused.
using GgufValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<std::string>, std::vector<bool>>;

class GgufReader : public CheckpointReader {
 public:
  virtual const std::map<std::string, GgufValue>& metadata() const = 0;
  // The (first) file, or what parse_gguf was told.
  virtual const std::string& path() const = 0;
  // The value as T: any alternative of GgufValue. int64_t also reads bool, double also int64_t, and
  // likewise for arrays; an empty array is an array of every type. `fallback` when absent. Throws
  // Error naming key and file on another type.
  template <class T>
  T get(const std::string& key, T fallback) const;
  // Like get, but absent is an Error too.
  template <class T>
  T require(const std::string& key) const;
};

// Opens a file and, when its metadata says that it is one of several (`name-00001-of-0000N.gguf`),
// all the others beside it; any of them may be named. The metadata is the first file's.
std::unique_ptr<GgufReader> open_gguf(const std::string& path);
// Parses and validates bytes in memory (the fuzz target's way in); the bytes must outlive the
// reader.
std::unique_ptr<GgufReader> parse_gguf(std::span<const std::byte> file, const std::string& what);

}  // namespace reft
