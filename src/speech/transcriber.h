// Long form: from window to window through one recording. Pure logic, no model. Follows
// openai/whisper, transcribe.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "media/log_mel.h"
#include "speech/speech_tokens.h"
#include "speech/transcription.h"
#include "speech/window_decoder.h"

namespace reft {

class Transcriber {
 public:
  // `mel` has a window's worth of silence after the sound.
  Transcriber(const SpeechTokens& tokens, const SpeechInfo& info,
              const TranscriptionOptions& options, LogMel mel);

  bool at_end() const { return seek_ >= content_frames_; }
  // Features [num_frames, num_mels] from the current place on, what lies beyond the sound zero.
  void window(float* features) const;
  // Frames of sound in the current window.
  int64_t window_frames() const;
  const std::string& language() const { return language_; }
  void set_language(std::string code) { language_ = std::move(code); }

  // The current attempt. A new window begins with the first temperature.
  float temperature() const { return options_.temperatures[attempt_]; }
  std::vector<int32_t> prompt() const;
  // Whether the result passes; else the next temperature is to be tried.
  bool accept(const WindowResult& result);

  // Cuts an accepted result into segments and moves on (see `advance`). Empty for silence.
  std::vector<Segment> segments(const WindowResult& result);
  // Only with word timestamps, between `segments` and `advance`: what alignment found.
  void place_words(std::vector<Segment>& segments, std::vector<Word> words);
  // Takes the segments for good and moves to the next window.
  std::vector<Segment> advance(std::vector<Segment> segments);

 private:
  Segment make_segment(const WindowResult& result, double start, double end,
                       std::span<const int32_t> tokens) const;

  const SpeechTokens& tokens_;
  const SpeechInfo& info_;
  const TranscriptionOptions& options_;
  LogMel mel_;
  int64_t content_frames_;
  std::string language_;
  int64_t seek_ = 0;
  int64_t next_seek_ = 0;
  bool single_timestamp_ending_ = false;
  size_t attempt_ = 0;
  float accepted_temperature_ = 0;
  double last_speech_ = 0;  // end of the last segment with words
  std::vector<int32_t> all_tokens_;
  size_t prompt_begin_ = 0;  // of all_tokens_: earlier ones no longer condition
  int64_t num_segments_ = 0;
};

}  // namespace reft
