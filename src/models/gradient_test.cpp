// Training of every folder of tests/golden: losses and gradients against transformers and autograd
// (gradients.safetensors, see tools/make_golden.py), and what must not change them. On a GPU with
// REFT_TEST_DEVICE=cuda.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <numeric>

#include "base/json.h"
#include "models/model.h"
#include "ops/moe.h"
#include "tensor/safetensors.h"
#include "tensor/tape.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

Device test_device() {
  const char* name = std::getenv("REFT_TEST_DEVICE");
  return name != nullptr && std::string(name) == "cuda" ? Device{DeviceType::kCuda, 0} : kCpuDevice;
}

const fs::path kGolden = fs::path(REFT_SOURCE_DIR) / "tests" / "golden";

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& folder : fs::directory_iterator(kGolden)) {
    if (fs::exists(folder.path() / "gradients.safetensors"))
      names.push_back(folder.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

using Ids = std::vector<int32_t>;
using Floats = std::vector<float>;
using Gradients = std::map<std::string, Floats>;

struct Document {
  Ids ids;
  Ids labels;
};

// All documents end to end; the rows are those with a label.
struct TrainingBatch {
  Batch batch;
  Tensor labels;

  explicit TrainingBatch(const std::vector<Document>& documents) {
    Ids ids, positions, query_start = {0}, rows, targets;
    for (const Document& document : documents) {
      for (size_t i = 0; i < document.ids.size(); ++i) {
        if (document.labels[i] >= 0) {
          rows.push_back(static_cast<int32_t>(ids.size()));
          targets.push_back(document.labels[i]);
        }
        ids.push_back(document.ids[i]);
        positions.push_back(static_cast<int32_t>(i));
      }
      query_start.push_back(static_cast<int32_t>(ids.size()));
    }
    const Device device = test_device();
    batch.token_ids = Tensor::from_vector(ids).to(device);
    batch.positions = Tensor::from_vector(positions).to(device);
    batch.attention.query_start = Tensor::from_vector(query_start).to(device);
    batch.logit_rows = Tensor::from_vector(rows).to(device);
    labels = Tensor::from_vector(targets).to(device);
  }
};

using Wanted = std::function<bool(const std::string&)>;
const Wanted kAll = [](const std::string&) { return true; };

struct Result {
  Floats losses;
  Gradients gradients;
  std::vector<std::string> ready;
};

// Gradients of Σ losses · scale, from zero.
Result differentiate(CausalLmModel& model, const TrainingBatch& batch, float scale,
                     const TrainingForward& options = {}) {
  model.visit([](const std::string&, Parameter& p) {
    if (p.trainable) p.gradient.fill_zero();
  });
  Result result;
  Tape tape;
  watch_parameters(tape, model, [&](const std::string& name, Parameter& parameter) {
    result.ready.push_back(name);
    result.gradients[name] = parameter.gradient.to_vector<float>();
  });
  const Tensor losses = model.token_losses(batch.batch, batch.labels, options);
  const Floats seed(static_cast<size_t>(losses.numel()), scale);
  tape.backward(losses, Tensor::from_vector(seed).to(losses.device()));
  result.losses = losses.to_vector<float>();
  // What was ready is what there is at the end.
  model.visit([&](const std::string& name, Parameter& p) {
    if (p.trainable)
      EXPECT_EQ(result.gradients.at(name), p.gradient.to_vector<float>()) << name;
    else
      EXPECT_FALSE(p.gradient.defined()) << name;
  });
  return result;
}

struct Agreement {
  double cosine;
  double norm;  // |‖got‖ / ‖want‖ − 1|
};

Agreement agreement(const Floats& got, const Floats& want) {
  EXPECT_EQ(got.size(), want.size());
  double dot = 0, a = 0, b = 0;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    dot += double{got[i]} * want[i];
    a += double{got[i]} * got[i];
    b += double{want[i]} * want[i];
  }
  return {dot / std::sqrt(a * b), std::abs(std::sqrt(a / b) - 1)};
}

class GoldenGradients : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const Json config = read_json_file((kGolden / GetParam() / "config.json").string());
    const bool experts = config.contains("num_experts") || config.contains("num_local_experts");
    if (experts && !combine_experts_backward_kernel.has(test_device().type))
      GTEST_SKIP() << "experts are not trained on this device so far";
    golden_ = open_safetensors((kGolden / GetParam() / "gradients.safetensors").string());
    const auto serving = open_safetensors((kGolden / GetParam() / "golden.safetensors").string());
    document_ = {serving->read("input_ids").to_vector<int32_t>(),
                 golden_->read("labels").to_vector<int32_t>()};
    num_labels_ = static_cast<float>(
        std::ranges::count_if(document_.labels, [](int32_t label) { return label >= 0; }));
  }

  LoadedModel load(const std::string& dtype, const Wanted& trainable) const {
    return load_model(
        (kGolden / GetParam()).string(),
        {.device = test_device(), .dtype = dtype, .quiet = true, .trainable = trainable});
  }

  // Gemma 3 with a vision part keeps the language model's parameters further down.
  Floats want(const std::string& name) const {
    for (const std::string& key : {name, "model.language_model" + name.substr(name.find('.'))}) {
      for (const TensorEntry& entry : golden_->entries()) {
        if (entry.name == key) return golden_->read(key).to_vector<float>();
      }
    }
    ADD_FAILURE() << "no gradient for " << name;
    return {};
  }

  void expect_golden(const Gradients& gradients, double cosine, double norm) const {
    for (const auto& [name, gradient] : gradients) {
      const Agreement a = agreement(gradient, want(name));
      EXPECT_GE(a.cosine, cosine) << name;
      EXPECT_LE(a.norm, norm) << name;
    }
  }

  std::unique_ptr<CheckpointReader> golden_;
  Document document_;
  float num_labels_ = 0;
};

