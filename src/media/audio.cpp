#include "media/audio.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/check.h"
#include "base/thread_pool.h"
#include "media/audio_decoders.h"

namespace reft {

namespace audio {

Mixer::Mixer(std::string what, int64_t sample_rate, int64_t channels, const AudioLimits& limits)
    : what_(std::move(what)), channels_(channels) {
  check(sample_rate >= kMinRate && sample_rate <= kMaxRate, "{}: a sample rate of {} Hz", what_,
        sample_rate);
  check(channels >= 1 && channels <= kMaxChannels, "{}: {} channels", what_, channels);
  max_seconds_ = limits.max_seconds;
  max_samples_ = static_cast<int64_t>(limits.max_seconds * static_cast<double>(sample_rate));
  clip_.sample_rate = sample_rate;
}

void Mixer::add(const float* interleaved, int64_t frames) {
  check(static_cast<int64_t>(clip_.samples.size()) + frames <= max_samples_,
        "{}: longer than the limit of {} seconds", what_, max_seconds_);
  if (channels_ == 1) {
    clip_.samples.insert(clip_.samples.end(), interleaved, interleaved + frames);
    return;
  }
  const float share = 1.0f / static_cast<float>(channels_);
  for (int64_t i = 0; i < frames; ++i) {
    float sum = 0;
    for (int64_t c = 0; c < channels_; ++c) sum += interleaved[i * channels_ + c];
    clip_.samples.push_back(sum * share);
  }
}

AudioClip Mixer::finish(std::string format) {
  check(!clip_.samples.empty(), "{}: no samples could be decoded", what_);
  // Files may hold floats that are no numbers.
  for (float& x : clip_.samples) {
    if (!std::isfinite(x)) x = 0;
  }
  clip_.format = std::move(format);
  return std::move(clip_);
}

}  // namespace audio

namespace {

bool starts_with(std::span<const std::byte> bytes, std::string_view magic, size_t at = 0) {
  return bytes.size() >= at + magic.size() &&
         std::equal(magic.begin(), magic.end(), bytes.begin() + static_cast<int64_t>(at),
                    [](char a, std::byte b) { return static_cast<std::byte>(a) == b; });
}

// A frame header of MPEG layer III: eleven set bits, a version, the layer, possible rates.
bool is_mp3_frame(std::span<const std::byte> b) {
  if (b.size() < 4) return false;
  const auto at = [&](size_t i) { return std::to_integer<unsigned>(b[i]); };
  return at(0) == 0xff && (at(1) & 0xe0) == 0xe0 && (at(1) & 0x18) != 0x08 &&
         (at(1) & 0x06) == 0x02 && (at(2) & 0xf0) != 0xf0 && (at(2) & 0x0c) != 0x0c;
}

double bessel_i0(double x) {
  double term = 1, sum = 1;
  for (int k = 1; k < 64 && term > sum * 1e-17; ++k) {
    term *= x / (2 * k) * (x / (2 * k));
    sum += term;
  }
  return sum;
}

constexpr double kZeroCrossings = 32;
constexpr double kBeta = 9.0;       // about 90 dB
constexpr double kPassband = 0.95;  // of the lower Nyquist rate

// One filter for each of the `to / gcd` places that an output can have between two inputs.
struct Polyphase {
  int64_t up, down;         // to / gcd, from / gcd
  int64_t half;             // taps on each side
  std::vector<float> taps;  // [up, 2 half]

  Polyphase(int64_t from, int64_t to) {
    const int64_t common = std::gcd(from, to);
    up = to / common;
    down = from / common;
    const double cutoff =
        kPassband * std::min(1.0, static_cast<double>(to) / static_cast<double>(from));
    half = static_cast<int64_t>(std::ceil(kZeroCrossings / cutoff));
    if (up * half > kMostTaps) return;
    taps.resize(static_cast<size_t>(up * 2 * half));
    for (int64_t phase = 0; phase < up; ++phase)
      fill(&taps[static_cast<size_t>(phase * 2 * half)], phase, cutoff);
  }

