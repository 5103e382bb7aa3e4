// A model in another form: weights of another type, an adapter folded in, a Hugging Face folder or
// a GGUF file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tensor/dtype.h"

namespace reft {

struct ExportOptions {
  std::string model_path;      // a folder (also a checkpoint of training) or a .gguf file
  std::string tokenizer_path;  // folder or file; empty: the model's
  std::string chat_template;   // its text; empty: the model's own
  std::string adapter;         // PEFT folder to be folded in; empty: none
  std::string output;          // folder; for GGUF it may be a file name that ends in .gguf
  // Of a Hugging Face folder; empty: the checkpoint's own, bfloat16 where that is a block format.
  std::optional<DType> dtype;
  bool gguf = false;
  DType quant = DType::kF16;  // of GGUF's matrices
  int64_t max_shard_bytes = 5'000'000'000;
  bool verify = false;  // measure how far the written model is from the one it was made of
  bool quiet = false;
};

// What `verify` found over the positions of a few texts: `source` with its adapter in float32
// against the written weights.
struct ExportDifference {
  double max_logit = 0;  // largest difference of two logits
  double kl = 0;         // mean over positions of KL(source ‖ written), in nats
  double agreement = 0;  // share of the positions with the same best token
  int64_t positions = 0;
};

struct ExportResult {
  std::string path;  // folder or .gguf file
  std::optional<ExportDifference> difference;
};

// The type of --quant: "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K". Throws Error.
DType parse_quant(const std::string& name);

// Matrices get `quant` in GGUF files, norms and biases float32. With formats of 4 bits the
// embedding and the head get Q8_0; where a row is no whole number of blocks, Q4_K gives way to
// Q5_0, and any block format to F16. Merging is done in float32 and rounded once; a head that was
// tied is written of its own where the adapter makes it another. Throws Error naming file, tensor
// or flag.
ExportResult export_model(const ExportOptions& options);

}  // namespace reft
