// Tile kernels in plain C++: any CPU, and the model that the vector types follow.
#include "backends/cpu/linear_kernels.h"
#include "backends/cpu/linear_pairs.h"
#include "backends/cpu/linear_tile.h"
#include "tensor/float_types.h"

namespace reft::cpu {
namespace {

template <class T>
T read(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

struct Scalar {
  static constexpr int kLanes = 1;
  static constexpr bool kSplitBytes = false;
  static constexpr int vectors(int, bool) { return 4; }

  using F = float;
  struct B {
    uint32_t word;
  };

  static F zero() { return 0.0f; }
  static F set1(float x) { return x; }
  static F load(const float* at) { return *at; }
  static void store(float* at, F x) { *at = x; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F load_f16(const std::byte* at) { return reft::to_float(read<f16>(at)); }
  static F load_bf16(const std::byte* at) { return reft::to_float(read<bf16>(at)); }
  static F load_s8(const std::byte* at) { return read<int8_t>(at); }
  static F broadcast_float(const std::byte* at) { return read<float>(at); }
  static F load_bf16_even(const std::byte* at) { return reft::to_float(read<bf16>(at)); }
  static F load_bf16_odd(const std::byte* at) { return reft::to_float(read<bf16>(at + 2)); }

  static B load_bytes(const std::byte* at) { return {read<uint32_t>(at)}; }
  static B broadcast_word(const std::byte* at) { return {read<uint32_t>(at)}; }
  static B low_nibbles(B b) { return {b.word & 0x0f0f0f0fu}; }
  static B high_nibbles(B b) { return {b.word >> 4 & 0x0f0f0f0fu}; }

  // Two 16-bit integers of a word.
  static int16_t low(B b) { return static_cast<int16_t>(b.word); }
  static int16_t high(B b) { return static_cast<int16_t>(b.word >> 16); }

  struct Table {
    int8_t values[16];
  };
  static Table load_table(const int8_t* values) {
    Table table;
    std::memcpy(table.values, values, sizeof(table.values));
    return table;
  }
  static B look_up(const Table& table, B indices) {
    uint32_t word = 0;
    for (int i = 0; i < 32; i += 8) {
      word |= uint32_t{static_cast<uint8_t>(table.values[indices.word >> i & 0xf])} << i;
    }
    return {word};
  }
  template <int kBits>
  static B shift_right(B b) {
    return {(b.word >> kBits & 0xffffu >> kBits) | b.word >> 16 >> kBits << 16};
  }
  static B keep(B b, uint16_t mask) { return {b.word & mask * 0x10001u}; }
  static B signed_even(B b) { return signed_odd({b.word << 8}); }
  static B signed_odd(B b) {
    const auto low_byte = static_cast<int8_t>(b.word >> 8);
    const auto high_byte = static_cast<int8_t>(b.word >> 24);
    return {static_cast<uint16_t>(low_byte) | static_cast<uint32_t>(high_byte) << 16};
  }
  static B no_bytes() { return {0}; }
  static F to_float(B integer) { return static_cast<float>(static_cast<int32_t>(integer.word)); }
  static B add_pairs(B acc, B w, B x) {
    const int32_t sum = low(w) * low(x) + high(w) * high(x);
    return {acc.word + static_cast<uint32_t>(sum)};
  }
  template <Code code>
  using Dot = PairDot<Scalar, code>;
};

constexpr KernelTable make_table() {
  KernelTable table{.name = "scalar"};
  fill_float_layouts<Scalar, 4>(table);
  fill_integer_layouts<Scalar, 4>(table);
  return table;
}

}  // namespace

constinit const KernelTable kScalarKernels = make_table();

}  // namespace reft::cpu
