// Integer products for linear_tile.h where instructions multiply pairs of 16-bit integers: codes
// are widened in registers, once for all rows of a tile. Included by files that set the target.
#pragma once

#include "backends/cpu/linear_layout.h"

namespace reft::cpu {
namespace {

// V provides, beside what linear_tile.h needs,
//   add_pairs(acc, w, x)   acc + w0 x0 + w1 x1 of each lane's 16-bit integers, in 32 bits
//   shift_right<bits> keep of 16-bit integers (zeros come in; and with a mask)
//   signed_even signed_odd the even or the odd bytes, sign-extended to 16 bits
//   load_table look_up     sixteen signed bytes, and those that the bytes of a vector choose
//   no_bytes to_float      zero; from 32-bit integers
template <class V, Code code>
struct PairDot {
  using B = typename V::B;
  using F = typename V::F;
  using Acc = B;
  // A word of 4 codes is two pairs: its even and its odd bytes.
  static constexpr int kParts = 2;

  static auto table(const int8_t* values) {
    if constexpr (code == Code::kLookup) return V::load_table(values);
    if constexpr (code != Code::kLookup) return V::no_bytes();
  }
  // Pair `part` of the words of the low (half 0) or high nibbles, or of the whole bytes.
  template <class Table>
  static B codes(B b, int half, int part, const Table& table) {
    if constexpr (code == Code::kNibble) {
      if (part == 0) return V::keep(half == 0 ? b : V::template shift_right<4>(b), 15);
      return half == 0 ? V::keep(V::template shift_right<8>(b), 15)
                       : V::template shift_right<12>(b);
    } else if constexpr (code == Code::kSmallByte) {
      return part == 0 ? V::keep(b, 255) : V::template shift_right<8>(b);
    } else {
      if constexpr (code == Code::kLookup) {
        b = V::look_up(table, half == 0 ? V::low_nibbles(b) : V::high_nibbles(b));
      }
      return part == 0 ? V::signed_even(b) : V::signed_odd(b);
    }
  }
  static B load(const std::byte* x) { return V::broadcast_word(x); }
  // With kMin the correction is not for the integer sum (see linear_layout.h).
  template <bool kMin>
  static Acc init(const std::byte* correction) {
    return kMin ? V::no_bytes() : V::broadcast_word(correction);
  }
  static Acc step(Acc acc, B w, B x) { return V::add_pairs(acc, w, x); }
  static F finish(Acc acc) { return V::to_float(acc); }
};

}  // namespace
}  // namespace reft::cpu
