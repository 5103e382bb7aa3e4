#include "media/log_mel.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <complex>
#include <mutex>
#include <numbers>

#include "base/check.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

constexpr int64_t kBins = kSpeechFft / 2 + 1;
constexpr int64_t kHalf = kSpeechFft / 2;

// A complex transform of 200 points (400 real samples as pairs), by splitting off factors 2, 2, 2,
// 5, 5. Source: Cooley and Tukey (1965); packing of a real signal: Press et al., "Numerical
// Recipes", 12.3.
class RealFft {
 public:
  RealFft() {
    for (int64_t i = 0; i < kSpeechFft; ++i) {
      const double angle = -2 * std::numbers::pi * static_cast<double>(i) / kSpeechFft;
      roots_[static_cast<size_t>(i)] = {static_cast<float>(std::cos(angle)),
                                        static_cast<float>(std::sin(angle))};
    }
  }

  // |X[k]|² for k in [0, 200].
  void power(const float* samples, float* out) const {
    std::array<Complex, kHalf> in, spectrum;
    for (size_t i = 0; i < kHalf; ++i) in[i] = {samples[2 * i], samples[2 * i + 1]};
    transform(in.data(), spectrum.data(), kHalf, 1);
    for (int64_t k = 0; k <= kHalf; ++k) {
      const Complex a = spectrum[static_cast<size_t>(k % kHalf)];
      const Complex b = std::conj(spectrum[static_cast<size_t>((kHalf - k) % kHalf)]);
      const Complex even = (a + b) * 0.5f, odd = times_minus_i(a - b) * 0.5f;
      const Complex x = even + multiply(roots_[static_cast<size_t>(k)], odd);
      out[k] = x.real() * x.real() + x.imag() * x.imag();
    }
  }

 private:
  using Complex = std::complex<float>;
  static Complex times_minus_i(Complex x) { return {x.imag(), -x.real()}; }
  // Without the checks for infinities of the operator.
  static Complex multiply(Complex a, Complex b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
  }

  // out[k] = Σ in[j stride] w^(jk), w = exp(−2πi / n).
  void transform(const Complex* in, Complex* out, int64_t n, int64_t stride) const {
    if (n == 1) {
      out[0] = in[0];
      return;
    }
    const int64_t radix = n % 2 == 0 ? 2 : 5, part = n / radix;
    for (int64_t r = 0; r < radix; ++r)
      transform(in + r * stride, out + r * part, part, stride * radix);
    const int64_t step = kSpeechFft / n;  // of roots_ for w
    std::array<Complex, 5> terms;
    for (int64_t k = 0; k < part; ++k) {
      for (int64_t r = 0; r < radix; ++r)
        terms[static_cast<size_t>(r)] =
            multiply(roots_[static_cast<size_t>(r * k * step)], out[r * part + k]);
      for (int64_t q = 0; q < radix; ++q) {
        Complex sum = terms[0];
        for (int64_t r = 1; r < radix; ++r)
          sum += multiply(roots_[static_cast<size_t>(r * q % radix * (kSpeechFft / radix))],
                          terms[static_cast<size_t>(r)]);
        out[q * part + k] = sum;
      }
    }
  }

  std::array<Complex, kSpeechFft> roots_;
};

// Slaney's scale: linear below 1 kHz, then 27 steps for a factor of 6.4.
constexpr double kLinearHz = 200.0 / 3, kBreakHz = 1000, kBreakMel = kBreakHz / kLinearHz;
double mel_of(double hz) {
  static const double step = std::log(6.4) / 27;
  return hz < kBreakHz ? hz / kLinearHz : kBreakMel + std::log(hz / kBreakHz) / step;
}
double hz_of(double mel) {
  static const double step = std::log(6.4) / 27;
  return mel < kBreakMel ? mel * kLinearHz : kBreakHz * std::exp((mel - kBreakMel) * step);
}

