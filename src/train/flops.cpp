#include "train/flops.h"

#include "base/check.h"

namespace reft {

int64_t block_matrix_elements(const DecoderConfig& c) {
  const int64_t attention = 2 * (c.num_heads + c.num_kv_heads) * c.head_dim;
  return c.hidden_size * (attention + 3 * c.intermediate_size);
}

FlopModel flop_model_of(const DecoderConfig& c) {
  const int64_t matrices = c.num_layers * block_matrix_elements(c) + c.vocab_size * c.hidden_size;
  return {.matmul_parameters = matrices,
          .trainable_parameters = matrices,
          .layers = c.num_layers,
          .heads = c.num_heads,
          .head_dim = c.head_dim};
}

double step_flops(const FlopModel& model, double tokens, double squared_tokens) {
  const double products = 4.0 * static_cast<double>(model.matmul_parameters) +
                          2.0 * static_cast<double>(model.trainable_parameters);
  const double attention = 6.0 * static_cast<double>(model.layers * model.heads * model.head_dim);
  return products * tokens + attention * squared_tokens;
}

std::string flops_formula(const FlopModel& model) {
  return fmt::format(
      "(4 x {:.4g} + 2 x {:.4g}) x tokens + 6 x {} x {} x {} x sum of squared lengths (causal; "
      "recomputation not counted)",
      static_cast<double>(model.matmul_parameters), static_cast<double>(model.trainable_parameters),
      model.layers, model.heads, model.head_dim);
}

double peak_flops(std::string_view gpu_name, DType dtype) {
  struct Known {
    const char* name;
    double tera;  // bfloat16 with float32 sums
  };
  // Longer names before those they contain.
  static constexpr Known kKnown[] = {{"GH200", 989.4},    {"H200 NVL", 835},   {"H200", 989.4},
                                     {"H100 NVL", 835},   {"H100 PCIe", 756},  {"H100", 989.4},
                                     {"B200", 2250},      {"A100", 312},       {"L40S", 362},
                                     {"RTX 5090", 209.5}, {"RTX 4090", 165.2}, {"RTX 3090", 71.2}};
  if (dtype != DType::kBF16 && dtype != DType::kF16) return 0;
  for (const Known& known : kKnown) {
    if (gpu_name.find(known.name) != std::string_view::npos) return known.tera * 1e12;
  }
  return 0;
}

}  // namespace reft
