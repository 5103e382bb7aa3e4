// Writing safetensors files, single and in shards as Hugging Face names them. Tensors are written
// one after the other, from whichever device they are on; one at a time is on the host. In a file
// the widest elements come first and the data begins at a multiple of 64 bytes, so that every
// tensor is aligned to its element. Each file is written under a temporary name, synced and
// renamed: a failure leaves no half file and the old one as it was.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace reft {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
using SafetensorsMetadata = std::map<std::string, std::string>;

// Views are made contiguous. Throws Error naming the file and the tensor: undefined, of a block
// format, or a name that is taken; and the system's reason when the file cannot be written.
void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       const SafetensorsMetadata& metadata = {{"format", "pt"}});

// <folder>/<stem>.safetensors; or, when that would be over `max_shard_bytes`,
// <stem>-00001-of-0000N.safetensors … and <stem>.safetensors.index.json. Tensors keep their order
// over the shards; a tensor that is larger than a shard gets one of its own. Returns the names of
// the files in the order in which they were written.
std::vector<std::string> write_safetensors_shards(
    const std::string& folder, const std::string& stem, const NamedTensors& tensors,
    int64_t max_shard_bytes, const SafetensorsMetadata& metadata = {{"format", "pt"}});

// "5GB", "500 MB" (powers of 1000), "5GiB" (of 1024), "1000000". Throws Error naming `flag`.
int64_t parse_byte_size(std::string_view text, std::string_view flag);

}  // namespace reft
