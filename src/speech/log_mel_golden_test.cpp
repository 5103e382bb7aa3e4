// Log-mel features against transformers' WhisperFeatureExtractor (tools/make_speech_golden.py).
#include <gtest/gtest.h>

#include <cmath>

#include "media/log_mel.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

TEST(LogMel, EqualsTransformers) {
  const auto golden =
      open_safetensors(std::string(REFT_SOURCE_DIR) + "/tests/golden/whisper/features.safetensors");
  const auto samples = golden->read("samples").to_vector<float>();
  for (const int64_t bins : {80, 128}) {
    const Tensor want = golden->read("mel" + std::to_string(bins));
    // Windows of two seconds there, half of it silence.
    const LogMel got = log_mel(samples, bins, 16000);
    ASSERT_EQ(got.num_frames(), want.size(0));
    ASSERT_EQ(bins, want.size(1));
    for (int64_t i = 0; i < want.numel(); ++i) {
      ASSERT_NEAR(got.values[static_cast<size_t>(i)], want.data<float>()[i], 1e-4)
          << "frame " << i / bins << ", bin " << i % bins;
    }
  }
}

TEST(LogMel, ShortAndEmpty) {
  EXPECT_EQ(log_mel({}, 80).num_frames(), 0);
  const std::vector<float> few = {0.1f, 0.2f};
  EXPECT_EQ(log_mel(few, 80).num_frames(), 0);
  EXPECT_EQ(log_mel(few, 80, 320).num_frames(), 2);
  for (const float x : log_mel(few, 80, 320).values) EXPECT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace reft
