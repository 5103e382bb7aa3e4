#include "speech/speech_engine.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "base/file.h"
#include "engine/request.h"
#include "media/audio.h"
#include "media/log_mel.h"
#include "speech/speech_fake.h"
#include "speech/transcript_format.h"

namespace reft {
namespace {

std::unique_ptr<SpeechEngine> tiny_engine(int64_t max_num_seqs = 2) {
  return std::make_unique<SpeechEngine>(fake::tiny_speech_model(),
                                        std::make_shared<fake::SpeechTokenizer>(),
                                        SpeechEngineOptions{.max_num_seqs = max_num_seqs});
}

TranscriptionRequest request_of(std::string id, double seconds = 2) {
  TranscriptionRequest request;
  request.id = std::move(id);
  request.samples = fake::noise(seconds, 3);
  request.options.language = "en";
  request.options.temperatures = {0};
  return request;
}

std::string text_of(SpeechEngine& engine, TranscriptionRequest request) {
  return format_transcript({.segments = transcribe(engine, std::move(request))}, "verbose_json",
                           {.segments = true, .words = true});
}

std::string refused(SpeechEngine& engine, TranscriptionRequest request) {
  try {
    engine.submit(std::move(request));
  } catch (const RequestError& e) {
    return e.param();
  }
  return "accepted";
}

TEST(SpeechEngineTest, BatchedIsAlone) {
  // The same recordings one at a time, and all at once.
  std::vector<TranscriptionRequest> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(request_of("r" + std::to_string(i), 0.5 + 0.4 * i));
    requests.back().samples = fake::noise(0.5 + 0.4 * i, static_cast<uint32_t>(i + 1));
    requests.back().options.beam_size = i % 3 == 1 ? 3 : 1;
    requests.back().options.word_timestamps = i % 2 == 1;
    if (i == 4) requests.back().options.temperatures = {0.7f};
  }
  std::vector<std::string> alone;
  {
    auto engine = tiny_engine(1);
    for (const auto& request : requests) alone.push_back(text_of(*engine, request));
  }
  auto engine = tiny_engine(4);
  std::mutex mutex;
  std::condition_variable signal;
  std::vector<std::vector<Segment>> found(requests.size());
  size_t left = requests.size();
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].on_update = [&, i](TranscriptionUpdate&& update) {
      const std::lock_guard lock(mutex);
      EXPECT_EQ(update.error, "");
      for (Segment& s : update.segments) found[i].push_back(std::move(s));
      if (update.done && --left == 0) signal.notify_all();
    };
    engine->submit(requests[i]);
  }
  std::unique_lock lock(mutex);
  ASSERT_TRUE(signal.wait_for(lock, std::chrono::seconds(60), [&] { return left == 0; }));
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(format_transcript({.segments = found[i]}, "verbose_json",
                                {.segments = true, .words = true}),
              alone[i])
        << i;
  }
  EXPECT_EQ(engine->stats().finished, 6u);
  EXPECT_EQ(engine->stats().num_requests_running, 0);
}

TEST(SpeechEngineTest, DetectsALanguage) {
  auto engine = tiny_engine();
  TranscriptionRequest request = request_of("a");
  request.options.language = "";
  std::string language;
  double probability = 0;
  transcribe(*engine, request, [&](const TranscriptionUpdate& update) {
    language = update.language;
    probability = update.language_probability;
  });
  EXPECT_TRUE(language == "en" || language == "de");
  EXPECT_GE(probability, 0.5);
}

