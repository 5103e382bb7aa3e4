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

  std::vector<float> samples_;
  std::unique_ptr<SpeechEngine> engine_;
};

// Tokens, times and numbers as openai/whisper 20250625 gives them for the same file and weights.
TEST_F(WhisperBase, TheFamousSentenceEqualsOpenAi) {
  using Ids = std::vector<int32_t>;
  std::vector<Segment> segments = run({});
  ASSERT_EQ(segments.size(), 2u);
  EXPECT_EQ(segments[0].text,
            " And so my fellow Americans ask not what your country can do for you,");
  EXPECT_EQ(segments[0].tokens, (Ids{50364, 400, 370, 452, 7177, 6280, 1029, 406, 437, 428, 1941,
                                     393, 360, 337, 291, 11, 50744}));
  EXPECT_EQ(segments[1].text, " ask what you can do for your country.");
  EXPECT_EQ(segments[1].tokens, (Ids{50744, 1029, 437, 291, 393, 360, 337, 428, 1941, 13, 50894}));
  EXPECT_NEAR(segments[0].end, 7.6, 1e-9);
  EXPECT_NEAR(segments[1].end, 10.6, 1e-9);
  EXPECT_EQ(segments[0].temperature, 0);
  // float16 weights on both sides, float32 sums in another order.
  EXPECT_NEAR(segments[0].avg_logprob, -0.3968, 2e-3);
  EXPECT_NEAR(segments[0].no_speech_prob, 0.09216, 2e-3);
  EXPECT_NEAR(segments[0].compression_ratio, 1.34177, 1e-4);
  segments = run({.beam_size = 5});
  ASSERT_EQ(segments.size(), 2u);
  EXPECT_EQ(segments[0].tokens, (Ids{50364, 400, 370, 11, 452, 7177, 6280, 11, 1029, 406, 437, 428,
                                     1941, 393, 360, 337, 291, 11, 50764}));
  EXPECT_EQ(segments[1].tokens, (Ids{50764, 1029, 437, 291, 393, 360, 337, 428, 1941, 13, 50914}));
  EXPECT_NEAR(segments[0].avg_logprob, -0.28663, 2e-3);
}

TEST_F(WhisperBase, WordsEqualOpenAi) {
  const std::vector<Segment> segments = run({.language = "en", .word_timestamps = true});
  const std::vector<Word> want = {
      {" And", 0.0, 0.52, 0.643},       {" so", 0.52, 0.84, 0.987},
      {" my", 0.84, 1.18, 0.796},       {" fellow", 1.18, 1.56, 0.995},
      {" Americans", 1.56, 2.1, 0.925}, {" ask", 2.1, 3.72, 0.284},
      {" not", 3.72, 4.24, 0.656},      {" what", 4.24, 5.52, 0.755},
      {" your", 5.52, 5.76, 0.982},     {" country", 5.76, 6.24, 0.999},
      {" can", 6.24, 6.62, 0.997},      {" do", 6.62, 6.82, 0.995},
      {" for", 6.82, 7.08, 0.995},      {" you,", 7.08, 7.42, 0.996},
      {" ask", 7.42, 8.46, 0.902},      {" what", 8.46, 8.76, 0.962},
      {" you", 8.76, 9.04, 0.986},      {" can", 9.04, 9.32, 0.997},
      {" do", 9.32, 9.56, 0.992},       {" for", 9.56, 9.78, 0.996},
      {" your", 9.78, 9.94, 0.996},     {" country.", 9.94, 10.36, 0.999}};
  std::vector<Word> words;
  for (const Segment& segment : segments)
    words.insert(words.end(), segment.words.begin(), segment.words.end());
  ASSERT_EQ(words.size(), want.size());
  for (size_t i = 0; i < words.size(); ++i) {
    EXPECT_EQ(words[i].word, want[i].word);
    EXPECT_NEAR(words[i].start, want[i].start, 1e-9) << words[i].word;
    EXPECT_NEAR(words[i].end, want[i].end, 1e-9) << words[i].word;
    EXPECT_NEAR(words[i].probability, want[i].probability, 5e-3) << words[i].word;
  }
}
}  // namespace
}  // namespace reft
