// When each word was said, from the weights of the decoder's cross attention. Follows
// openai/whisper, timing.py. Source of the path: Sakoe and Chiba, "Dynamic programming algorithm
// optimization for spoken word recognition" (1978).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "speech/speech_tokens.h"
#include "speech/transcription.h"

namespace reft {

// The cheapest monotonic path through cost [rows, columns], from the first to the last cell: pairs
// of row and column.
std::vector<std::pair<int64_t, int64_t>> warp_path(std::span<const float> cost, int64_t rows,
                                                   int64_t columns);
// In place, along a row; ends are mirrored. `width` odd; rows shorter than half of it stay.
void median_filter(std::span<float> row, int64_t width);

// Texts and the numbers of tokens of the words that `ids` spell; for languages without spaces,
// of the characters.
struct WordTokens {
  std::string word;
  std::vector<int32_t> tokens;
};
std::vector<WordTokens> split_words(std::span<const int32_t> ids, const SpeechTokens& tokens,
                                    std::string_view language);

// weights: for each alignment head [rows, frames] softmax weights of the tokens start sequence,
// no_timestamps, text, end; start and end of each word in seconds from the window's begin.
// probabilities: of each text token.
std::vector<Word> find_words(std::vector<std::vector<float>> weights, int64_t rows, int64_t frames,
                             int64_t num_start, std::span<const int32_t> text,
                             std::span<const float> probabilities, const SpeechTokens& tokens,
                             std::string_view language);

// Joins punctuation to the words, limits words of unlikely length, hands the words to the segments
// whose text they spell and moves the segments' ends to them. Returns the end of the last segment
// with words.
double assign_words(std::vector<Segment>& segments, std::vector<Word> words, double offset,
                    double last_speech, const SpeechTokens& tokens);

}  // namespace reft