TEST(SpeechEngineTest, RefusesWithTheOptionsName) {
  auto engine = tiny_engine();
  const auto with = [&](auto change) {
    TranscriptionRequest request = request_of("x");
    change(request);
    return refused(*engine, std::move(request));
  };
  EXPECT_EQ(with([](auto& r) { r.options.language = "klingon"; }), "language");
  EXPECT_EQ(with([](auto& r) { r.options.language = "fr"; }),
            "language");  // not in this vocabulary
  EXPECT_EQ(with([](auto& r) { r.options.beam_size = 17; }), "beam_size");
  EXPECT_EQ(with([](auto& r) { r.options.best_of = 0; }), "best_of");
  EXPECT_EQ(with([](auto& r) { r.options.temperatures = {-1}; }), "temperature");
  EXPECT_EQ(with([](auto& r) { r.samples.clear(); }), "file");
  EXPECT_EQ(with([](auto& r) { r.options.language = "German"; }), "accepted");
  engine->drain(60'000);
  EXPECT_EQ(with([](auto&) {}), "");  // shutting down
}

TEST(SpeechEngineTest, AbortEndsARequestAndFreesItsPlace) {
  auto engine = tiny_engine(1);
  std::mutex mutex;
  std::condition_variable signal;
  int aborted = 0, done = 0;
  for (int i = 0; i < 4; ++i) {
    TranscriptionRequest request = request_of("r" + std::to_string(i), 60);
    request.on_update = [&](TranscriptionUpdate&& update) {
      if (!update.done) return;
      const std::lock_guard lock(mutex);
      ++done;
      aborted += update.aborted ? 1 : 0;
      signal.notify_all();
    };
    engine->submit(std::move(request));
  }
  for (int i = 0; i < 4; ++i) engine->abort("r" + std::to_string(i));
  engine->abort("unknown");
  std::unique_lock lock(mutex);
  ASSERT_TRUE(signal.wait_for(lock, std::chrono::seconds(60), [&] { return done == 4; }));
  EXPECT_EQ(aborted, 4);
  lock.unlock();
  EXPECT_NE(text_of(*engine, request_of("again", 1)), "");
}

// The real model, where tools/get_whisper_model.sh put it.
class WhisperBase : public testing::Test {
 protected:
  void SetUp() override {
    const char* home = std::getenv("HOME");
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const std::string folder =
        (cache != nullptr ? std::string(cache) : std::string(home ? home : "") + "/.cache") +
        "/reft/models/whisper-base";
    const std::string clip = std::string(REFT_SOURCE_DIR) + "/tests/speech/jfk.flac";
    if (!std::filesystem::exists(folder + "/model.bin"))
      GTEST_SKIP() << folder << " is missing: run tools/get_whisper_model.sh";
    const std::string file = read_file(clip);
    const AudioClip audio =
        decode_audio({reinterpret_cast<const std::byte*>(file.data()), file.size()}, clip);
    samples_ = resample(audio.samples, audio.sample_rate, kSpeechRate);
    engine_ = std::make_unique<SpeechEngine>(load_speech_model(folder, {.quiet = true}),
                                             load_tokenizer(folder), SpeechEngineOptions{});
  }
  std::vector<Segment> run(const TranscriptionOptions& options) {
    return transcribe(*engine_, {.id = "jfk", .samples = samples_, .options = options});
  }

  static constexpr const char* kSentence =
      "And so my fellow Americans, ask not what your country can do for you, ask what you can do "
      "for your country.";
  std::vector<float> samples_;
  std::unique_ptr<SpeechEngine> engine_;
};

TEST_F(WhisperBase, TheFamousSentence) {
  EXPECT_EQ(transcript_text(run({})), kSentence);
  EXPECT_EQ(transcript_text(run({.beam_size = 5})), kSentence);
}

TEST_F(WhisperBase, Words) {
  const std::vector<Segment> segments = run({.language = "en", .word_timestamps = true});
  ASSERT_EQ(segments.size(), 1u);
  const std::vector<Word>& words = segments[0].words;
  ASSERT_EQ(words.size(), 22u);
  EXPECT_EQ(words[0].word, " And");
  EXPECT_EQ(words[4].word, " Americans,");
  EXPECT_EQ(words[21].word, " country.");
  for (size_t i = 0; i < words.size(); ++i) {
    EXPECT_LE(words[i].start, words[i].end) << i;
    if (i > 0) EXPECT_GE(words[i].start, words[i - 1].end - 1e-9) << i;
  }
}

}  // namespace
}  // namespace reft
