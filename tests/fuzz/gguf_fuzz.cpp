// layers: base tensor
// A GGUF file: bad ones must be an Error, and of good ones every byte can be read and expanded.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "tensor/dequantize.h"
#include "tensor/gguf.h"

namespace {

void read_all(const reft::GgufReader& file) {
  for (const auto& [key, value] : file.metadata()) {
    try {
      file.get<int64_t>(key, 0);
      file.get<std::vector<double>>(key, {});
    } catch (const reft::Error&) {
    }
  }
  for (const reft::TensorEntry& entry : file.entries()) {
    const reft::Tensor tensor = file.read(entry.name);
    const int64_t elems = std::min<int64_t>(tensor.numel(), 1024);
    if (elems == 0 || tensor.numel() % reft::dtype_info(entry.dtype).block_elems != 0) continue;
    std::vector<float> values(static_cast<size_t>(elems));
    try {
      reft::dequantize_row(entry.dtype, tensor.raw(), values.data(), elems);
    } catch (const reft::Error&) {
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    read_all(*reft::parse_gguf({reinterpret_cast<const std::byte*>(data), size}, "fuzz"));
  } catch (const reft::Error&) {
  }
  return 0;
}
