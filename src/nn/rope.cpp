#include "nn/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/thread_pool.h"

namespace reft {

namespace {

// theta^(2i/R) as float32. The exponent is rounded to float32 first, as torch's arange(…)/dim is.
std::vector<float> powers(double theta, int64_t rotary_dim) {
  std::vector<float> result(static_cast<size_t>(rotary_dim / 2));
  for (size_t i = 0; i < result.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    result[i] =
        static_cast<float>(std::pow(static_cast<double>(static_cast<float>(theta)), exponent));
  }
  return result;
}

std::vector<float> inverse(std::vector<float> values) {
  for (float& value : values) value = 1.0f / value;
  return values;
}

void llama3_scale(const RopeParameters& p, std::vector<float>& inv_freq) {
  const double old_len = static_cast<double>(p.original_max_position);
  const float low_wavelen = static_cast<float>(old_len / p.low_freq_factor);
  const float high_wavelen = static_cast<float>(old_len / p.high_freq_factor);
  const float factor = static_cast<float>(p.factor);
  for (float& f : inv_freq) {
    const float wavelen = static_cast<float>(2.0 * std::numbers::pi) / f;
    if (wavelen > low_wavelen) {
      f /= factor;
    } else if (wavelen >= high_wavelen) {
      const float smooth =
          (static_cast<float>(old_len) / wavelen - static_cast<float>(p.low_freq_factor)) /
          static_cast<float>(p.high_freq_factor - p.low_freq_factor);
      f = (1.0f - smooth) * f / factor + smooth * f;
    }
  }
}

double yarn_mscale(double scale, double mscale) {
  return scale <= 1.0 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

RopeFrequencies yarn(const RopeParameters& p) {
  const double dim = static_cast<double>(p.rotary_dim);
  const auto correction_dim = [&](double rotations) {
    return dim *
           std::log(static_cast<double>(p.original_max_position) /
                    (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(p.theta));
  };
  double low = correction_dim(p.beta_fast);
  double high = correction_dim(p.beta_slow);
  if (p.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;

  RopeFrequencies result;
  result.inv_freq = powers(p.theta, p.rotary_dim);
  for (size_t i = 0; i < result.inv_freq.size(); ++i) {
    const float power = result.inv_freq[i];
    const float extrapolated = 1.0f / power;
    const float interpolated = 1.0f / (static_cast<float>(p.factor) * power);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    result.inv_freq[i] = interpolated * (1.0f - keep) + extrapolated * keep;
  }
  double attention_factor = p.attention_factor;
  if (attention_factor == 0.0) {
    attention_factor =
        p.mscale != 0.0 && p.mscale_all_dim != 0.0
            ? yarn_mscale(p.factor, p.mscale) / yarn_mscale(p.factor, p.mscale_all_dim)
            : yarn_mscale(p.factor, 1.0);
  }
  result.attention_factor = static_cast<float>(attention_factor);
  return result;
}

RopeFrequencies long_rope(const RopeParameters& p, int64_t positions) {
  const std::vector<float>& factors =
      positions > p.original_max_position ? p.long_factors : p.short_factors;
  check(static_cast<int64_t>(factors.size()) == p.rotary_dim / 2,
        "longrope has {} factors for {} frequencies", factors.size(), p.rotary_dim / 2);
  RopeFrequencies result;
  result.inv_freq = powers(p.theta, p.rotary_dim);
  for (size_t i = 0; i < factors.size(); ++i) {
    result.inv_freq[i] = 1.0f / (factors[i] * result.inv_freq[i]);
  }
  double factor = p.attention_factor;
  if (factor == 0.0) {
    factor = p.factor <= 1.0
                 ? 1.0
                 : std::sqrt(1.0 + std::log(p.factor) /
                                       std::log(static_cast<double>(p.original_max_position)));
  }
  result.attention_factor = static_cast<float>(factor);
  return result;
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeParameters& p, int64_t positions) {
  check(p.rotary_dim > 0 && p.rotary_dim % 2 == 0,
        "rotary dimension {} is not a positive even number", p.rotary_dim);
  if (p.type == RopeType::kYarn) return yarn(p);
  if (p.type == RopeType::kLongRope) return long_rope(p, positions);

  double theta = p.theta;
  if (p.type == RopeType::kDynamic && positions > p.original_max_position) {
    const double ratio =
        static_cast<double>(positions) / static_cast<double>(p.original_max_position);
    const double dim = static_cast<double>(p.rotary_dim);
    theta *= std::pow(p.factor * ratio - (p.factor - 1.0), dim / (dim - 2.0));
  }
  RopeFrequencies result;
  result.inv_freq = inverse(powers(theta, p.rotary_dim));
  if (p.type == RopeType::kLinear) {
    for (float& f : result.inv_freq) f /= static_cast<float>(p.factor);
  } else if (p.type == RopeType::kLlama3) {
    llama3_scale(p, result.inv_freq);
  } else if (p.type == RopeType::kFactors) {
    check(p.short_factors.size() == result.inv_freq.size(), "{} rotary factors for {} frequencies",
          p.short_factors.size(), result.inv_freq.size());
    for (size_t i = 0; i < result.inv_freq.size(); ++i) result.inv_freq[i] /= p.short_factors[i];
  }
  return result;
}

Tensor rope_table(const RopeParameters& parameters, int64_t positions) {
  check(positions > 0, "a rotary table of {} positions", positions);
  const RopeFrequencies frequencies = rope_frequencies(parameters, positions);
  const int64_t half = parameters.rotary_dim / 2;
  Tensor table = Tensor::empty({positions, 2 * half}, DType::kF32);
  float* out = table.data<float>();
  compute_pool().parallel_for(positions, 256, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(p) * frequencies.inv_freq[static_cast<size_t>(i)];
        out[p * 2 * half + i] = std::cos(angle) * frequencies.attention_factor;
        out[p * 2 * half + half + i] = std::sin(angle) * frequencies.attention_factor;
      }
    }
  });
  return table;
}

}  // namespace reft
