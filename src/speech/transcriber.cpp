#include "speech/transcriber.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/check.h"
#include "speech/word_timing.h"

namespace reft {
namespace {

constexpr double kFrameSeconds = 0.01;
constexpr double kTimestampSeconds = 0.02;
constexpr int64_t kFramesPerTimestamp = 2;

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \n\t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \n\t\r") - first + 1);
}

}  // namespace

Transcriber::Transcriber(const SpeechTokens& tokens, const SpeechInfo& info,
                         const TranscriptionOptions& options, LogMel mel)
    : tokens_(tokens),
      info_(info),
      options_(options),
      mel_(std::move(mel)),
      content_frames_(mel_.num_frames() - info.num_frames),
      language_(options.language) {
  const std::string_view prompt = trimmed(options_.prompt);
  if (!prompt.empty())
    all_tokens_ = tokens_.tokenizer->encode(" " + std::string(prompt),
                                            {.add_special_tokens = false, .parse_special = false});
}

int64_t Transcriber::window_frames() const {
  return std::min(info_.num_frames, content_frames_ - seek_);
}

void Transcriber::window(float* features) const {
  const int64_t width = info_.num_mel_bins, frames = window_frames();
  std::copy_n(mel_.values.data() + seek_ * width, frames * width, features);
  std::fill_n(features + frames * width, (info_.num_frames - frames) * width, 0.0f);
}

std::vector<int32_t> Transcriber::prompt() const {
  std::vector<int32_t> out;
  if (all_tokens_.size() > prompt_begin_) {
    out.push_back(tokens_.start_of_previous);
    const auto most = static_cast<size_t>(info_.max_target_positions / 2 - 1);
    const size_t there = all_tokens_.size() - prompt_begin_;
    out.insert(out.end(), all_tokens_.end() - static_cast<int64_t>(std::min(most, there)),
               all_tokens_.end());
  }
  const std::vector<int32_t> start = tokens_.start_sequence(language_, options_.translate);
  out.insert(out.end(), start.begin(), start.end());
  if (!options_.timestamps) out.push_back(tokens_.no_timestamps);
  return out;
}

bool Transcriber::accept(const WindowResult& result) {
  const bool poor = result.avg_logprob < options_.logprob_threshold;
  bool again = poor || result.compression_ratio > options_.compression_ratio_threshold;
  if (result.no_speech_prob > options_.no_speech_threshold && poor) again = false;  // silence
  accepted_temperature_ = result.temperature;
  if (again && attempt_ + 1 < options_.temperatures.size()) {
    ++attempt_;
    return false;
  }
  attempt_ = 0;
  return true;
}

Segment Transcriber::make_segment(const WindowResult& result, double start, double end,
                                  std::span<const int32_t> tokens) const {
  Segment segment;
  segment.seek = seek_;
  segment.start = start;
  segment.end = end;
  segment.text = tokens_.text(tokens);
  segment.tokens.assign(tokens.begin(), tokens.end());
  segment.temperature = result.temperature;
  segment.avg_logprob = result.avg_logprob;
  segment.compression_ratio = result.compression_ratio;
  segment.no_speech_prob = result.no_speech_prob;
  return segment;
}

std::vector<Segment> Transcriber::segments(const WindowResult& result) {
  const int64_t frames = window_frames();
  next_seek_ = seek_ + frames;
  single_timestamp_ending_ = false;
  if (result.no_speech_prob > options_.no_speech_threshold &&
      result.avg_logprob <= options_.logprob_threshold) {
    return {};
  }
  const double offset = static_cast<double>(seek_) * kFrameSeconds;
  const std::span<const int32_t> tokens = result.tokens;
  const size_t n = tokens.size();
  const auto is_time = [&](size_t i) { return tokens_.is_timestamp(tokens[i]); };
  const auto steps = [&](size_t i) { return tokens[i] - tokens_.timestamp_begin; };
  single_timestamp_ending_ = n >= 2 && is_time(n - 1) && !is_time(n - 2);
  std::vector<size_t> cuts;  // between the end of a segment and the start of the next
  for (size_t i = 1; i < n; ++i) {
    if (is_time(i - 1) && is_time(i)) cuts.push_back(i);
  }
  std::vector<Segment> out;
  if (cuts.empty()) {
    double duration = static_cast<double>(frames) * kFrameSeconds;
    for (size_t i = n; i-- > 0;) {
      if (!is_time(i)) continue;
      if (steps(i) > 0) duration = steps(i) * kTimestampSeconds;
      break;
    }
    out.push_back(make_segment(result, offset, offset + duration, tokens));
    return out;
  }
  if (single_timestamp_ending_) cuts.push_back(n);
  size_t begin = 0;
  for (const size_t end : cuts) {
    out.push_back(make_segment(result, offset + steps(begin) * kTimestampSeconds,
                               offset + steps(end - 1) * kTimestampSeconds,
                               tokens.subspan(begin, end - begin)));
    begin = end;
  }
  // What comes after the last whole segment is heard again in the next window.
  if (!single_timestamp_ending_) next_seek_ = seek_ + steps(begin - 1) * kFramesPerTimestamp;
  return out;
}

void Transcriber::place_words(std::vector<Segment>& segments, std::vector<Word> words) {
  last_speech_ = assign_words(segments, std::move(words),
                              static_cast<double>(seek_) * kFrameSeconds, last_speech_, tokens_);
  double end = 0;
  for (const Segment& segment : segments) {
    if (!segment.words.empty()) end = segment.words.back().end;
  }
  if (!single_timestamp_ending_ && end > static_cast<double>(seek_) * kFrameSeconds)
    next_seek_ = std::llround(end / kFrameSeconds);
}

std::vector<Segment> Transcriber::advance(std::vector<Segment> segments) {
  for (Segment& segment : segments) {
    segment.id = num_segments_++;
    if (segment.start == segment.end || trimmed(segment.text).empty()) {
      segment.text.clear();
      segment.tokens.clear();
      segment.words.clear();
    }
    all_tokens_.insert(all_tokens_.end(), segment.tokens.begin(), segment.tokens.end());
  }
  if (!options_.condition_on_previous_text || accepted_temperature_ > 0.5f)
    prompt_begin_ = all_tokens_.size();
  // A window that ends where it began would come again for ever.
  seek_ = next_seek_ > seek_ ? next_seek_ : seek_ + window_frames();
  return segments;
}

}  // namespace reft
