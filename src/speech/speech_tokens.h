// The tokens that steer a Whisper-like decoder, and the languages it knows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/speech_model.h"
#include "text/tokenizer.h"

namespace reft {

// "english" for "en"; the code itself when it is not known.
std::string language_name(std::string_view code);
// "en" for "en", "EN", "english" and "English"; empty when there is no such language.
std::string language_code(std::string_view name);

struct SpeechTokens {
  // Throws Error naming the token that the tokenizer lacks.
  SpeechTokens(const LoadedSpeechModel& model, std::shared_ptr<const Tokenizer> tokenizer);

  std::shared_ptr<const Tokenizer> tokenizer;
  int32_t end_of_text = 0, start = 0, start_of_previous = 0, no_speech = 0, no_timestamps = 0;
  int32_t timestamp_begin = 0;  // <|0.00|>; each further one is 0.02 s later
  std::optional<int32_t> transcribe, translate;
  bool multilingual = false;  // else English only, without language and task tokens
  std::vector<std::pair<std::string, int32_t>> languages;  // "en" and its token
  std::vector<int32_t> suppressed;                         // never sampled
  std::vector<int32_t> suppressed_first;  // not as the first token: a blank, the end
  std::vector<std::pair<int64_t, int64_t>> alignment_heads;  // layer, head

  std::optional<int32_t> language_token(std::string_view code) const;
  // start, language and task; for an English model only start. `language` must be known.
  std::vector<int32_t> start_sequence(std::string_view language, bool translate_to_english) const;
  bool is_timestamp(int32_t id) const { return id >= timestamp_begin; }
  // Of the text tokens alone.
  std::string text(std::span<const int32_t> ids) const;
};

}  // namespace reft
