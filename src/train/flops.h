// How much arithmetic training a token takes, and how much the device could do: the two sides of
// model FLOPs utilisation (MFU).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "models/config.h"
#include "tensor/dtype.h"

namespace reft {

struct FlopModel {
  int64_t matmul_parameters = 0;     // of all matrices that tokens are multiplied with: the head,
                                     // tied or not, but no embedding lookup
  int64_t trainable_parameters = 0;  // of those, the trained ones
  int64_t layers = 0, heads = 0, head_dim = 0;
};

// Of a dense decoder with gated feed-forward blocks, trained whole.
FlopModel flop_model_of(const DecoderConfig& config);
// Elements of the seven matrices of one of its blocks.
int64_t block_matrix_elements(const DecoderConfig& config);

// One step over documents of s_1, s_2 … tokens, with P = matmul_parameters and P' =
// trainable_parameters: (4 P + 2 P') Σ s_i for the products (forward, gradients of the activations,
// gradients of the weights) and 6 · layers · heads · head_dim · Σ s_i² for causal attention, which
// counts each query's own keys only. Recomputation is not counted.
double step_flops(const FlopModel& model, double tokens, double squared_tokens);
// That formula with the model's numbers, as it is printed once.
std::string flops_formula(const FlopModel& model);

// Dense FLOP/s of a GPU's tensor cores in a dtype, by the name that the driver gives; 0: not known.
// Sources: NVIDIA's data sheets, without sparsity.
double peak_flops(std::string_view gpu_name, DType dtype);

}  // namespace reft
