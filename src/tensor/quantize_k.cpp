#include "tensor/quantize_k.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "tensor/float_types.h"

namespace reft {
namespace {

constexpr int kGroups = 8, kGroup = 32;
constexpr float kLargestCode = 15, kLargestScale = 63;

// 32 values with their weights.
struct Group {
  std::array<float, kGroup> x;
  std::array<float, kGroup> w;
};

// x̂ = scale · q − offset, neither negative.
struct Affine {
  float scale = 0;
  float offset = 0;
  float error = INFINITY;
};

float code_of(float x, const Affine& a) {
  if (!(a.scale > 0)) return 0;
  return std::clamp(std::nearbyint((x + a.offset) / a.scale), 0.0f, kLargestCode);
}

float error_of(const Group& g, const Affine& a) {
  float error = 0;
  for (size_t i = 0; i < kGroup; ++i) {
    const float difference = a.scale * code_of(g.x[i], a) - a.offset - g.x[i];
    error += g.w[i] * difference * difference;
  }
  return error;
}

// The scale and offset that fit the codes of `guess` best, by least squares.
Affine fitted(const Group& g, const Affine& guess) {
  double w = 0, wq = 0, wqq = 0, wx = 0, wqx = 0;
  for (size_t i = 0; i < kGroup; ++i) {
    const double weight = g.w[i], q = code_of(g.x[i], guess), x = g.x[i];
    w += weight;
    wq += weight * q;
    wqq += weight * q * q;
    wx += weight * x;
    wqx += weight * q * x;
  }
  const double determinant = w * wqq - wq * wq;
  if (!(determinant > 0)) return guess;
  double scale = (w * wqx - wq * wx) / determinant;
  double offset = (wq * wqx - wqq * wx) / determinant;
  if (offset < 0) {
    offset = 0;
    scale = wqx / wqq;
  }
  if (!(scale > 0)) return guess;
  return {static_cast<float>(scale), static_cast<float>(offset)};
}

// Ranges a little narrower and wider than that of the values, each improved until it gets no
// better.
Affine search(const Group& g) {
  const auto [low, high] = std::minmax_element(g.x.begin(), g.x.end());
  const float floor = std::min(*low, 0.0f), range = *high - floor;
  Affine best{.scale = 0, .offset = -floor};
  best.error = error_of(g, best);
  if (!(range > 0)) return best;
  constexpr int kSteps = 20;
  for (int step = -kSteps / 2; step <= kSteps / 2; ++step) {
    Affine now{.scale = range / (kLargestCode + 0.2f * static_cast<float>(step)), .offset = -floor};
    for (int round = 0; round < 4; ++round) {
      now.error = error_of(g, now);
      if (now.error < best.error) best = now;
      const Affine next = fitted(g, now);
      if (next.scale == now.scale && next.offset == now.offset) break;
      now = next;
    }
  }
  return best;
}

float stored_half(float value, uint8_t* at) {
  const f16 half = to_f16(std::min(value, 65504.0f));
  std::memcpy(at, &half, sizeof(half));
  return to_float(half);
}

// The 6-bit numbers that stand for a group, near those that were found.
struct Codes {
  int scale = 0;
  int offset = 0;
};
Codes rounded(const Group& g, const Affine& found, float d, float dmin) {
  Codes best;
  float least = INFINITY;
  const auto nearest = [](float value, float unit) {
    return unit > 0 ? std::clamp(static_cast<int>(std::nearbyint(value / unit)), 0, 63) : 0;
  };
  const int scale = nearest(found.scale, d), offset = nearest(found.offset, dmin);
  for (int s = std::max(scale - 1, 0); s <= std::min(scale + 1, 63); ++s) {
    for (int o = std::max(offset - 1, 0); o <= std::min(offset + 1, 63); ++o) {
      const float error =
          error_of(g, {.scale = d * static_cast<float>(s), .offset = dmin * static_cast<float>(o)});
      if (error < least) {
        least = error;
        best = {s, o};
      }
    }
  }
  return best;
}

}  // namespace

void quantize_q4_k(const float* values, uint8_t* block) {
  std::array<Group, kGroups> groups;
  std::array<Affine, kGroups> found;
  float largest_scale = 0, largest_offset = 0;
  for (size_t k = 0; k < kGroups; ++k) {
    Group& g = groups[k];
    float squares = 0;
    for (size_t i = 0; i < kGroup; ++i) {
      const float x = values[k * kGroup + i];
      g.x[i] = std::isfinite(x) ? x : 0;
      squares += g.x[i] * g.x[i];
    }
    const float typical = std::sqrt(squares / kGroup);
    for (size_t i = 0; i < kGroup; ++i) g.w[i] = typical + std::fabs(g.x[i]);
    found[k] = search(g);
    largest_scale = std::max(largest_scale, found[k].scale);
    largest_offset = std::max(largest_offset, found[k].offset);
  }
  const float d = stored_half(largest_scale / kLargestScale, block);
  const float dmin = stored_half(largest_offset / kLargestScale, block + 2);
  uint8_t* packed = block + 4;
  uint8_t* nibbles = block + 16;
  std::memset(packed, 0, 12 + 128);
  for (size_t k = 0; k < kGroups; ++k) {
    const Codes codes = rounded(groups[k], found[k], d, dmin);
    const auto s = static_cast<uint8_t>(codes.scale), o = static_cast<uint8_t>(codes.offset);
    if (k < 4) {
      packed[k] |= s;
      packed[k + 4] |= o;
    } else {
      packed[k + 4] |= static_cast<uint8_t>((s & 15) | (o & 15) << 4);
      packed[k - 4] |= static_cast<uint8_t>((s >> 4) << 6);
      packed[k] |= static_cast<uint8_t>((o >> 4) << 6);
    }
    const Affine a{.scale = d * static_cast<float>(codes.scale),
                   .offset = dmin * static_cast<float>(codes.offset)};
    for (size_t i = 0; i < kGroup; ++i) {
      const auto code = static_cast<uint8_t>(code_of(groups[k].x[i], a));
      nibbles[k / 2 * kGroup + i] |= static_cast<uint8_t>(code << (k % 2 * 4));
    }
  }
}

}  // namespace reft
