// The tokens of one step: all sequences end to end. Prefill, decode, mixed steps and training
// differ only in the contents: a training batch has no slots, context lengths and block table.
// Built by the engine's batch builder, the trainer's or a test; a forward pass only reads it.
#pragma once

#include "ops/attention.h"
#include "tensor/tensor.h"

namespace reft {

struct Batch {
  Tensor token_ids;  // [T] int32
  Tensor positions;  // [T] int32
  Tensor slots;      // [T] int32 KV slot of each token, block * block_size + offset
  AttentionBatch attention;
  Tensor logit_rows;  // [R] int32: tokens whose logits are wanted, increasing
  Tensor adapters;    // [T] int32 slot of each token's adapter (nn/lora_table.h), −1: none;
                      // undefined: no token has one

  int64_t num_tokens() const { return token_ids.size(0); }
  int64_t num_sequences() const { return attention.context_len.size(0); }
  int64_t num_logit_rows() const { return logit_rows.size(0); }
  Device device() const { return token_ids.device(); }
};

}  // namespace reft
