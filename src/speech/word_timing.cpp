#include "speech/word_timing.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace reft {
namespace {

constexpr double kFrameSeconds = 0.02;  // of the encoder
constexpr int64_t kMedianWidth = 7;
constexpr double kLongestMedian = 0.7;
constexpr std::string_view kAsciiPunctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
constexpr std::string_view kBeforeWord = "\"'“¿([{-";
constexpr std::string_view kAfterWord = "\"'.。,，!！?？:：”)]}、";
constexpr std::string_view kSentenceEnd = ".。!！?？";

bool holds(std::string_view set, std::string_view text) {
  return !text.empty() && set.find(text) != std::string_view::npos;
}
std::string_view without_spaces(std::string_view text) {
  const size_t first = text.find_first_not_of(' ');
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

// Whole characters only, as a replacement mark stands for the bytes of an incomplete one.
std::vector<WordTokens> split_characters(std::span<const int32_t> ids, const SpeechTokens& tokens) {
  constexpr std::string_view kReplacement = "\xef\xbf\xbd";
  std::vector<WordTokens> out;
  WordTokens current;
  for (const int32_t id : ids) {
    current.tokens.push_back(id);
    current.word =
        id < tokens.end_of_text ? tokens.tokenizer->decode(current.tokens) : std::string();
    if (current.word.find(kReplacement) != std::string::npos) continue;
    out.push_back(std::move(current));
    current = {};
  }
  if (!current.tokens.empty()) out.push_back(std::move(current));
  return out;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const size_t middle = values.size() / 2;
  std::sort(values.begin(), values.end());
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void move_text(Word& from, Word& to, bool in_front) {
  to.word = in_front ? from.word + to.word : to.word + from.word;
  to.tokens.insert(in_front ? to.tokens.begin() : to.tokens.end(), from.tokens.begin(),
                   from.tokens.end());
  from.word.clear();
  from.tokens.clear();
}

void join_punctuation(std::vector<Word>& words) {
  size_t following = words.size() - 1;
  for (size_t i = words.size() - 1; i-- > 0;) {
    if (words[i].word.starts_with(' ') && holds(kBeforeWord, without_spaces(words[i].word))) {
      move_text(words[i], words[following], true);
    } else {
      following = i;
    }
  }
  size_t previous = 0;
  for (size_t j = 1; j < words.size(); ++j) {
    if (!words[previous].word.ends_with(' ') && holds(kAfterWord, words[j].word)) {
      move_text(words[j], words[previous], false);
    } else {
      previous = j;
    }
  }
}

double rounded(double seconds) { return std::round(seconds * 100) / 100; }

// The first words after a pause tend to begin too early, the last ones to end too late.
void limit_ends(Segment& segment, double median_length, double last_speech) {
  std::vector<Word>& words = segment.words;
  const double longest = 2 * median_length;
  Word& first = words.front();
  const bool after_pause = first.end - last_speech > 4 * median_length;
  const bool too_long = first.end - first.start > longest ||
                        (words.size() > 1 && words[1].end - first.start > 2 * longest);
  if (after_pause && too_long) {
    if (words.size() > 1 && words[1].end - words[1].start > longest) {
      const double border = std::max(words[1].end / 2, words[1].end - longest);
      first.end = words[1].start = border;
    }
    first.start = std::max(0.0, first.end - longest);
  }
  if (segment.start < first.end && segment.start - 0.5 > first.start) {
    first.start = std::max(0.0, std::min(first.end - median_length, segment.start));
  } else {
    segment.start = first.start;
  }
  Word& last = words.back();
  if (segment.end > last.start && segment.end + 0.5 < last.end) {
    last.end = std::max(last.start + median_length, segment.end);
  } else {
    segment.end = last.end;
  }
}

}  // namespace

std::vector<std::pair<int64_t, int64_t>> warp_path(std::span<const float> cost, int64_t rows,
                                                   int64_t columns) {
  enum Move : uint8_t { kBoth, kRow, kColumn };
  const auto width = static_cast<size_t>(columns + 1);
  std::vector<float> total(static_cast<size_t>(rows + 1) * width,
                           std::numeric_limits<float>::infinity());
  std::vector<Move> moves(total.size(), kColumn);
  total[0] = 0;
  for (size_t i = 1; i <= static_cast<size_t>(rows); ++i) {
    for (size_t j = 1; j < width; ++j) {
      const float both = total[(i - 1) * width + j - 1], row = total[(i - 1) * width + j],
                  column = total[i * width + j - 1];
      Move move = kColumn;
      float best = column;
      if (both < row && both < column) {
        move = kBoth;
        best = both;
      } else if (row < both && row < column) {
        move = kRow;
        best = row;
      }
      total[i * width + j] = best + cost[(i - 1) * (width - 1) + j - 1];
      moves[i * width + j] = move;
    }
  }
  std::vector<std::pair<int64_t, int64_t>> path;
  int64_t i = rows, j = columns;
  while (i > 0 && j > 0) {
    path.emplace_back(i - 1, j - 1);
    const Move move = moves[static_cast<size_t>(i) * width + static_cast<size_t>(j)];
    if (move != kColumn) --i;
    if (move != kRow) --j;
  }
  std::reverse(path.begin(), path.end());
  return path;
}

void median_filter(std::span<float> row, int64_t width) {
  const int64_t n = static_cast<int64_t>(row.size()), half = width / 2;
  if (n <= half) return;
  const std::vector<float> in(row.begin(), row.end());
  std::vector<float> window(static_cast<size_t>(width));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < width; ++k) {
      int64_t at = i - half + k;
      if (at < 0) at = -at;
      if (at >= n) at = 2 * (n - 1) - at;
      window[static_cast<size_t>(k)] = in[static_cast<size_t>(at)];
    }
    std::nth_element(window.begin(), window.begin() + half, window.end());
    row[static_cast<size_t>(i)] = window[static_cast<size_t>(half)];
  }
}

