// What a training run will need, from the sizes of the model alone, said before step 0: a run that
// does not fit fails early, with what would fit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/config.h"
#include "train/optimizer.h"

namespace reft {

// What of the forward pass is kept for the backward pass: everything, or each block's input alone.
enum class Recompute { kNone, kFull };
// "none", "full". Throws Error naming --activation_checkpointing.
Recompute parse_recompute(std::string_view name);

struct MemoryModel {
  int64_t parameters = 0;            // all; of a quantised base their number, not their bytes
  int64_t trainable_parameters = 0;  // for LoRA those of the adapter
  int64_t embedding_parameters = 0;  // embedding and head, the part that Muon leaves to AdamW
  int64_t lora_parameters = 0;       // that an adapter would have
  int64_t weight_bytes = 0;          // of all weights as they lie in memory
  int64_t reference_bytes = 0;       // of a second model that preferences are measured against
  int64_t hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t vocab = 0;
  bool qk_norm = false;
};

// Of a dense decoder with gated feed-forward blocks, without biases, trained whole, its weights in
// config.dtype; an adapter would have `lora_rank` on all linears of the blocks.
MemoryModel memory_model_of(const DecoderConfig& config, bool qk_norm, int64_t lora_rank);

struct MemoryOptions {
  bool lora = false;
  DType trainable_dtype = DType::kBF16;  // of what is trained
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  bool master_weights = true;
  DType state_dtype = DType::kF32;
  int64_t batch_size = 1;     // sequences of a micro-batch
  int64_t cutoff_len = 2048;  // tokens of a sequence
  Recompute recompute = Recompute::kNone;
  int64_t activation_bytes = 2;          // per value: 2 on CUDA, 4 on the CPU
  int64_t loss_chunk_bytes = 256 << 20;  // of logits that exist at once, see loss_chunk_bytes()
};

struct MemoryRow {
  std::string name;
  int64_t bytes = 0;
  std::string how;  // "2 B x 596 M"
};

// With T = batch_size · cutoff_len tokens, b bytes per value, P trained parameters:
//   weights              as they lie in memory, and those of a reference model
//   master weights       4 P where bfloat16 parameters keep a float32 copy
//   gradients            4 P
//   optimizer states     per P: AdamW 8 or, in bfloat16, 4; 8-bit 2.03; Muon 4 and 8 for the
//                        embeddings; SGD 4
//   activations          b T layers (4 D + (2 H + 2 Hk) Dh + 3 F, with q/k norms + (H + Hk) Dh);
//                        full: b T layers D and one block as with none
//   gradients of activations   b T (2 D + 4 F)
//   logits               4 min(T, the tokens of a chunk) V: float32, their gradient over them
std::vector<MemoryRow> estimate_memory(const MemoryModel& model, const MemoryOptions& options);
int64_t total_bytes(const std::vector<MemoryRow>& rows);

struct MemoryChoice {
  std::string flags;  // "--activation_checkpointing full --batch_size 1"
  int64_t bytes = 0;
};
// Changes that make the run fit into `available` bytes, least intrusive first: recomputation, a
// smaller micro-batch, 8-bit states, both with recomputation, LoRA. Only those that fit; empty when
// none does.
std::vector<MemoryChoice> fitting_choices(const MemoryModel& model, const MemoryOptions& options,
                                          int64_t available);

// The table as it is printed, and whether it fits; when not, the choices.
std::string memory_report(const MemoryModel& model, const MemoryOptions& options,
                          int64_t available);

}  // namespace reft
