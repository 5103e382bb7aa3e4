// Log-mel features as Whisper takes them. Source: openai/whisper, audio.py; transformers,
// WhisperFeatureExtractor; the filters: Slaney, "Auditory Toolbox" (1998), as librosa makes them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace reft {

inline constexpr int64_t kSpeechRate = 16'000;  // samples a second
inline constexpr int64_t kSpeechHop = 160;      // samples between two frames: 100 frames a second
inline constexpr int64_t kSpeechFft = 400;      // samples of a frame

struct LogMel {
  int64_t num_mels = 0;
  std::vector<float> values;  // [frames, num_mels]

  int64_t num_frames() const {
    return num_mels > 0 ? static_cast<int64_t>(values.size()) / num_mels : 0;
  }
};

// Mel filters [num_mels, 201], area-normalised triangles from 0 to 8000 Hz on Slaney's scale.
std::vector<float> mel_filters(int64_t num_mels);

// The samples (16 kHz), followed by `padding` zeros, as one frame for each whole hop: power
// spectrum of 400 samples under a periodic Hann window (ends reflected), filters, log10, at most 8
// below the largest value of all frames, then (x + 4) / 4. Thread-safe; shares the compute pool.
LogMel log_mel(std::span<const float> samples, int64_t num_mels, int64_t padding = 0);

}  // namespace reft
