#include "speech/transcript_format.h"

#include <cmath>

#include "base/check.h"
#include "base/json.h"
#include "speech/speech_tokens.h"

namespace reft {
namespace {

// "00:01:02,345"; WebVTT leaves out hours that are zero.
std::string clock_text(double seconds, bool always_hours, char point) {
  const auto ms = static_cast<int64_t>(std::llround(std::max(0.0, seconds) * 1000));
  const int64_t hours = ms / 3'600'000, minutes = ms / 60'000 % 60;
  std::string out = always_hours || hours > 0 ? fmt::format("{:02}:", hours) : "";
  return out + fmt::format("{:02}:{:02}{}{:03}", minutes, ms / 1000 % 60, point, ms % 1000);
}

struct Cue {
  double start, end;
  std::string text;
};

std::vector<Cue> cues_of(const Transcript& transcript, const Granularities& granularities) {
  std::vector<Cue> cues;
  for (const Segment& segment : transcript.segments) {
    if (granularities.words && !granularities.segments) {
      for (const Word& word : segment.words)
        cues.push_back({word.start, word.end, std::string(trim_text(word.word))});
    } else {
      cues.push_back({segment.start, segment.end, std::string(trim_text(segment.text))});
    }
  }
  // An arrow would end the cue's text.
  for (Cue& cue : cues) {
    for (size_t at; (at = cue.text.find("-->")) != std::string::npos;)
      cue.text.replace(at, 3, "->");
  }
  return cues;
}

double rounded(double x, double steps) { return std::round(x * steps) / steps; }

Json verbose(const Transcript& transcript, const Granularities& granularities) {
  Json out = {{"task", transcript.task},
              {"language", language_name(transcript.language)},
              {"duration", rounded(transcript.duration, 1000)},
              {"text", transcript_text(transcript.segments)}};
  if (granularities.words) {
    out["words"] = Json::array();
    for (const Segment& segment : transcript.segments) {
      for (const Word& word : segment.words) {
        out["words"].push_back({{"word", trim_text(word.word)},
                                {"start", rounded(word.start, 100)},
                                {"end", rounded(word.end, 100)},
                                {"probability", rounded(word.probability, 1e6)}});
      }
    }
  }
  if (granularities.segments) {
    out["segments"] = Json::array();
    for (const Segment& segment : transcript.segments) {
      out["segments"].push_back({{"id", segment.id},
                                 {"seek", segment.seek},
                                 {"start", rounded(segment.start, 100)},
                                 {"end", rounded(segment.end, 100)},
                                 {"text", segment.text},
                                 {"tokens", segment.tokens},
                                 {"temperature", rounded(segment.temperature, 1e6)},
                                 {"avg_logprob", segment.avg_logprob},
                                 {"compression_ratio", segment.compression_ratio},
                                 {"no_speech_prob", segment.no_speech_prob}});
    }
  }
  return out;
}

Json usage(const Transcript& transcript) {
  return {{"type", "duration"}, {"seconds", static_cast<int64_t>(std::ceil(transcript.duration))}};
}

}  // namespace

std::string_view trim_text(std::string_view text) {
  const size_t first = text.find_first_not_of(" \n\t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \n\t\r") - first + 1);
}

std::string transcript_text(const std::vector<Segment>& segments) {
  std::string text;
  for (const Segment& segment : segments) text += segment.text;
  return std::string(trim_text(text));
}

std::string format_transcript(const Transcript& transcript, std::string_view format,
                              const Granularities& granularities) {
  if (format == "text") return transcript_text(transcript.segments) + "\n";
  if (format == "json" || format == "verbose_json") {
    Json out = format == "json" ? Json{{"text", transcript_text(transcript.segments)}}
                                : verbose(transcript, granularities);
    out["usage"] = usage(transcript);
    return out.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  const bool srt = format == "srt";
  check(srt || format == "vtt", "'{}' is no format of transcripts", format);
  std::string out = srt ? "" : "WEBVTT\n\n";
  int number = 1;
  for (const Cue& cue : cues_of(transcript, granularities)) {
    if (srt) out += fmt::format("{}\n", number++);
    out += fmt::format("{} --> {}\n{}\n\n", clock_text(cue.start, srt, srt ? ',' : '.'),
                       clock_text(cue.end, srt, srt ? ',' : '.'), cue.text);
  }
  return out;
}

}  // namespace reft
