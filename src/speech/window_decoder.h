// One attempt to write down one window: sampling or beam search over the logits that the engine
// computes. Pure logic: knows tokens and numbers, no model. Follows openai/whisper, decoding.py.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "speech/speech_tokens.h"
#include "speech/transcription.h"

namespace reft {

// What may come next, by the tokens sampled so far. Works on one row of logits in place.
class LogitRules {
 public:
  // `max_initial`: the latest timestamp, in steps of 0.02 s, that a window may begin with.
  LogitRules(const SpeechTokens& tokens, bool timestamps, int64_t max_initial);
  void apply(std::span<float> logits, std::span<const int32_t> sampled) const;

 private:
  void apply_timestamps(std::span<float> logits, std::span<const int32_t> sampled) const;

  const SpeechTokens& tokens_;
  bool timestamps_;
  int64_t max_initial_;
};

struct WindowResult {
  std::vector<int32_t> tokens;  // without the end
  std::string text;
  double avg_logprob = 0;
  double no_speech_prob = 0;
  double compression_ratio = 0;
  float temperature = 0;
};

// Bytes of the text over bytes of what zlib makes of it; 0 for an empty text.
double compression_ratio(const std::string& text);

class WindowDecoder {
 public:
  // `prompt`: everything before the first sampled token; `context`: tokens that the model can hold.
  WindowDecoder(const SpeechTokens& tokens, const TranscriptionOptions& options, float temperature,
                std::vector<int32_t> prompt, int64_t context, uint64_t seed);

  const std::vector<int32_t>& prompt() const { return prompt_; }
  // Row of the prompt whose logits say whether there is speech.
  int64_t start_row() const { return start_row_; }
  void set_no_speech(std::span<const float> logits_at_start);

  // A running hypothesis: its last token, to be computed next, and the hypothesis of the step
  // before that it goes on from.
  struct Next {
    int32_t token = 0;
    size_t parent = 0;
  };
  // Takes the logits [V] after each running hypothesis (of the prompt alone in the first call);
  // rows are changed. Returns those that go on; empty when the attempt has ended.
  std::vector<Next> step(std::vector<std::span<float>> logits);
  WindowResult finish() const;

 private:
  struct Hypothesis {
    std::vector<int32_t> tokens;  // sampled
    double sum = 0;               // of log-probabilities
  };
  std::vector<Next> sample(std::vector<std::span<float>>& logits);
  std::vector<Next> search(std::vector<std::span<float>>& logits);
  bool out_of_room(const Hypothesis& h) const;
  const Hypothesis& best() const;

  const SpeechTokens& tokens_;
  const TranscriptionOptions& options_;
  const float temperature_;
  const std::vector<int32_t> prompt_;
  const int64_t context_;
  int64_t max_tokens_;
  int64_t start_row_ = 0;
  LogitRules rules_;
  std::mt19937_64 random_;
  double no_speech_prob_ = 0;
  std::vector<Hypothesis> running_;
  std::vector<Hypothesis> finished_;
};

}  // namespace reft
