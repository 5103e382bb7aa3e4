#include "models/expert_checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "tensor/safetensors.h"
#include "tensor/safetensors_writer.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(REFT_SOURCE_DIR) / "tests" / "golden" / "qwen3_moe";
constexpr int64_t kExperts = 7;

// A tensor [E, …] of the tensors `name(e)`, or of two of them one below the other.
Tensor stack(const CheckpointReader& reader, const std::string& prefix,
             const std::vector<std::string>& parts) {
  std::vector<Tensor> all;
  for (int64_t e = 0; e < kExperts; ++e) {
    for (const std::string& part : parts)
      all.push_back(reader.read(prefix + std::to_string(e) + "." + part + ".weight"));
  }
  const auto rows = all[0].size(0) * static_cast<int64_t>(parts.size());
  const Tensor result = Tensor::empty({kExperts, rows, all[0].size(1)}, all[0].dtype());
  std::byte* to = result.raw();
  for (const Tensor& t : all) {
    std::memcpy(to, t.raw(), static_cast<size_t>(t.nbytes()));
    to += t.nbytes();
  }
  return result;
}

// The golden's experts, fused in either way, read back one by one.
TEST(ExpertCheckpoint, SplitsFusedExperts) {
  const auto golden = open_safetensors((kGolden / "model.safetensors").string());
  const fs::path path =
      fs::temp_directory_path() / ("reft_experts_" + std::to_string(getpid()) + ".safetensors");
  const std::string experts = "model.layers.1.mlp.experts.";
  using Fused = std::map<std::string, std::vector<std::string>>;
  for (const Fused& names :
       {Fused{{"gate_up_proj", {"gate_proj", "up_proj"}}, {"down_proj", {"down_proj"}}},
        Fused{{"gate_proj.weight", {"gate_proj"}},
              {"up_proj.weight", {"up_proj"}},
              {"down_proj.weight", {"down_proj"}}}}) {
    NamedTensors tensors{{"model.norm.weight", golden->read("model.norm.weight")}};
    for (const auto& [name, parts] : names)
      tensors.emplace_back(experts + name, stack(*golden, experts, parts));
    write_safetensors(path.string(), tensors);
    const auto reader = split_experts(open_safetensors(path.string()));
    EXPECT_EQ(reader->entries().size(), 1 + 3 * kExperts);
    for (const TensorEntry& entry : reader->entries()) {
      const Tensor got = reader->read(entry.name), want = golden->read(entry.name);
      ASSERT_TRUE(reader->contains(entry.name));
      ASSERT_EQ(entry.shape, want.shape()) << entry.name;
      ASSERT_EQ(got.to_vector<float>(), want.to_vector<float>()) << entry.name;
    }
  }
  write_safetensors(path.string(),
                    {{experts + "gate_up_proj", Tensor::zeros({2, 3, 4}, DType::kF32)}});
  EXPECT_THROW(split_experts(open_safetensors(path.string())), Error);
  fs::remove(path);
}

}  // namespace
}  // namespace reft
