// Rotary tables of real configs against transformers' (tests/golden/rope.*, made by
// tools/make_golden.py).
#include "nn/rope.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "models/config.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

const std::filesystem::path kGolden = std::filesystem::path(REFT_SOURCE_DIR) / "tests" / "golden";

TEST(Rope, FrequenciesAndTablesOfRealConfigs) {
  const Json configs = read_json_file((kGolden / "rope.json").string());
  const auto golden = open_safetensors((kGolden / "rope.safetensors").string());
  ASSERT_GE(configs.size(), 12u);
  for (const auto& [name, json] : configs.items()) {
    const Config config(json);
    const DecoderConfig decoder = read_decoder_config(config, {});
    const RopeParameters rope = read_rope(config, decoder, 10000.0);
    const std::vector<int32_t> positions = golden->read(name + ".positions").to_vector<int32_t>();
    const int64_t length = positions.back() + 1;

    const std::vector<float> want = golden->read(name + ".inv_freq").to_vector<float>();
    const std::vector<float> got = rope_frequencies(rope, length).inv_freq;
    ASSERT_EQ(got.size(), want.size()) << name;
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_FLOAT_EQ(got[i], want[i]) << name << " frequency " << i;

    // An ulp of a frequency is an angle of its own at far positions, so these allow an ulp of the
    // angle.
    const Tensor table = rope_table(rope, length);
    const Tensor rows = golden->read(name + ".cos_sin");
    for (size_t r = 0; r < positions.size(); ++r) {
      const float* at = table.rows(positions[r], positions[r] + 1).data<float>();
      for (int64_t i = 0; i < rows.size(1); ++i) {
        const float angle =
            static_cast<float>(positions[r]) * want[static_cast<size_t>(i) % want.size()];
        EXPECT_NEAR(
            at[i], rows.rows(static_cast<int64_t>(r), static_cast<int64_t>(r) + 1).data<float>()[i],
            2e-7f + 1.2e-7f * angle)
            << name << " position " << positions[r] << " column " << i;
      }
    }
  }
}

TEST(Rope, BothDialectsMeanTheSame) {
  const Json base = {{"vocab_size", 8},          {"hidden_size", 32},
                     {"intermediate_size", 8},   {"num_hidden_layers", 1},
                     {"num_attention_heads", 2}, {"max_position_embeddings", 4096}};
  Json v4 = base;
  v4["rope_theta"] = 5e5;
  v4["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  Json v5 = base;
  v5["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 5e5}};
  const auto frequencies = [](const Json& json) {
    const Config config(json);
    return rope_frequencies(read_rope(config, read_decoder_config(config, {}), 10000.0), 16)
        .inv_freq;
  };
  EXPECT_EQ(frequencies(v4), frequencies(v5));
  v5["rope_parameters"]["factor"] = 2.0;
  EXPECT_NE(frequencies(v4), frequencies(v5));
}

}  // namespace
}  // namespace reft