std::vector<WordTokens> split_words(std::span<const int32_t> ids, const SpeechTokens& tokens,
                                    std::string_view language) {
  std::vector<WordTokens> pieces = split_characters(ids, tokens);
  static constexpr std::array<std::string_view, 6> kWithoutSpaces = {"zh", "ja", "th",
                                                                     "lo", "my", "yue"};
  if (std::find(kWithoutSpaces.begin(), kWithoutSpaces.end(), language) != kWithoutSpaces.end())
    return pieces;
  std::vector<WordTokens> words;
  for (WordTokens& piece : pieces) {
    const bool special = piece.tokens[0] >= tokens.end_of_text;
    const bool begins =
        piece.word.starts_with(' ') || holds(kAsciiPunctuation, without_spaces(piece.word));
    if (special || begins || words.empty()) {
      words.push_back(std::move(piece));
    } else {
      words.back().word += piece.word;
      words.back().tokens.insert(words.back().tokens.end(), piece.tokens.begin(),
                                 piece.tokens.end());
    }
  }
  return words;
}

std::vector<Word> find_words(std::vector<std::vector<float>> weights, int64_t rows, int64_t frames,
                             int64_t num_start, std::span<const int32_t> text,
                             std::span<const float> probabilities, const SpeechTokens& tokens,
                             std::string_view language) {
  if (text.empty() || frames == 0 || weights.empty()) return {};
  // Rows from no_timestamps on: each says where the token after it is heard.
  const int64_t used = rows - num_start - 1;
  check(used == static_cast<int64_t>(text.size()) + 1, "{} rows of weights for {} tokens", used,
        text.size());
  std::vector<float> cost(static_cast<size_t>(used * frames));
  for (std::vector<float>& head : weights) {
    // Standard scores over the tokens, frame by frame.
    for (int64_t f = 0; f < frames; ++f) {
      double sum = 0, squares = 0;
      for (int64_t r = 0; r < rows; ++r) sum += head[static_cast<size_t>(r * frames + f)];
      const double mean = sum / static_cast<double>(rows);
      for (int64_t r = 0; r < rows; ++r) {
        const double d = head[static_cast<size_t>(r * frames + f)] - mean;
        squares += d * d;
      }
      const double deviation = std::sqrt(squares / static_cast<double>(rows));
      for (int64_t r = 0; r < rows; ++r) {
        float& x = head[static_cast<size_t>(r * frames + f)];
        x = deviation > 0 ? static_cast<float>((x - mean) / deviation) : 0.0f;
      }
    }
    for (int64_t r = 0; r < used; ++r) {
      const std::span<float> row(&head[static_cast<size_t>((r + num_start) * frames)],
                                 static_cast<size_t>(frames));
      median_filter(row, kMedianWidth);
      for (int64_t f = 0; f < frames; ++f)
        cost[static_cast<size_t>(r * frames + f)] -=
            row[static_cast<size_t>(f)] / static_cast<float>(weights.size());
    }
  }
  // The frame in which each row is entered.
  std::vector<double> begins;
  int64_t last = -1;
  for (const auto& [row, frame] : warp_path(cost, used, frames)) {
    if (row == last) continue;
    last = row;
    begins.push_back(static_cast<double>(frame) * kFrameSeconds);
  }
  std::vector<int32_t> with_end(text.begin(), text.end());
  with_end.push_back(tokens.end_of_text);
  std::vector<WordTokens> split = split_words(with_end, tokens, language);
  if (split.size() <= 1) return {};
  std::vector<Word> words;
  size_t at = 0;
  for (size_t w = 0; w + 1 < split.size(); ++w) {
    const size_t end = at + split[w].tokens.size();
    Word word;
    word.word = std::move(split[w].word);
    word.tokens = std::move(split[w].tokens);
    word.start = begins[std::min(at, begins.size() - 1)];
    word.end = begins[std::min(end, begins.size() - 1)];
    double sum = 0;
    for (size_t i = at; i < end && i < probabilities.size(); ++i) sum += probabilities[i];
    word.probability = sum / static_cast<double>(end - at);
    words.push_back(std::move(word));
    at = end;
  }
  return words;
}

