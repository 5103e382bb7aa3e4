#include "models/dummy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/dequantize.h"

namespace reft {

namespace {

constexpr int64_t kTableSize = int64_t{1} << 16;
constexpr int64_t kChunk = 1024;

uint64_t split_mix(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Box and Muller's pairs from a fixed seed.
const std::vector<float>& normals() {
  static const std::vector<float> table = [] {
    std::vector<float> values(static_cast<size_t>(kTableSize));
    uint64_t state = 20260101;
    const auto uniform = [&] {
      return (static_cast<double>(split_mix(state) >> 11) + 0.5) * 0x1p-53;
    };
    for (size_t i = 0; i < values.size(); i += 2) {
      const double radius = std::sqrt(-2.0 * std::log(uniform()));
      const double angle = 2.0 * std::numbers::pi * uniform();
      values[i] = static_cast<float>(radius * std::cos(angle));
      values[i + 1] = static_cast<float>(radius * std::sin(angle));
    }
    return values;
  }();
  return table;
}

}  // namespace

Tensor dummy_tensor(const Parameter& parameter, const std::string& name, DType dtype,
                    uint64_t seed) {
  Tensor result = Tensor::empty(parameter.shape, dtype);
  const int64_t numel = result.numel();
  const int64_t block = dtype_info(dtype).block_elems;
  const auto bytes = [&](int64_t elements) { return row_bytes(dtype, elements); };
  uint64_t stream = seed * 0x2545f4914f6cdd1du;
  for (const char c : name) stream = (stream ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  // A function of the chunk alone, whichever thread fills it.
  const auto source = [&](int64_t chunk) {
    uint64_t state = stream + static_cast<uint64_t>(chunk) * 0x9e3779b97f4a7c15u;
    const auto at = static_cast<int64_t>(split_mix(state) % uint64_t{kTableSize - kChunk});
    return at / block * block;
  };
  const auto convert = [&](int64_t from, int64_t count, std::byte* to) {
    std::vector<float> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      values[static_cast<size_t>(i)] =
          parameter.dummy_mean + parameter.dummy_std * normals()[static_cast<size_t>(from + i)];
    }
    quantize_row(dtype, values.data(), to, count);
  };
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  const auto count_of = [&](int64_t chunk) { return std::min(kChunk, numel - chunk * kChunk); };
  if (numel <= kTableSize) {
    for (int64_t c = 0; c < chunks; ++c)
      convert(source(c), count_of(c), result.raw() + bytes(c * kChunk));
    return result;
  }
  std::vector<std::byte> table(static_cast<size_t>(bytes(kTableSize)));
  convert(0, kTableSize, table.data());
  compute_pool().parallel_for(chunks, 256, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      std::memcpy(result.raw() + bytes(c * kChunk), table.data() + bytes(source(c)),
                  static_cast<size_t>(bytes(count_of(c))));
    }
  });
  return result;
}

}  // namespace reft
