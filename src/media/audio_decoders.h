// One function per container and codec, for decode_audio.
#pragma once

#include "media/audio.h"

namespace reft::audio {

inline constexpr int64_t kMinRate = 1;
inline constexpr int64_t kMaxRate = 768'000;
inline constexpr int64_t kMaxChannels = 64;

// Collects interleaved samples as the mean of their channels, within the limits.
class Mixer {
 public:
  // Throws Error on a rate or a number of channels that no file has.
  Mixer(std::string what, int64_t sample_rate, int64_t channels, const AudioLimits& limits);
  // Throws Error beyond the limit.
  void add(const float* interleaved, int64_t frames);
  int64_t channels() const { return channels_; }
  // Throws Error when nothing was added.
  AudioClip finish(std::string format);

 private:
  std::string what_;
  int64_t channels_;
  int64_t max_samples_ = 0;
  double max_seconds_ = 0;
  AudioClip clip_;
};

AudioClip decode_wav(std::span<const std::byte> bytes, const std::string& what,
                     const AudioLimits& limits);
AudioClip decode_flac(std::span<const std::byte> bytes, const std::string& what,
                      const AudioLimits& limits, bool in_ogg);
AudioClip decode_mp3(std::span<const std::byte> bytes, const std::string& what,
                     const AudioLimits& limits);
AudioClip decode_vorbis(std::span<const std::byte> bytes, const std::string& what,
                        const AudioLimits& limits);
AudioClip decode_opus(std::span<const std::byte> bytes, const std::string& what,
                      const AudioLimits& limits);

}  // namespace reft::audio