double assign_words(std::vector<Segment>& segments, std::vector<Word> words, double offset,
                    double last_speech, const SpeechTokens& tokens) {
  if (words.empty()) return last_speech;
  std::vector<double> lengths;
  for (const Word& word : words) {
    if (word.end > word.start) lengths.push_back(word.end - word.start);
  }
  const double median_length = std::min(kLongestMedian, median(std::move(lengths)));
  const double longest = 2 * median_length;
  for (size_t i = 1; i < words.size(); ++i) {
    if (words[i].end - words[i].start <= longest) continue;
    if (holds(kSentenceEnd, words[i].word)) {
      words[i].end = words[i].start + longest;
    } else if (holds(kSentenceEnd, words[i - 1].word)) {
      words[i].start = words[i].end - longest;
    }
  }
  join_punctuation(words);
  size_t next = 0;
  for (Segment& segment : segments) {
    const auto wanted =
        static_cast<size_t>(std::count_if(segment.tokens.begin(), segment.tokens.end(),
                                          [&](int32_t id) { return id < tokens.end_of_text; }));
    for (size_t taken = 0; next < words.size() && taken < wanted; ++next) {
      Word& word = words[next];
      taken += word.tokens.size();
      if (word.word.empty()) continue;
      word.start = rounded(offset + word.start);
      word.end = rounded(offset + word.end);
      segment.words.push_back(std::move(word));
    }
    if (segment.words.empty()) continue;
    limit_ends(segment, median_length, last_speech);
    last_speech = segment.end;
  }
  return last_speech;
}

}  // namespace reft
