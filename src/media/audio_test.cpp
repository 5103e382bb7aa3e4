#include "media/audio.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <numbers>

#include "base/error_of_test.h"
#include "base/file.h"
#include "media/log_mel.h"

namespace reft {
namespace {

const std::filesystem::path kData =
    std::filesystem::path(REFT_SOURCE_DIR) / "src" / "media" / "testdata";

std::span<const std::byte> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string wav(uint16_t format, uint16_t bits, uint16_t channels, const std::string& data,
                bool extensible = false) {
  std::string fmt;
  put<uint16_t>(fmt, extensible ? 0xfffe : format);
  put(fmt, channels);
  put<uint32_t>(fmt, 8000);
  put<uint32_t>(fmt, 8000u * channels * bits / 8);
  put<uint16_t>(fmt, static_cast<uint16_t>(channels * bits / 8));
  put(fmt, bits);
  if (extensible) {
    put<uint16_t>(fmt, 22);
    put(fmt, bits);
    put<uint32_t>(fmt, 3);
    put(fmt, format);
    fmt.append(14, '\0');
  }
  std::string out = "RIFF";
  put<uint32_t>(out, static_cast<uint32_t>(20 + fmt.size() + data.size()));
  out += "WAVELIST";
  put<uint32_t>(out, 3);  // an odd chunk is padded
  out += std::string("abc\0", 4) + "fmt ";
  put(out, static_cast<uint32_t>(fmt.size()));
  out += fmt + "data";
  put(out, static_cast<uint32_t>(data.size()));
  return out + data;
}

std::vector<float> samples_of(const std::string& file) {
  return decode_audio(bytes_of(file), "test").samples;
}

TEST(Wav, EveryFormat) {
  std::string pcm16, pcm24, pcm32, float32, float64;
  for (const double x : {0.0, 0.5, -0.5, -1.0}) {
    put(pcm16, static_cast<int16_t>(x * 32768));
    const auto wide = static_cast<int32_t>(x * 2147483648.0);
    put(pcm32, wide);
    pcm24.append(reinterpret_cast<const char*>(&wide) + 1, 3);
    put(float32, static_cast<float>(x));
    put(float64, x);
  }
  const std::vector<float> want = {0, 0.5f, -0.5f, -1};
  EXPECT_EQ(samples_of(wav(1, 8, 1, "\x80\xc0\x40" + std::string(1, '\0'))), want);
  EXPECT_EQ(samples_of(wav(1, 16, 1, pcm16)), want);
  EXPECT_EQ(samples_of(wav(1, 24, 1, pcm24)), want);
  EXPECT_EQ(samples_of(wav(1, 24, 1, pcm24, true)), want);
  EXPECT_EQ(samples_of(wav(1, 32, 1, pcm32)), want);
  EXPECT_EQ(samples_of(wav(3, 32, 1, float32)), want);
  EXPECT_EQ(samples_of(wav(3, 64, 1, float64)), want);
  // Channels are averaged.
  EXPECT_EQ(samples_of(wav(1, 16, 2, pcm16)), (std::vector<float>{0.25f, -0.75f}));
  // G.711: the codes of the largest and the smallest magnitudes.
  EXPECT_EQ(samples_of(wav(6, 8, 1, "\xaa\x2a\xd5")),
            (std::vector<float>{32256 / 32768.0f, -32256 / 32768.0f, 8 / 32768.0f}));
  EXPECT_EQ(samples_of(wav(7, 8, 1, "\x80" + std::string(1, '\0') + "\xff")),
            (std::vector<float>{32124 / 32768.0f, -32124 / 32768.0f, 0}));
}

TEST(Wav, ErrorsSayWhatIsWrong) {
  const auto error = [](const std::string& file) {
    return error_of([&] { decode_audio(bytes_of(file), "a.wav"); });
  };
  EXPECT_NE(error(""), "");
  EXPECT_NE(error(wav(1, 12, 1, "ab")).find("12 bits"), std::string::npos);
  EXPECT_NE(error(wav(2, 16, 1, "ab")).find("format 2"), std::string::npos);
  EXPECT_NE(error(wav(1, 16, 0, "ab")).find("0 channels"), std::string::npos);
  EXPECT_NE(error(wav(1, 16, 1, "")).find("no samples"), std::string::npos);
  EXPECT_NE(error("RIFF1234AVI data"), "");
  EXPECT_NE(error(std::string("\0\0\0\x20"
                              "ftypM4A ",
                              12))
                .find("M4A"),
            std::string::npos);
  EXPECT_NE(error("hello, this is no sound").find("a.wav: unknown audio format"),
            std::string::npos);
  const std::string whole = wav(1, 16, 1, std::string(64000, '\1'));
  EXPECT_NE(error_of([&] {
              decode_audio(bytes_of(whole), "long", {.max_seconds = 3});
            }).find("limit of 3 seconds"),
            std::string::npos);
  // Cut short: what is there.
  EXPECT_EQ(samples_of(whole.substr(0, whole.size() - 20000)).size(), 22000u);
}

// Share of the energy that is the 440 Hz of tools/make_speech_golden.py, and the amplitude.
void expect_tone(const std::vector<float>& x, double rate, double amplitude) {
  double re = 0, im = 0, energy = 0;
  const size_t skip = static_cast<size_t>(rate / 20);  // codecs fade in and out
  ASSERT_GT(x.size(), 4 * skip);
  for (size_t i = skip; i < x.size() - skip; ++i) {
    const double angle = 2 * std::numbers::pi * 440 * static_cast<double>(i) / rate;
    re += x[i] * std::cos(angle);
    im += x[i] * std::sin(angle);
    energy += double{x[i]} * x[i];
  }
  const double n = static_cast<double>(x.size() - 2 * skip);
  EXPECT_NEAR(2 * std::hypot(re, im) / n, amplitude, 0.02);
  EXPECT_GT((re * re + im * im) * 2 / n, 0.98 * energy);
}

TEST(Decode, EveryCodec) {
  struct Case {
    const char *file, *format;
    int64_t rate;
  };
  for (const Case& c : {Case{"tone.flac", "flac", 22050},
                        {"tone.ogg", "vorbis", 22050},
                        {"tone.mp3", "mp3", 22050},
                        {"tone.opus", "opus", 48000}}) {
    const AudioClip clip = decode_audio(bytes_of(read_file(kData / c.file)), c.file);
    EXPECT_EQ(clip.format, c.format);
    EXPECT_EQ(clip.sample_rate, c.rate) << c.file;
    EXPECT_NEAR(clip.seconds(), 0.5, 0.06) << c.file;
    expect_tone(clip.samples, static_cast<double>(c.rate), 0.5);
    const std::vector<float> speech = resample(clip.samples, clip.sample_rate, kSpeechRate);
    expect_tone(speech, kSpeechRate, 0.5);
  }
}

TEST(Decode, DamageNeverCrashes) {
  for (const char* name : {"tone.flac", "tone.ogg", "tone.mp3", "tone.opus"}) {
    const std::string whole = read_file(kData / name);
    uint32_t state = 1;
    for (int round = 0; round < 60; ++round) {
      std::string bad = whole.substr(0, whole.size() * static_cast<size_t>(60 - round) / 60);
      for (int i = 0; i < round % 7 && !bad.empty(); ++i) {
        state = state * 1664525u + 1013904223u;
        bad[(state >> 8) % bad.size()] = static_cast<char>(state);
      }
      error_of([&] { decode_audio(bytes_of(bad), name); });
    }
  }
}

TEST(Resample, KeepsTonesAndRemovesAliases) {
  for (const auto& [from, to] : {std::pair<int64_t, int64_t>{44100, 16000},
                                 {8000, 16000},
                                 {48000, 16000},
                                 {16000, 16000},
                                 {11025, 16000},
                                 {44101, 15999}}) {
    std::vector<float> x(static_cast<size_t>(from / 2));
    for (size_t i = 0; i < x.size(); ++i) {
      const double t = static_cast<double>(i) / static_cast<double>(from);
      x[i] = static_cast<float>(0.5 * std::sin(2 * std::numbers::pi * 440 * t));
      // Above the new Nyquist rate: must vanish instead of folding back.
      if (from > to) x[i] += static_cast<float>(0.4 * std::sin(2 * std::numbers::pi * 9500 * t));
    }
    const std::vector<float> y = resample(x, from, to);
    EXPECT_EQ(y.size(), (x.size() * static_cast<size_t>(to) + static_cast<size_t>(from) - 1) /
                            static_cast<size_t>(from));
    double worst = 0;
    for (size_t i = 200; i + 200 < y.size(); ++i) {
      const double t = static_cast<double>(i) / static_cast<double>(to);
      worst = std::max(worst, std::abs(y[i] - 0.5 * std::sin(2 * std::numbers::pi * 440 * t)));
    }
    EXPECT_LT(worst, 3e-4) << from << " to " << to;  // 70 dB below full scale
  }
  EXPECT_THROW(resample({}, 0, 16000), Error);
}

}  // namespace
}  // namespace reft