// A filter is zero but for a few neighbouring bins.
struct Band {
  int64_t begin = 0;
  std::vector<float> weights;
};
std::vector<Band> bands_of(int64_t num_mels) {
  const std::vector<float> filters = mel_filters(num_mels);
  std::vector<Band> bands(static_cast<size_t>(num_mels));
  for (int64_t m = 0; m < num_mels; ++m) {
    const float* row = &filters[static_cast<size_t>(m * kBins)];
    int64_t begin = 0, end = kBins;
    while (begin < end && row[begin] == 0) ++begin;
    while (end > begin && row[end - 1] == 0) --end;
    bands[static_cast<size_t>(m)] = {begin, {row + begin, row + end}};
  }
  return bands;
}

}  // namespace

std::vector<float> mel_filters(int64_t num_mels) {
  check(num_mels > 0 && num_mels <= 1024, "{} mel bins", num_mels);
  const double top = mel_of(kSpeechRate / 2.0);
  std::vector<double> edges(static_cast<size_t>(num_mels + 2));
  for (size_t i = 0; i < edges.size(); ++i)
    edges[i] = hz_of(top * static_cast<double>(i) / static_cast<double>(num_mels + 1));
  std::vector<float> filters(static_cast<size_t>(num_mels * kBins));
  for (size_t m = 0; m < static_cast<size_t>(num_mels); ++m) {
    const double low = edges[m], middle = edges[m + 1], high = edges[m + 2];
    for (int64_t k = 0; k < kBins; ++k) {
      const double hz = static_cast<double>(k * kSpeechRate) / kSpeechFft;
      const double slope = std::min((hz - low) / (middle - low), (high - hz) / (high - middle));
      filters[m * kBins + static_cast<size_t>(k)] =
          static_cast<float>(std::max(0.0, slope) * 2.0 / (high - low));
    }
  }
  return filters;
}

LogMel log_mel(std::span<const float> samples, int64_t num_mels, int64_t padding) {
  static const RealFft fft;
  static const std::array<float, kSpeechFft> window = [] {
    std::array<float, kSpeechFft> w{};
    for (size_t i = 0; i < w.size(); ++i)
      w[i] = static_cast<float>(
          0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(i) / kSpeechFft));
    return w;
  }();
  const std::vector<Band> bands = bands_of(num_mels);
  const auto there = static_cast<int64_t>(samples.size());
  const int64_t length = there + padding;
  LogMel out{num_mels, {}};
  const int64_t frames = length / kSpeechHop;
  out.values.resize(static_cast<size_t>(frames * num_mels));
  // Frame t is centred on sample 160 t; what lies beyond the ends is mirrored.
  const auto sample_at = [&](int64_t i) {
    if (i < 0) i = -i;
    if (i >= length) i = std::max<int64_t>(0, 2 * (length - 1) - i);
    return i < there ? samples[static_cast<size_t>(i)] : 0.0f;
  };
  std::mutex mutex;
  float largest = -10.0f;
  compute_pool().parallel_for(frames, 64, [&](int64_t begin, int64_t end) {
    std::array<float, kSpeechFft> frame;
    std::array<float, kBins> power;
    float top = -10.0f;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kSpeechHop - kHalf;
      if (first >= there && first + kSpeechFft <= length) {  // silence
        std::fill_n(&out.values[static_cast<size_t>(t * num_mels)], num_mels, -10.0f);
        continue;
      }
      for (int64_t i = 0; i < kSpeechFft; ++i)
        frame[static_cast<size_t>(i)] = sample_at(first + i) * window[static_cast<size_t>(i)];
      fft.power(frame.data(), power.data());
      float* row = &out.values[static_cast<size_t>(t * num_mels)];
      for (const Band& band : bands) {
        float sum = 0;
        for (size_t i = 0; i < band.weights.size(); ++i)
          sum += band.weights[i] * power[static_cast<size_t>(band.begin) + i];
        *row = std::log10(std::max(sum, 1e-10f));
        top = std::max(top, *row++);
      }
    }
    const std::lock_guard lock(mutex);
    largest = std::max(largest, top);
  });
  for (float& x : out.values) x = (std::max(x, largest - 8.0f) + 4.0f) / 4.0f;
  return out;
}

}  // namespace reft
