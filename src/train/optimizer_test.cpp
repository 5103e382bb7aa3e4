#include "train/optimizer.h"
#include "base/error_of_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include "tensor/safetensors.h"
#include "tensor/safetensors_writer.h"

namespace reft {
namespace {

using testing::HasSubstr;

Tensor random_tensor(Shape shape, uint32_t seed, DType dtype = DType::kF32) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Tensor t = Tensor::empty(shape, DType::kF32);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = normal(random);
  return t.to(dtype);
}

std::vector<TrainParameter> make_parameters(DType dtype) {
  std::vector<TrainParameter> parameters;
  const auto add = [&](const char* name, Shape shape) {
    const auto seed = static_cast<uint32_t>(parameters.size());
    parameters.push_back({name, random_tensor(shape, seed, dtype),
                          Tensor::zeros(shape, DType::kF32), wants_decay(shape)});
  };
  add("model.embed_tokens.weight", {64, 80});
  add("model.layers.0.mlp.up_proj.weight", {96, 80});
  add("model.layers.0.input_layernorm.weight", {80});
  add("model.layers.0.self_attn.q_proj.bias", {70});
  return parameters;
}

// Gradients of step s, the same in every run.
void set_gradients(const Optimizer& optimizer, int s) {
  uint32_t seed = 1000 * static_cast<uint32_t>(s);
  for (const TrainParameter& p : optimizer.parameters()) {
    p.grad.copy_from(random_tensor(p.grad.shape(), ++seed));
  }
}

std::vector<std::byte> bytes_of(const Tensor& t) { return {t.raw(), t.raw() + t.nbytes()}; }

void expect_same(const Optimizer& a, const Optimizer& b) {
  for (size_t i = 0; i < a.parameters().size(); ++i) {
    EXPECT_EQ(bytes_of(a.parameters()[i].value), bytes_of(b.parameters()[i].value))
        << a.parameters()[i].name;
  }
  const auto x = a.state(), y = b.state();
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(bytes_of(x[i].second), bytes_of(y[i].second)) << x[i].first;
  }
}

class OptimizerResume : public testing::TestWithParam<OptimizerOptions> {};

// N + M steps are the same, bit for bit, as N, saved and read back, and M.
TEST_P(OptimizerResume, IsBitExact) {
  OptimizerOptions options = GetParam();
  options.weight_decay = 0.1;
  options.seed = 42;
  constexpr int kBefore = 3, kAfter = 4;
  Optimizer whole(make_parameters(DType::kBF16), options);
  Optimizer first(make_parameters(DType::kBF16), options);
  for (int s = 0; s < kBefore; ++s) {
    for (Optimizer* o : {&whole, &first}) {
      set_gradients(*o, s);
      o->step(1e-2, 0.5);
    }
  }
  const auto path = (std::filesystem::temp_directory_path() /
                     fmt::format("reft_optimizer_{}.safetensors", ::getpid()))
                        .string();
  write_safetensors(path, first.state());
  std::vector<TrainParameter> parameters = make_parameters(DType::kBF16);
  for (size_t i = 0; i < parameters.size(); ++i) {
    parameters[i].value.copy_from(first.parameters()[i].value);
  }
  options.seed = 0;  // comes from the checkpoint
  Optimizer second(parameters, options);
  second.load(*open_safetensors(path), parse_json(first.settings().dump(), "settings"));
  std::filesystem::remove(path);
  for (int s = kBefore; s < kBefore + kAfter; ++s) {
    for (Optimizer* o : {&whole, &second}) {
      set_gradients(*o, s);
      o->step(1e-2, 0.5);
    }
  }
  EXPECT_EQ(second.steps(), kBefore + kAfter);
  expect_same(whole, second);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, OptimizerResume,
    testing::Values(OptimizerOptions{},
                    OptimizerOptions{.master_weights = false, .state_dtype = DType::kBF16},
                    OptimizerOptions{.kind = OptimizerKind::kAdamW8bit, .master_weights = false},
                    OptimizerOptions{.kind = OptimizerKind::kMuon},
                    OptimizerOptions{.kind = OptimizerKind::kSgd}));

TEST(Optimizer, OnlyMatricesDecay) {
  for (const OptimizerKind kind :
       {OptimizerKind::kAdamW, OptimizerKind::kAdamW8bit, OptimizerKind::kMuon}) {
    Optimizer optimizer(make_parameters(DType::kF32), {.kind = kind, .weight_decay = 0.5});
    optimizer.zero_gradients();
    optimizer.step(0.1);
    const auto before = make_parameters(DType::kF32);
    for (size_t i = 0; i < before.size(); ++i) {
      const float factor = wants_decay(before[i].value.shape()) ? 0.95f : 1.0f;
      const auto was = before[i].value.to_vector<float>();
      const auto is = optimizer.parameters()[i].value.to_vector<float>();
      for (size_t j = 0; j < was.size(); ++j) ASSERT_FLOAT_EQ(is[j], factor * was[j]);
    }
  }
}

