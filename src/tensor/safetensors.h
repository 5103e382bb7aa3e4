// safetensors: 8-byte little-endian header length, JSON header {name: {dtype, shape,
// data_offsets}}, data. Source: huggingface/safetensors, "Format". Writing: safetensors_writer.h.
#pragma once

#include <span>

#include "tensor/checkpoint_reader.h"

namespace reft {

// `path` is a single .safetensors file or a *.index.json whose shards lie beside it.
std::unique_ptr<CheckpointReader> open_safetensors(const std::string& path);

// Parses and validates a header over bytes in memory (the fuzz target's way in). `what` names the
// source in errors.
std::vector<TensorEntry> parse_safetensors_header(std::span<const std::byte> file,
                                                  const std::string& what);

// "F32", "BF16" …; null where the format has no such type.
const char* safetensors_dtype(DType dtype);

}  // namespace reft
