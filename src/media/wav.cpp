// WAV. Source: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0"
// (1991), and mmreg.h for WAVE_FORMAT_EXTENSIBLE; ITU-T G.711 for A-law and µ-law.
#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "media/audio_decoders.h"

namespace reft::audio {
namespace {

enum Format : uint16_t { kPcm = 1, kFloat = 3, kAlaw = 6, kMulaw = 7, kExtensible = 0xfffe };

struct Layout {
  uint16_t format = 0, channels = 0, bits = 0;
  uint32_t rate = 0;

  int64_t sample_bytes() const { return (bits + 7) / 8; }
};

template <class T>
T read(std::span<const std::byte> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

Layout read_layout(std::span<const std::byte> chunk, const std::string& what) {
  check(chunk.size() >= 16, "{}: the fmt chunk has {} bytes", what, chunk.size());
  Layout layout{read<uint16_t>(chunk, 0), read<uint16_t>(chunk, 2), read<uint16_t>(chunk, 14),
                read<uint32_t>(chunk, 4)};
  if (layout.format == kExtensible) {
    check(chunk.size() >= 26, "{}: the fmt chunk has {} bytes", what, chunk.size());
    layout.format = read<uint16_t>(chunk, 24);  // the first bytes of the sub-format's GUID
  }
  const uint16_t bits = layout.bits;
  const bool known =
      (layout.format == kPcm && (bits == 8 || bits == 16 || bits == 24 || bits == 32)) ||
      (layout.format == kFloat && (bits == 32 || bits == 64)) ||
      ((layout.format == kAlaw || layout.format == kMulaw) && bits == 8);
  check(known,
        "{}: WAV format {} with {} bits is not supported (PCM 8, 16, 24, 32, float, A-law, µ-law "
        "are)",
        what, layout.format, bits);
  return layout;
}

// G.711: 4 bits of mantissa and 3 of exponent, to 16-bit PCM.
float expand_alaw(uint8_t code) {
  code ^= 0x55;
  const int exponent = (code >> 4) & 7, mantissa = code & 15;
  const int magnitude =
      exponent == 0 ? (mantissa << 4) + 8 : ((mantissa << 4) + 0x108) << (exponent - 1);
  return static_cast<float>((code & 0x80) != 0 ? magnitude : -magnitude) / 32768.0f;
}
float expand_mulaw(uint8_t code) {
  code = static_cast<uint8_t>(~code);
  const int exponent = (code >> 4) & 7, mantissa = code & 15;
  const int magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84;
  return static_cast<float>((code & 0x80) != 0 ? -magnitude : magnitude) / 32768.0f;
}

float sample(const Layout& layout, const std::byte* p) {
  const auto byte = [&](int i) { return std::to_integer<uint32_t>(p[i]); };
  switch (layout.format) {
    case kFloat: {
      if (layout.bits == 32)
        return std::bit_cast<float>(byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24);
      double value;
      std::memcpy(&value, p, sizeof(value));
      return static_cast<float>(value);
    }
    case kAlaw:
      return expand_alaw(static_cast<uint8_t>(byte(0)));
    case kMulaw:
      return expand_mulaw(static_cast<uint8_t>(byte(0)));
    default:
      break;
  }
  if (layout.bits == 8) return (static_cast<float>(byte(0)) - 128.0f) / 128.0f;
  // Shifted to the top of 32 bits.
  uint32_t top = 0;
  for (int i = 0; i < layout.bits / 8; ++i) top |= byte(i) << (32 - layout.bits + 8 * i);
  return static_cast<float>(static_cast<int32_t>(top)) / 2147483648.0f;
}

}  // namespace

AudioClip decode_wav(std::span<const std::byte> bytes, const std::string& what,
                     const AudioLimits& limits) {
  check(bytes.size() >= 12 && std::memcmp(bytes.data() + 8, "WAVE", 4) == 0,
        "{}: a RIFF file that is no WAV", what);
  std::optional<Layout> layout;
  for (size_t at = 12; at + 8 <= bytes.size();) {
    const auto size = static_cast<size_t>(read<uint32_t>(bytes, at + 4));
    const std::string_view id(reinterpret_cast<const char*>(bytes.data() + at), 4);
    at += 8;
    // A stream that was written to a pipe has a size of all ones, or runs over the end.
    const size_t there = std::min(size, bytes.size() - at);
    if (id == "fmt ") layout = read_layout(bytes.subspan(at, there), what);
    if (id == "data") {
      check(layout.has_value(), "{}: the data comes before its format", what);
      Mixer mixer(what, layout->rate, layout->channels, limits);
      const int64_t step = layout->sample_bytes();
      const auto frames = static_cast<int64_t>(there) / (step * layout->channels);
      constexpr int64_t kPiece = 4096;
      std::vector<float> piece;
      for (int64_t begin = 0; begin < frames; begin += kPiece) {
        const int64_t count = std::min(kPiece, frames - begin);
        piece.resize(static_cast<size_t>(count * layout->channels));
        const std::byte* from = bytes.data() + at + begin * step * layout->channels;
        for (float& x : piece) {
          x = sample(*layout, from);
          from += step;
        }
        mixer.add(piece.data(), count);
      }
      return mixer.finish("wav");
    }
    at += there + (there & 1);
  }
  fail("{}: a WAV file without data", what);
}

}  // namespace reft::audio
