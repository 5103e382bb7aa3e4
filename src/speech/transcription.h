// What goes into the speech engine and what comes out. Names, defaults and meaning as
// openai/whisper's transcribe().
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace reft {

struct TranscriptionOptions {
  bool translate = false;  // to English; else the spoken language is written down
  std::string language;    // "en"; empty: detected from the first 30 s
  std::string prompt;      // text that is taken to come before
  bool timestamps = true;  // false: no timestamp tokens, one segment a window
  bool word_timestamps = false;
  bool condition_on_previous_text = true;

  // Tried in order until an attempt passes the thresholds below; the last one is kept anyway.
  std::vector<float> temperatures = {0.0f, 0.2f, 0.4f, 0.6f, 0.8f, 1.0f};
  double compression_ratio_threshold =
      2.4;                           // of the text by zlib: above it the text repeats itself
  double logprob_threshold = -1.0;   // mean of the tokens: below it the text is a guess
  double no_speech_threshold = 0.6;  // probability: above it, with a poor mean, a window is silent
  int64_t beam_size = 1;             // at temperature 0; 1: greedy
  int64_t best_of = 5;               // draws at other temperatures
  double patience = 1.0;             // finished beams to wait for, by beam_size
  std::optional<double> length_penalty;  // absent: the mean log-probability decides among beams
  double max_initial_timestamp = 1.0;    // seconds
  int64_t max_tokens = 0;                // of a window; 0: half of the decoder's context
  uint64_t seed = 0;
};

struct Word {
  std::string word;           // with the space before it
  double start = 0, end = 0;  // seconds
  double probability = 0;
  std::vector<int32_t> tokens;
};

struct Segment {
  int64_t id = 0;
  int64_t seek = 0;  // first frame of its window, of 10 ms
  double start = 0, end = 0;
  std::string text;
  std::vector<int32_t> tokens;
  float temperature = 0;
  double avg_logprob = 0;
  double compression_ratio = 0;
  double no_speech_prob = 0;
  std::vector<Word> words;
};

struct TranscriptionUpdate {
  std::vector<Segment> segments;  // new since the last update
  bool done = false;
  bool aborted = false;
  std::string error;                // not empty: it failed
  std::string language;             // code
  double language_probability = 0;  // 1 where it was given
  double duration = 0;              // seconds of sound
  int64_t num_tokens = 0;           // generated so far, all attempts
};

struct TranscriptionRequest {
  std::string id;              // unique among running requests
  std::vector<float> samples;  // 16 kHz, one channel
  TranscriptionOptions options;
  // Called from the engine's thread, in order, the last with `done`. Must not block or call back
  // into the engine (abort excepted).
  std::function<void(TranscriptionUpdate&&)> on_update;
};

}  // namespace reft
