// Sound files to samples. Decoding is a pure function of bytes: whatever they are, the result is a
// clip or an Error, never a crash or a loop without end. Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace reft {

struct AudioClip {
  int64_t sample_rate = 0;
  std::vector<float> samples;  // one channel, the mean of the file's channels; about −1 … 1
  std::string format;          // "wav", "flac", "mp3", "vorbis", "opus"

  double seconds() const {
    return sample_rate > 0 ? static_cast<double>(samples.size()) / static_cast<double>(sample_rate)
                           : 0.0;
  }
};

struct AudioLimits {
  double max_seconds = 4 * 3600;  // longer clips are refused
};

// Decodes WAV (PCM of 8, 16, 24 and 32 bits, float of 32 and 64, A-law and µ-law), FLAC (also in
// Ogg), MP3, Ogg Vorbis and Ogg Opus, told apart by their bytes. `what` names the source in errors.
// Throws Error: empty, unknown format, damaged, no samples, longer than the limit. A file that is
// cut short gives what is there.
AudioClip decode_audio(std::span<const std::byte> bytes, const std::string& what,
                       const AudioLimits& limits = {});

// By a windowed sinc (Kaiser, 32 zero crossings a side, cut off at the lower of the two Nyquist
// rates). Returns ceil(n · to / from) samples. Rates from 1 to 768000, else Error. Source: Smith,
// "Digital Audio Resampling Home Page" (2002).
std::vector<float> resample(std::span<const float> samples, int64_t from, int64_t to);

}  // namespace reft
