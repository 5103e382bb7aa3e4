// Runs a speech model over windows and sequences: owns both caches and builds the batches. One
// thread.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "models/speech_model.h"

namespace reft {

// Tokens of one hypothesis in the decoder's cache. Released by SpeechRunner::release.
struct SpeechSequence {
  int64_t window = -1;
  int64_t length = 0;           // tokens computed
  std::vector<int32_t> blocks;  // of the decoder's own cache; full ones may be shared
};

class SpeechRunner {
 public:
  // Room for `max_windows` encoded windows and `max_sequences` sequences of full length.
  SpeechRunner(const LoadedSpeechModel& model, int64_t max_windows, int64_t max_sequences);

  // features: one window after the other, [num_frames, num_mel_bins] each.
  void encode(std::span<const int64_t> windows, const std::vector<float>& features);

  SpeechSequence start(int64_t window) const { return {.window = window}; }
  // Shares what was computed; whoever writes first gets a copy of the last block.
  SpeechSequence fork(const SpeechSequence& sequence);
  void release(SpeechSequence& sequence);

  struct Input {
    SpeechSequence* sequence;
    std::span<const int32_t> tokens;
    std::vector<int64_t> rows;  // of `tokens`, increasing, whose logits are wanted
  };
  // Appends the tokens to their sequences. Returns the wanted logits [R, V] float32 on the host, in
  // order.
  Tensor run(std::span<const Input> inputs, const SpeechModel::QueryTap& tap = {});

  // Runs `tokens` over a window and returns for each head (layer, head) its softmax weights
  // [tokens, frames] over the first `frames` of the encoder, and in `logits` those of all tokens.
  std::vector<std::vector<float>> align(int64_t window, std::span<const int32_t> tokens,
                                        std::span<const std::pair<int64_t, int64_t>> heads,
                                        int64_t frames, Tensor& logits);

  int64_t num_free_blocks() const { return static_cast<int64_t>(free_.size()); }

 private:
  int32_t allocate();
  void drop(int32_t block);
  // Makes the block that position `at` of the sequence lies in its own.
  void make_writable(SpeechSequence& sequence, int64_t at);
  int32_t window_block(int64_t window, int64_t i) const {
    return static_cast<int32_t>(window * blocks_per_window_ + i);
  }

  const SpeechModel& model_;
  Device device_;
  int64_t blocks_per_window_;
  KvCache self_, cross_;
  std::vector<int32_t> free_;
  std::vector<int32_t> uses_;  // of each block
};

}  // namespace reft
