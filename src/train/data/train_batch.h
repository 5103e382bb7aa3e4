// What one micro-batch gives the model: sequences end to end, without padding, on the host. The
// fields are those of nn/batch.h: token_ids, positions and attention.query_start of a prefill of
// whole sequences.
#pragma once

#include <span>

#include "train/data/example_encoder.h"

namespace reft {

struct TrainBatch {
  // What a sequence is, beside its tokens.
  enum class Role {
    kPlain,     // stages pt and sft
    kChosen,    // dpo, rm: sequence 2i …
    kRejected,  // … and 2i + 1 belong to row i
    kTagged,    // kto: sequences 0 … n−1 are the rows, `desirable` their label …
    kMismatch,  // … and n … 2n−1 row i's prompt with the answer of row i+1 (mod n), for the KL term
  };
  struct Sequence {
    Role role = Role::kPlain;
    bool desirable = true;
    int32_t dataset = 0;  // index into LoaderOptions::datasets
    std::string place;    // of the row; of the first one for a block of stage pt
  };

  std::vector<int32_t> token_ids;       // [T]
  std::vector<int32_t> positions;       // [T] 0, 1 … within each sequence
  std::vector<int32_t> labels;          // [T] the next token of the sequence, or kIgnored
  std::vector<int32_t> sequence_start;  // [B + 1]
  std::vector<Sequence> sequences;      // [B]
  int64_t num_trained = 0;              // labels that are not kIgnored
  int64_t max_sequence_len = 0;
  // Rows (bins of rows, when packed) that the batch was made of: batch_size, or fewer at the end of
  // an epoch.
  int64_t num_rows = 0;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_sequences() const { return static_cast<int64_t>(sequences.size()); }
  void append(const TrainSequence& tokens, Sequence sequence);
  void clear() { *this = TrainBatch(); }
  Json to_json() const;
  static TrainBatch from_json(const Json& json);
};

inline constexpr int32_t kIgnored = -100;  // a label that no loss is computed for

}  // namespace reft