  // Tap j weighs the input at floor(place) − half + 1 + j.
  void fill(float* out, int64_t phase, double cutoff) const {
    const double fraction = static_cast<double>(phase) / static_cast<double>(up);
    const double width = static_cast<double>(half), base = bessel_i0(kBeta);
    for (int64_t j = 0; j < 2 * half; ++j) {
      const double x = static_cast<double>(j - half + 1) - fraction;
      const double ratio = x / width;
      const double window =
          std::abs(ratio) < 1 ? bessel_i0(kBeta * std::sqrt(1 - ratio * ratio)) / base : 0.0;
      const double angle = std::numbers::pi * cutoff * x;
      const double sinc = std::abs(angle) < 1e-9 ? 1.0 : std::sin(angle) / angle;
      out[j] = static_cast<float>(cutoff * sinc * window);
    }
  }

  static constexpr int64_t kMostTaps = 1 << 22;
};

}  // namespace

std::vector<float> resample(std::span<const float> samples, int64_t from, int64_t to) {
  for (const int64_t rate : {from, to}) {
    check(rate >= audio::kMinRate && rate <= audio::kMaxRate, "cannot resample at {} Hz", rate);
  }
  if (from == to) return {samples.begin(), samples.end()};
  const auto n = static_cast<int64_t>(samples.size());
  const Polyphase filter(from, to);
  const double cutoff =
      kPassband * std::min(1.0, static_cast<double>(to) / static_cast<double>(from));
  const int64_t count = (n * filter.up + filter.down - 1) / filter.down;
  std::vector<float> out(static_cast<size_t>(count));
  compute_pool().parallel_for(count, 4096, [&](int64_t begin, int64_t end) {
    std::vector<float> own(filter.taps.empty() ? static_cast<size_t>(2 * filter.half) : 0);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t place = i * filter.down, phase = place % filter.up;
      const int64_t first = place / filter.up - filter.half + 1;
      const float* taps = own.data();
      if (filter.taps.empty()) {
        filter.fill(own.data(), phase, cutoff);  // odd rates: too many phases to keep
      } else {
        taps = &filter.taps[static_cast<size_t>(phase * 2 * filter.half)];
      }
      const int64_t low = std::max<int64_t>(0, -first);
      const int64_t high = std::min<int64_t>(2 * filter.half, n - first);
      float sums[8] = {};
      int64_t j = low;
      for (; j + 8 <= high; j += 8) {
        for (int64_t k = 0; k < 8; ++k)
          sums[k] += taps[j + k] * samples[static_cast<size_t>(first + j + k)];
      }
      for (; j < high; ++j) sums[0] += taps[j] * samples[static_cast<size_t>(first + j)];
      out[static_cast<size_t>(i)] = std::accumulate(std::begin(sums), std::end(sums), 0.0f);
    }
  });
  return out;
}

AudioClip decode_audio(std::span<const std::byte> bytes, const std::string& what,
                       const AudioLimits& limits) {
  check(!bytes.empty(), "{}: the file is empty", what);
  if (starts_with(bytes, "RIFF") || starts_with(bytes, "RF64"))
    return audio::decode_wav(bytes, what, limits);
  if (starts_with(bytes, "fLaC")) return audio::decode_flac(bytes, what, limits, false);
  if (starts_with(bytes, "OggS")) {
    // The first page begins with the codec's own mark, after a header of 27 bytes and one segment.
    if (starts_with(bytes, "OpusHead", 28)) return audio::decode_opus(bytes, what, limits);
    if (starts_with(bytes,
                    "\x7f"
                    "FLAC",
                    28))
      return audio::decode_flac(bytes, what, limits, true);
    return audio::decode_vorbis(bytes, what, limits);
  }
  if (starts_with(bytes, "ID3") || is_mp3_frame(bytes))
    return audio::decode_mp3(bytes, what, limits);
  std::string_view hint;
  if (starts_with(bytes, "ftyp", 4)) hint = " (this one is MP4 or M4A)";
  if (starts_with(bytes, "\x1a\x45\xdf\xa3")) hint = " (this one is WebM or Matroska)";
  fail("{}: unknown audio format{}; WAV, FLAC, MP3, Ogg Vorbis and Ogg Opus are read", what, hint);
}

}  // namespace reft
