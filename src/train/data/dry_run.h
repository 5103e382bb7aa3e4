// What `reft train --dry_run` prints: what the model would be trained on, without training.
#pragma once

#include "train/data/loader.h"

namespace reft {

// A sequence as text, the tokens that are learnt in green, or between [[ and ]] without colour.
// Control characters but line breaks and tabs are written as \xNN. `labels` as in TrainBatch.
std::string show_tokens(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                        std::span<const int32_t> labels, bool color);

// The first `num_sequences` sequences of the first epoch (a pair that began is shown whole), each
// under a line with its data set, place and numbers of tokens, then the counts of a whole epoch.
// Throws what the loader throws.
std::string dry_run(const LoaderOptions& options, const ExampleEncoder& encoder,
                    const Tokenizer& tokenizer, int64_t num_sequences, bool color);

}  // namespace reft
