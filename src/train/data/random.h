// Random numbers for orders of data: the same on every machine, the state one number.
#pragma once

#include <cstdint>

namespace reft {

// SplitMix64 (Steele, Lea, Flood, 2014).
class SplitMix {
 public:
  explicit SplitMix(uint64_t state) : state_(state) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // Uniform in [0, n), 0 < n < 2^32.
  uint64_t below(uint64_t n) { return (next() >> 32) * n >> 32; }
  uint64_t state() const { return state_; }

 private:
  uint64_t state_;
};

// A stream of its own for each pair of numbers.
inline SplitMix split_mix(uint64_t seed, uint64_t stream) {
  SplitMix mix(seed);
  return SplitMix(mix.next() ^ SplitMix(stream).next());
}

}  // namespace reft