TEST(Optimizer, LearningRateScaleIsPerParameter) {
  std::vector<TrainParameter> parameters = make_parameters(DType::kF32);
  parameters[1].learning_rate_scale = 16;
  Optimizer scaled(parameters, {}), plain(make_parameters(DType::kF32), {});
  Optimizer faster(make_parameters(DType::kF32), {});
  for (Optimizer* o : {&scaled, &plain, &faster}) set_gradients(*o, 1);
  scaled.step(1e-3);
  plain.step(1e-3);
  faster.step(16e-3);
  EXPECT_EQ(bytes_of(scaled.parameters()[0].value), bytes_of(plain.parameters()[0].value));
  EXPECT_EQ(bytes_of(scaled.parameters()[1].value), bytes_of(faster.parameters()[1].value));
}

TEST(Optimizer, StateBytesPerParameter) {
  const auto bytes = [](OptimizerOptions options, DType dtype) {
    return Optimizer(make_parameters(dtype), options).state_bytes();
  };
  constexpr int64_t kMatrices = 64 * 80 + 96 * 80, kVectors = 150, kHidden = 96 * 80;
  constexpr int64_t kAll = kMatrices + kVectors;
  EXPECT_EQ(bytes({}, DType::kF32), 8 * kAll);
  EXPECT_EQ(bytes({}, DType::kBF16), 12 * kAll);
  EXPECT_EQ(bytes({.master_weights = false, .state_dtype = DType::kBF16}, DType::kBF16), 4 * kAll);
  EXPECT_EQ(bytes({.kind = OptimizerKind::kAdamW8bit}, DType::kF32),
            2 * kMatrices + 2 * 4 * (kMatrices / kAdam8Block) + 8 * kVectors);
  EXPECT_EQ(bytes({.kind = OptimizerKind::kMuon}, DType::kF32), 8 * kAll - 4 * kHidden);
  EXPECT_EQ(bytes({.kind = OptimizerKind::kSgd}, DType::kF32), 4 * kAll);
  EXPECT_EQ(bytes({.kind = OptimizerKind::kSgd, .momentum = 0}, DType::kF32), 0);
}

TEST(Optimizer, GradientNormIsOverAllParameters) {
  Optimizer optimizer(make_parameters(DType::kF32), {});
  EXPECT_EQ(optimizer.gradient_norm(), 0);
  optimizer.parameters()[0].grad.data<float>()[7] = 3;
  optimizer.parameters()[3].grad.data<float>()[69] = -4;
  EXPECT_DOUBLE_EQ(optimizer.gradient_norm(), 5);
  optimizer.zero_gradients();
  EXPECT_EQ(optimizer.gradient_norm(), 0);
}

TEST(Optimizer, ErrorsNameWhatIsWrong) {
  EXPECT_THAT(error_of([] { parse_optimizer("adam"); }), HasSubstr("--optimizer must be adamw"));
  EXPECT_THAT(error_of([] { Optimizer(make_parameters(DType::kF32), {.beta2 = 1}); }),
              HasSubstr("--adam_beta2"));
  std::vector<TrainParameter> parameters = make_parameters(DType::kF32);
  parameters[2].grad = Tensor::zeros({3}, DType::kF32);
  EXPECT_THAT(error_of([&] { Optimizer(parameters, {}); }), HasSubstr("input_layernorm"));
  EXPECT_THAT(error_of([] { Optimizer(make_parameters(DType::kF16), {}); }),
              HasSubstr("float32 or bfloat16"));

  const auto path = (std::filesystem::temp_directory_path() /
                     fmt::format("reft_optimizer_errors_{}.safetensors", ::getpid()))
                        .string();
  const Optimizer saved(make_parameters(DType::kBF16), {});
  write_safetensors(path, saved.state());
  const auto reader = open_safetensors(path);
  std::filesystem::remove(path);
  Optimizer other(make_parameters(DType::kBF16), {.kind = OptimizerKind::kSgd});
  EXPECT_THAT(error_of([&] { other.load(*reader, saved.settings()); }),
              HasSubstr("optimizer is 'adamw', --optimizer is 'sgd'"));
  Optimizer half(make_parameters(DType::kBF16), {.state_dtype = DType::kBF16});
  EXPECT_THAT(error_of([&] { half.load(*reader, saved.settings()); }),
              HasSubstr("'model.embed_tokens.weight.exp_avg' as float32"));
  Optimizer no_master(make_parameters(DType::kBF16), {.master_weights = false});
  EXPECT_THAT(error_of([&] { no_master.load(*reader, saved.settings()); }),
              HasSubstr("has 12 tensors, this run needs 8"));
}

}  // namespace
}  // namespace reft