TEST_P(GoldenGradients, MatchTransformers) {
  const LoadedModel loaded = load("float32", kAll);
  const Result result = differentiate(*loaded.model, TrainingBatch({document_}), 1 / num_labels_);
  const Floats want_losses = golden_->read("losses").to_vector<float>();
  size_t row = 0;
  double sum = 0;
  for (size_t t = 0; t < want_losses.size(); ++t) {
    if (document_.labels[t] < 0) continue;
    EXPECT_NEAR(result.losses.at(row), want_losses[t], 1e-5 * std::max(1.0f, want_losses[t]));
    sum += result.losses.at(row++);
  }
  EXPECT_NEAR(sum / num_labels_, golden_->read("loss").to_vector<float>()[0], 1e-5);
  EXPECT_EQ(row, result.losses.size());
  expect_golden(result.gradients, 0.99999, 1e-4);
  // Every parameter of the golden was asked for.
  size_t parameters = 0;
  for (const TensorEntry& entry : golden_->entries()) {
    if (entry.name.find('.') != std::string::npos) ++parameters;
  }
  EXPECT_EQ(result.gradients.size(), parameters);
}

TEST_P(GoldenGradients, Bfloat16WithinTwiceTheReferenceError) {
  const LoadedModel loaded = load("bfloat16", kAll);
  loaded.model->visit([](const std::string& name, Parameter& p) {
    const bool matrix = p.value.dims() > 1 && !name.ends_with("bias");  // experts' are [E, N]
    EXPECT_EQ(p.value.dtype(), matrix ? DType::kBF16 : DType::kF32) << name;
    EXPECT_EQ(p.gradient.dtype(), DType::kF32) << name;
  });
  const Result result = differentiate(*loaded.model, TrainingBatch({document_}), 1 / num_labels_);
  const float reference = golden_->read("bf16_error").to_vector<float>()[0];
  for (const auto& [name, gradient] : result.gradients) {
    const Floats exact = want(name);
    double error = 0, size = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      error += std::pow(double{gradient[i]} - exact[i], 2);
      size += std::pow(exact[i], 2);
    }
    EXPECT_LE(std::sqrt(error / size), 2 * reference) << name;
  }
}

TEST_P(GoldenGradients, RecomputationChunksAndLateLossesChangeNothing) {
  const LoadedModel loaded = load("float32", kAll);
  const TrainingBatch batch({document_});
  const Result plain = differentiate(*loaded.model, batch, 0.1f);
  for (const int64_t layers : {int64_t{1}, loaded.model->info().num_layers}) {
    const Result again = differentiate(*loaded.model, batch, 0.1f, {.recompute_layers = layers});
    EXPECT_EQ(again.losses, plain.losses);
    EXPECT_EQ(again.gradients, plain.gradients);
    EXPECT_EQ(again.ready, plain.ready);
  }
  const Result late = differentiate(*loaded.model, batch, 0.1f, {.loss = {.in_backward = true}});
  EXPECT_EQ(late.losses, plain.losses);
  EXPECT_EQ(late.gradients, plain.gradients);
  // Chunks add up the head's gradient in another order.
  const Result chunked = differentiate(*loaded.model, batch, 0.1f, {.loss = {.chunk_rows = 5}});
  EXPECT_EQ(chunked.losses, plain.losses);
  for (const auto& [name, gradient] : chunked.gradients)
    EXPECT_GE(agreement(gradient, plain.gradients.at(name)).cosine, 1 - 1e-9) << name;
}

