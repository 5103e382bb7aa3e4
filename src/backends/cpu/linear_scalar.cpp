// Tile kernels in plain C++: any CPU, and the model that the vector types follow.
#include "backends/cpu/linear_kernels.h"
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
  static constexpr int kSignedBias = 0;
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
  static F load_f16(const std::byte* at) { return to_float(read<f16>(at)); }
  static F load_bf16(const std::byte* at) { return to_float(read<bf16>(at)); }
  static F load_s8(const std::byte* at) { return read<int8_t>(at); }
  static F broadcast_float(const std::byte* at) { return read<float>(at); }
  static F load_bf16_even(const std::byte* at) { return to_float(read<bf16>(at)); }
  static F load_bf16_odd(const std::byte* at) { return to_float(read<bf16>(at + 2)); }

  static B load_bytes(const std::byte* at) { return {read<uint32_t>(at)}; }
  static B broadcast_word(const std::byte* at) { return {read<uint32_t>(at)}; }
  static B low_nibbles(B b) { return {b.word & 0x0f0f0f0fu}; }
  static B high_nibbles(B b) { return {b.word >> 4 & 0x0f0f0f0fu}; }

  // init and finish: with kMin the correction is not for the integer sum (see linear_layout.h).
  template <Code code>
  struct Dot {
    using Acc = int32_t;
    using Codes = B;
    static const int8_t* table(const int8_t* values) { return values; }
    static Codes codes(B b, const int8_t* values) {
      if constexpr (code != Code::kLookup) return b;
      uint32_t word = 0;
      for (int i = 0; i < 32; i += 8) {
        word |= uint32_t{static_cast<uint8_t>(values[b.word >> i & 0xf])} << i;
      }
      return {word};
    }
    template <bool kMin>
    static Acc init(const std::byte* correction) {
      return kMin ? 0 : read<int32_t>(correction);
    }
    static Acc step(Acc acc, Codes w, B x) {
      for (int i = 0; i < 32; i += 8) {
        acc += static_cast<int8_t>(w.word >> i) * static_cast<int8_t>(x.word >> i);
      }
      return acc;
    }
    template <bool kMin>
    static F finish(Acc acc, const std::byte*) {
      return static_cast<float>(acc);
    }
  };
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
