#include "train/export_check.h"

#include <algorithm>
#include <cmath>

#include "models/model.h"
#include "ops/philox.h"
#include "text/tokenizer.h"

namespace reft {
namespace {

constexpr int64_t kProbeTokens = 64;  // of a sequence
constexpr int64_t kBlock = 16;

// Logits of all positions of one sequence.
Tensor logits_of(CausalLmModel& model, const std::vector<int32_t>& ids) {
  const auto count = static_cast<int64_t>(ids.size());
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  KvCache cache(model.cache_specs(), blocks, kBlock, DType::kF32, kCpuDevice);
  std::vector<int32_t> places, table;
  for (int32_t i = 0; i < count; ++i) places.push_back(i);
  for (int32_t i = 0; i < blocks; ++i) table.push_back(i);
  Batch batch;
  batch.token_ids = Tensor::from_vector(ids);
  batch.positions = Tensor::from_vector(places);
  batch.slots = Tensor::from_vector(places);
  batch.attention.query_start =
      Tensor::from_vector(std::vector<int32_t>{0, static_cast<int32_t>(count)});
  batch.attention.context_len =
      Tensor::from_vector(std::vector<int32_t>{static_cast<int32_t>(count)});
  batch.attention.block_table = Tensor::from_vector(table, {1, blocks});
  batch.attention.max_query_len = batch.attention.max_context_len = count;
  batch.logit_rows = Tensor::from_vector(places);
  return model.forward(batch, cache);
}

// Texts where there is a tokenizer; random ids beside them, which reach rows of the embedding that
// texts seldom do.
std::vector<std::vector<int32_t>> probes(const std::string& source, int64_t vocab) {
  std::vector<std::vector<int32_t>> result;
  if (has_tokenizer(source)) {
    const auto tokenizer = load_tokenizer(source);
    for (const char* text :
         {"The capital of France is Paris, and the river that runs through it is the Seine. "
          "In spring its banks are full of people who read, talk and watch the boats go by.",
          "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n"
          "    return a\n\nprint([fibonacci(i) for i in range(10)])\n",
          "Question: If a train travels 120 km in 1.5 hours, what is its average speed?\n"
          "Answer: Speed is distance over time, 120 km / 1.5 h = 80 km/h."}) {
      result.push_back(tokenizer->encode(text));
    }
  }
  std::vector<int32_t>& random = result.emplace_back();
  for (uint64_t i = 0; i < static_cast<uint64_t>(kProbeTokens); ++i) {
    random.push_back(static_cast<int32_t>(philox(7, i)[0] % static_cast<uint64_t>(vocab)));
  }
  for (std::vector<int32_t>& ids : result) {
    std::erase_if(ids, [&](int32_t id) { return id >= vocab; });  // a tokenizer of another model
    ids.resize(std::min(ids.size(), static_cast<size_t>(kProbeTokens)));
  }
  return result;
}

}  // namespace

Tensor probe_logits(const std::string& path, const std::vector<int32_t>& ids) {
  const LoadedModel loaded = load_model(path, {.dtype = "float32", .quiet = true});
  return logits_of(*loaded.model, ids);
}

double kl_divergence(const float* a, const float* b, int64_t size) {
  const auto log_sum = [&](const float* x) {
    const double top = *std::max_element(x, x + size);
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += std::exp(double{x[i]} - top);
    return top + std::log(sum);
  };
  const double of_a = log_sum(a), of_b = log_sum(b);
  double kl = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double log_p = double{a[i]} - of_a;
    kl += std::exp(log_p) * (log_p - (double{b[i]} - of_b));
  }
  return std::max(kl, 0.0);
}

ExportDifference compare_models(const std::string& source, const std::string& written, bool quiet) {
  const LoadOptions exact{.dtype = "float32", .max_model_len = kProbeTokens, .quiet = quiet};
  const LoadedModel a = load_model(source, exact), b = load_model(written, exact);
  const int64_t vocab = a.model->info().vocab_size;
  check(vocab == b.model->info().vocab_size, "the written model has {} logits instead of {}",
        b.model->info().vocab_size, vocab);
  ExportDifference difference;
  for (const std::vector<int32_t>& ids : probes(source, vocab)) {
    const Tensor of_a = logits_of(*a.model, ids), of_b = logits_of(*b.model, ids);
    for (int64_t row = 0; row < of_a.size(0); ++row) {
      const float* x = of_a.data<float>() + row * vocab;
      const float* y = of_b.data<float>() + row * vocab;
      for (int64_t i = 0; i < vocab; ++i) {
        difference.max_logit =
            std::max(difference.max_logit, std::fabs(double{x[i]} - double{y[i]}));
      }
      difference.kl += kl_divergence(x, y, vocab);
      difference.agreement +=
          std::max_element(x, x + vocab) - x == std::max_element(y, y + vocab) - y ? 1 : 0;
      ++difference.positions;
    }
  }
  const auto positions = static_cast<double>(difference.positions);
  difference.kl /= positions;
  difference.agreement /= positions;
  return difference;
}

}  // namespace reft