TEST_P(GoldenGradients, PackedDocumentsAreThoseAlone) {
  const LoadedModel loaded = load("float32", kAll);
  Document other = document_;
  std::ranges::reverse(other.ids);
  std::ranges::rotate(other.labels, other.labels.begin() + 5);
  other.ids.resize(20);
  other.labels.resize(20);
  const Result first = differentiate(*loaded.model, TrainingBatch({document_}), 1);
  const Result second = differentiate(*loaded.model, TrainingBatch({other}), 1);
  const Result both = differentiate(*loaded.model, TrainingBatch({document_, other}), 1);
  Floats losses = first.losses;
  losses.insert(losses.end(), second.losses.begin(), second.losses.end());
  EXPECT_EQ(both.losses, losses);
  for (const auto& [name, gradient] : both.gradients) {
    Floats sum = first.gradients.at(name);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += second.gradients.at(name)[i];
    const Agreement a = agreement(gradient, sum);
    EXPECT_GE(a.cosine, 1 - 1e-8) << name;
    EXPECT_LE(a.norm, 1e-6) << name;
  }
  // The first document, without labels, and then other words: nothing of the second one changes.
  Document silent = document_;
  std::ranges::fill(silent.labels, -100);
  const Result before = differentiate(*loaded.model, TrainingBatch({silent, other}), 1);
  for (int32_t& id : silent.ids) id = (id * 7 + 3) % 190;
  const Result after = differentiate(*loaded.model, TrainingBatch({silent, other}), 1);
  EXPECT_EQ(after.losses, before.losses);
  EXPECT_EQ(after.gradients, before.gradients);
}

TEST_P(GoldenGradients, FrozenParametersCostNothing) {
  const LoadedModel loaded = load("float32", [](const std::string& name) {
    return name.find("layers.1.mlp.") != std::string::npos || name == "model.norm.weight";
  });
  int64_t trained = 0, plain = 0;
  loaded.model->visit([&](const std::string&, Parameter& p) {
    trained += p.trainable;
    plain += p.value.defined();
  });
  EXPECT_GE(trained, 4);
  EXPECT_EQ(plain, trained);
  const Result result = differentiate(*loaded.model, TrainingBatch({document_}), 1 / num_labels_);
  EXPECT_EQ(static_cast<int64_t>(result.gradients.size()), trained);
  expect_golden(result.gradients, 0.99999, 1e-4);
  EXPECT_EQ(result.ready.front(), "model.norm.weight");  // from the top down
  const Result again = differentiate(*loaded.model, TrainingBatch({document_}), 1 / num_labels_,
                                     {.recompute_layers = loaded.model->info().num_layers});
  EXPECT_EQ(again.gradients, result.gradients);
  EXPECT_EQ(again.ready, result.ready);
}

TEST_P(GoldenGradients, UpdatesInPlaceLowerTheLoss) {
  const LoadedModel loaded = load("float32", kAll);
  const TrainingBatch batch({document_});
  const auto total = [](const Result& r) {
    return std::accumulate(r.losses.begin(), r.losses.end(), 0.0);
  };
  const double before = total(differentiate(*loaded.model, batch, 1 / num_labels_));
  loaded.model->visit([](const std::string&, Parameter& p) {
    Floats value = p.value.to_vector<float>();
    const Floats gradient = p.gradient.to_vector<float>();
    for (size_t i = 0; i < value.size(); ++i) value[i] -= 1e-3f * gradient[i];
    p.value.copy_from(Tensor::from_vector(value, p.value.shape()));
  });
  EXPECT_LT(total(differentiate(*loaded.model, batch, 1 / num_labels_)), before);
  // The checkpoint is as it was.
  const LoadedModel again = load("float32", kAll);
  EXPECT_EQ(total(differentiate(*again.model, batch, 1 / num_labels_)), before);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenGradients, testing::ValuesIn(golden_names()),
                         [](const auto& info) { return info.param; });

TEST(TrainingModel, ServesWhatItTrains) {
  // The plain weights give the logits of the packed ones, through the paged cache too.
  const std::string path = (kGolden / "qwen3").string();
  const auto golden = open_safetensors((kGolden / "qwen3" / "golden.safetensors").string());
  const Ids ids = golden->read("input_ids").to_vector<int32_t>();
  const Device device = test_device();
  const LoadedModel loaded =
      load_model(path, {.device = device, .dtype = "float32", .quiet = true, .trainable = kAll});
  const auto tokens = static_cast<int64_t>(ids.size());
  Ids positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  const Tensor index = Tensor::from_vector(positions).to(device);
  KvCache cache(loaded.model->cache_specs(), 1, tokens, DType::kF32, device);
  const Batch batch{
      .token_ids = Tensor::from_vector(ids).to(device),
      .positions = index,
      .slots = index,
      .attention = {.query_start =
                        Tensor::from_vector<int32_t>({0, static_cast<int32_t>(tokens)}).to(device),
                    .context_len =
                        Tensor::from_vector<int32_t>({static_cast<int32_t>(tokens)}).to(device),
                    .block_table = Tensor::from_vector<int32_t>({0}, {1, 1}).to(device),
                    .max_query_len = tokens,
                    .max_context_len = tokens},
      .logit_rows = index};
  const Floats got = loaded.model->forward(batch, cache).to_vector<float>();
  const Floats want = golden->read("logits").to_vector<float>();
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-4);
}

}  // namespace
}  // namespace reft
