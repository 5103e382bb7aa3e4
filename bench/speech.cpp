// How much faster than real time a speech model writes down a recording:
//   bench_speech MODEL FILE [--runs 3] [--beam 1] [--threads 0] [--batch 1] [--device cpu]
// Prints the time of the sound file's decoding, of the features, of one encoder pass, and of the
// whole, best and median of the runs. With --batch N, N copies are written down at once.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "base/args.h"
#include "base/file.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "media/audio.h"
#include "media/log_mel.h"
#include "speech/speech_engine.h"
#include "speech/transcript_format.h"

namespace reft {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int run(const std::vector<std::string>& arguments) {
  std::string path, file, device = "cpu";
  int64_t runs = 3, beam = 1, threads = 0, batch = 1;
  ArgParser parser("bench_speech", "how much faster than real time speech is written down");
  parser.positional("MODEL", &path, "A Whisper folder.", true);
  parser.positional("FILE", &file, "A sound file.", true);
  parser.add("runs", &runs, "Measured runs after one that warms up.");
  parser.add("beam", &beam, "Beam size.");
  parser.add("threads", &threads, "Compute threads; 0: all.");
  parser.add("batch", &batch, "Copies of the recording at once.");
  parser.add("device", &device, "cpu or cuda.");
  if (!parser.parse(arguments)) return 0;
  set_log_level(LogLevel::kWarning);
  set_compute_threads(static_cast<int>(threads));
  SpeechEngine engine(
      load_speech_model(
          path,
          {.device = device == "cuda" ? Device{DeviceType::kCuda, 0} : kCpuDevice, .quiet = true}),
      load_tokenizer(path), {.max_num_seqs = batch});
  const MappedFile mapped(file);
  auto start = Clock::now();
  const AudioClip clip = decode_audio(mapped.bytes(), file);
  const std::vector<float> samples = resample(clip.samples, clip.sample_rate, kSpeechRate);
  const double decoding = since(start);
  const SpeechInfo& info = engine.model().model->info();
  start = Clock::now();
  log_mel(samples, info.num_mel_bins, info.num_frames * kSpeechHop);
  const double features = since(start);
  std::vector<double> times;
  std::string text;
  for (int64_t i = 0; i <= runs; ++i) {
    std::mutex mutex;
    std::condition_variable signal;
    int64_t left = batch;
    std::vector<Segment> segments;
    start = Clock::now();
    for (int64_t b = 0; b < batch; ++b) {
      TranscriptionRequest request{.id = std::to_string(b), .samples = samples};
      request.options.beam_size = beam;
      request.on_update = [&, b](TranscriptionUpdate&& update) {
        const std::lock_guard lock(mutex);
        for (Segment& s : update.segments) {
          if (b == 0) segments.push_back(std::move(s));
        }
        if (update.done && --left == 0) signal.notify_all();
      };
      engine.submit(std::move(request));
    }
    std::unique_lock lock(mutex);
    signal.wait(lock, [&] { return left == 0; });
    if (i > 0) times.push_back(since(start));
    text = transcript_text(segments);
  }
  std::sort(times.begin(), times.end());
  const SpeechStats stats = engine.stats();
  const double sound = clip.seconds() * static_cast<double>(batch);
  std::printf("%s\n", text.c_str());
  std::printf("sound          %8.2f s, %lld at once\n", clip.seconds(),
              static_cast<long long>(batch));
  std::printf("decode file    %8.1f ms\n", decoding * 1e3);
  std::printf("features       %8.1f ms\n", features * 1e3);
  std::printf("encoder        %8.1f ms a batch (mean)\n",
              stats.encode_time.sum / static_cast<double>(stats.encode_time.total) * 1e3);
  for (const auto& [name, seconds] :
       {std::pair("best", times[0]), {"median", times[times.size() / 2]}})
    std::printf("whole, %-8s%8.1f ms, %.1f times real time\n", name, seconds * 1e3,
                sound / seconds);
  return 0;
}

}  // namespace
}  // namespace reft

int main(int argc, char** argv) {
  try {
    return reft::run({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_speech: %s\n", e.what());
    return 1;
  }
}
