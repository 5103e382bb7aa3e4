// A transcript as text, subtitles or JSON, as OpenAI's endpoint and openai/whisper write them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "speech/transcription.h"

namespace reft {

struct Transcript {
  std::string task = "transcribe";
  std::string language;  // code
  double duration = 0;
  std::vector<Segment> segments;
};

// What verbose_json holds besides the text.
struct Granularities {
  bool segments = true;
  bool words = false;
};

std::string_view trim_text(std::string_view text);
// The whole text, without spaces at its ends.
std::string transcript_text(const std::vector<Segment>& segments);
// format: "text", "json", "verbose_json", "srt" or "vtt"; else Error. Subtitles follow segments, or
// words where `words` alone is wanted.
std::string format_transcript(const Transcript& transcript, std::string_view format,
                              const Granularities& granularities = {});

}  // namespace reft
