// reft transcribe: sound files to text, subtitles or JSON.
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "media/audio.h"
#include "media/log_mel.h"
#include "speech/speech_engine.h"
#include "speech/transcript_format.h"

namespace reft {
namespace {

struct TranscribeOptions {
  static constexpr const char* kName = "transcribe";
  static constexpr const char* kSummary = "write down what is said in sound files";
  static constexpr const char* kDescription =
      "Reads WAV, FLAC, MP3, Ogg Vorbis and Ogg Opus. The model is a Whisper folder, of Hugging "
      "Face "
      "or of CTranslate2 (faster-whisper). Long recordings are written down as they are heard.";

  ModelFlags model;
  TranscriptionOptions speech;
  std::vector<std::string> files;
  std::string task = "transcribe", format = "txt", output;
  std::vector<std::string> temperatures;
  double length_penalty = -1;
  int64_t seed = 0;
  bool stats = false;

  void declare(ArgParser& parser) {
    parser.positional_rest("FILE", &files, "The sound files.");
    model.declare_model(parser, false);
    parser.group("Transcription");
    parser.add("language", &speech.language,
               "Spoken language, as a code (en) or a name (english). Default: detected.", {"l"});
    parser.add("task", &task, "transcribe writes the spoken language, translate writes English.");
    parser.choices("task", {"transcribe", "translate"});
    parser.add("output_format", &format, "txt, srt, vtt, json (text alone) or verbose_json.",
               {"response_format", "f"});
    parser.choices("output_format", {"txt", "text", "srt", "vtt", "json", "verbose_json"});
    parser.add("output", &output, "File to write to instead of standard output.", {"o"});
    parser.add("initial_prompt", &speech.prompt,
               "Text that is taken to come before: names, spelling, style.", {"prompt"});
    parser.add("word_timestamps", &speech.word_timestamps, "Also find when each word was said.");
    parser.add("condition_on_previous_text", &speech.condition_on_previous_text,
               "Give each window the text before it.");
    parser.group("Decoding");
    parser.add("beam_size", &speech.beam_size, "Beams at temperature 0; 1 is greedy.");
    parser.add("best_of", &speech.best_of, "Draws at other temperatures.");
    parser.add("patience", &speech.patience, "Finished beams to wait for, in beam sizes.");
    parser.add("length_penalty", &length_penalty,
               "Exponent of the length when beams are compared; negative: the mean decides.");
    parser.add(
        "temperature", &temperatures,
        "Temperatures that are tried in order until the result looks well; default 0 0.2 … 1.");
    parser.add("compression_ratio_threshold", &speech.compression_ratio_threshold,
               "Text that zlib shrinks by more than this repeats itself: the next temperature.");
    parser.add("logprob_threshold", &speech.logprob_threshold,
               "A mean log-probability below this is a guess: the next temperature.");
    parser.add("no_speech_threshold", &speech.no_speech_threshold,
               "A window that is silent with more than this probability, and a guess, is skipped.");
    parser.add("seed", &seed, "Seed of the draws.");
    parser.add("stats", &stats, "Print times to standard error.");
    parser.example("reft transcribe talk.flac --model openai/whisper-base", "Text:");
    parser.example("reft transcribe film.mp3 -m whisper-large-v3 -f srt -o film.srt", "Subtitles:");
  }

  int execute(const ArgParser&) {
    check(!files.empty(), "nothing to write down: give one or more sound files");
    check(output.empty() || files.size() == 1, "--output takes one file, got {}", files.size());
    check(!model.model.empty(), "which model? Pass --model with a Whisper folder or org/name");
    if (!stats) set_log_level(LogLevel::kWarning);
    model.quiet = !stats;
    speech.translate = task == "translate";
    speech.seed = static_cast<uint64_t>(seed);
    if (length_penalty >= 0) speech.length_penalty = length_penalty;
    if (!temperatures.empty()) speech.temperatures.clear();
    for (const std::string& t : temperatures) {
      try {
        speech.temperatures.push_back(std::stof(t));
      } catch (const std::exception&) {
        fail("--temperature: '{}' is not a number", t);
      }
    }
    ServingSpeechModel serving = model.load_speech();
    SpeechEngine engine(std::move(serving.loaded), serving.tokenizer, {.max_num_seqs = 1});
    for (const std::string& file : files) one(engine, file);
    return 0;
  }

  void one(SpeechEngine& engine, const std::string& file) const {
    const auto start = std::chrono::steady_clock::now();
    const MappedFile mapped(file);
    const AudioClip clip = decode_audio(mapped.bytes(), file);
    Transcript transcript;
    transcript.task = task;
    const bool live = output.empty() && (format == "txt" || format == "text");
    if (files.size() > 1 && live) std::printf("%s:\n", file.c_str());
    TranscriptionRequest request;
    request.id = file;
    request.samples = resample(clip.samples, clip.sample_rate, kSpeechRate);
    request.options = speech;
    transcript.segments =
        transcribe(engine, std::move(request), [&](const TranscriptionUpdate& update) {
          transcript.language = update.language;
          transcript.duration = update.duration;
          if (!live) return;
          for (const Segment& segment : update.segments)
            std::printf("%s\n", std::string(trim_text(segment.text)).c_str());
          std::fflush(stdout);
        });
    const bool words = speech.word_timestamps;
    if (!live) {
      std::string text = format_transcript(transcript, format == "txt" ? "text" : format,
                                           {.segments = true, .words = words});
      if (!text.ends_with('\n')) text += '\n';
      if (output.empty()) {
        std::fwrite(text.data(), 1, text.size(), stdout);
      } else {
        write_file_atomic(output, text);
      }
    }
    if (!stats) return;
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::fprintf(stderr, "%s: %.1f s of sound in %.2f s, %.1f times real time, language %s\n",
                 file.c_str(), transcript.duration, seconds, transcript.duration / seconds,
                 transcript.language.c_str());
  }
};

}  // namespace

Command transcribe_command() { return make_command<TranscribeOptions>(); }

}  // namespace reft
