#include "speech/window_decoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "speech/speech_fake.h"
#include "speech/transcriber.h"
#include "speech/transcript_format.h"
#include "speech/word_timing.h"

namespace reft {
namespace {

using fake::SpeechTokenizer;
using Ids = std::vector<int32_t>;

constexpr int32_t kTime = SpeechTokenizer::kTime, kEnd = SpeechTokenizer::kEnd;

const SpeechTokens& tokens() {
  static const LoadedSpeechModel model = fake::tiny_speech_model();
  static const SpeechTokens value(model, std::make_shared<SpeechTokenizer>());
  return value;
}

// The ids that the rules leave, with one likeliest text token.
std::set<int32_t> allowed(const Ids& sampled, int32_t likely = 20, bool timestamps = true) {
  std::vector<float> logits(211, 0.0f);
  logits[static_cast<size_t>(likely)] = 10;
  LogitRules(tokens(), timestamps, 25).apply(logits, sampled);
  std::set<int32_t> ids;
  for (int32_t i = 0; i < 211; ++i) {
    if (std::isfinite(logits[static_cast<size_t>(i)])) ids.insert(i);
  }
  return ids;
}

TEST(SpeechTokensTest, ReadsTheModelsLists) {
  EXPECT_TRUE(tokens().multilingual);
  EXPECT_EQ(tokens().suppressed, (Ids{5, 6, 101, 104, 105, 106, 107, 108}));
  EXPECT_EQ(tokens().suppressed_first, (Ids{7, 2}));
  EXPECT_EQ(tokens().start_sequence("de", true), (Ids{101, 103, 104}));
  EXPECT_EQ(tokens().alignment_heads.size(), 2u);
  EXPECT_EQ(language_code("English"), "en");
  EXPECT_EQ(language_code("zh-CN"), "zh");
  EXPECT_EQ(language_code("klingon"), "");
  EXPECT_EQ(language_name("haw"), "hawaiian");
}

TEST(LogitRulesTest, TimestampsComeInPairsAndNeverDecrease) {
  // First: a timestamp of at most 25 steps.
  const std::set<int32_t> first = allowed({});
  EXPECT_EQ(*first.begin(), kTime);
  EXPECT_EQ(*first.rbegin(), kTime + 25);
  // After the opening one: text, the end is not text.
  std::set<int32_t> next = allowed({kTime + 3});
  EXPECT_TRUE(next.contains(20));
  EXPECT_FALSE(next.contains(kTime + 3));
  EXPECT_FALSE(next.contains(5));  // suppressed
  // After text: only later timestamps; the same one would be a segment without length.
  next = allowed({kTime + 3, 20});
  EXPECT_TRUE(next.contains(30) && next.contains(kTime + 4));
  EXPECT_FALSE(next.contains(kTime + 3));
  EXPECT_FALSE(next.contains(SpeechTokenizer::kNoTimestamps));
  // After a closing one: its partner or the end, no text.
  next = allowed({kTime + 3, 20, kTime + 9}, kEnd);
  EXPECT_FALSE(next.contains(20));
  EXPECT_TRUE(next.contains(kEnd) && next.contains(kTime + 9));
  EXPECT_FALSE(next.contains(kTime + 8));
  // After the pair: text again.
  next = allowed({kTime + 3, 20, kTime + 9, kTime + 9});
  EXPECT_TRUE(next.contains(20));
  EXPECT_FALSE(next.contains(kTime + 10));
  // Without timestamps none of this.
  next = allowed({}, 20, false);
  EXPECT_TRUE(next.contains(20) && next.contains(kTime));
  EXPECT_FALSE(next.contains(7));  // the blank may not come first
}

TEST(LogitRulesTest, ManyLikelyTimestampsBeatOneText) {
  std::vector<float> logits(211, -20.0f);
  logits[20] = 1;
  for (int32_t i = 0; i < 50; ++i) logits[static_cast<size_t>(kTime + 10 + i)] = 0;
  LogitRules(tokens(), true, 25).apply(logits, Ids{kTime, 30});
  EXPECT_TRUE(std::isinf(logits[20]));
  EXPECT_TRUE(std::isfinite(logits[kTime + 11]));
}

// Plays a script of logits into a decoder: at each step `likely(tokens so far)` names ids and their
// logits.
struct Player {
  WindowDecoder decoder;
  std::vector<Ids> sequences = {{}};

  template <class F>
  WindowResult play(F likely) {
    for (int i = 0; i < 50; ++i) {
      std::vector<std::vector<float>> rows;
      for (const Ids& sequence : sequences) {
        rows.emplace_back(211, -30.0f);
        for (const auto& [id, logit] : likely(sequence))
          rows.back()[static_cast<size_t>(id)] = logit;
      }
      const auto next = decoder.step({rows.begin(), rows.end()});
      std::vector<Ids> after;
      for (const auto& n : next) {
        after.push_back(sequences[n.parent]);
        after.back().push_back(n.token);
      }
      sequences = after;
      if (next.empty()) return decoder.finish();
    }
    ADD_FAILURE() << "no end";
    return {};
  }
};

using Logits = std::vector<std::pair<int32_t, float>>;

TEST(WindowDecoderTest, GreedySumsLogProbabilities) {
  TranscriptionOptions options;
  options.timestamps = false;
  Player player{WindowDecoder(tokens(), options, 0, {101, 102, 105, 109}, 40, 1)};
  const WindowResult result = player.play([](const Ids& so_far) {
    return so_far.size() < 3 ? Logits{{20, 1}, {21, 1}} : Logits{{kEnd, 5}};
  });
  EXPECT_EQ(result.tokens, (Ids{20, 20, 20}));
  EXPECT_EQ(result.text, "a20 a20 a20");
  EXPECT_NEAR(result.avg_logprob, 3 * std::log(0.5) / 4, 1e-3);
}

TEST(WindowDecoderTest, BeamsFindWhatGreedyMisses) {
  // The likeliest first token leads into a flat continuation.
  const auto likely = [](const Ids& so_far) -> Logits {
    if (so_far.empty()) return {{20, 1.0f}, {21, 0.9f}};
    if (so_far.size() == 2) return {{kEnd, 9.0f}};
    if (so_far[0] == 21) return {{30, 9.0f}};
    return {{40, 0.0f}, {41, 0.0f}, {42, 0.0f}, {43, 0.0f}};
  };
  TranscriptionOptions options;
  options.timestamps = false;
  EXPECT_EQ(Player{WindowDecoder(tokens(), options, 0, {101}, 40, 1)}.play(likely).tokens,
            (Ids{20, 40}));
  options.beam_size = 3;
  EXPECT_EQ(Player{WindowDecoder(tokens(), options, 0, {101}, 40, 1)}.play(likely).tokens,
            (Ids{21, 30}));
}

TEST(WindowDecoderTest, DrawsDependOnTheSeedAlone) {
  TranscriptionOptions options;
  options.timestamps = false;
  options.best_of = 4;
  const auto likely = [](const Ids& so_far) -> Logits {
    if (so_far.size() == 6) return {{kEnd, 9.0f}};
    return {{30, 0.0f}, {31, 0.0f}, {32, 0.0f}, {33, 0.0f}};
  };
  std::set<Ids> seen;
  for (const uint64_t seed : {1, 2, 3, 1}) {
    Player player{WindowDecoder(tokens(), options, 1.0f, {101}, 40, seed)};
    seen.insert(player.play(likely).tokens);
  }
  EXPECT_EQ(seen.size(), 3u);
}

TEST(WindowDecoderTest, StopsWhereTheContextEnds) {
  TranscriptionOptions options;
  options.timestamps = false;
  Player player{WindowDecoder(tokens(), options, 0, {101}, 12, 1)};
  EXPECT_EQ(player.play([](const Ids&) { return Logits{{20, 1}}; }).tokens.size(), 6u);
}

TEST(CompressionRatio, OfRepetition) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "again and ";
  EXPECT_GT(compression_ratio(text), 10);
  EXPECT_LT(compression_ratio("ask not what your country can do for you"), 1.2);
  EXPECT_EQ(compression_ratio(""), 0);
}

// ---- Long form

WindowResult result_of(Ids ids) {
  WindowResult result;
  result.tokens = std::move(ids);
  result.avg_logprob = -0.3;
  return result;
}

struct LongForm {
  TranscriptionOptions options;
  SpeechInfo info{
      .num_mel_bins = 2, .num_frames = 64, .encoder_positions = 32, .max_target_positions = 40};
  std::unique_ptr<Transcriber> transcriber;

  explicit LongForm(int64_t frames) {
    options.language = "en";
    transcriber = std::make_unique<Transcriber>(
        tokens(), info, options,
        LogMel{2, std::vector<float>(static_cast<size_t>((frames + 64) * 2), 1.0f)});
  }
  std::vector<Segment> take(Ids ids) {
    const WindowResult result = result_of(std::move(ids));
    EXPECT_TRUE(transcriber->accept(result));
    return transcriber->advance(transcriber->segments(result));
  }
};

TEST(TranscriberTest, MovesToTheLastWholeSegment) {
  LongForm form(150);
  EXPECT_EQ(form.transcriber->window_frames(), 64);
  // Two whole segments, then text that is cut off by the window.
  std::vector<Segment> segments =
      form.take({kTime, 10, kTime + 8, kTime + 8, 11, kTime + 20, kTime + 22, 12});
  ASSERT_EQ(segments.size(), 2u);
  EXPECT_EQ(segments[1].text, " a11");
  EXPECT_DOUBLE_EQ(segments[1].start, 0.16);
  EXPECT_DOUBLE_EQ(segments[1].end, 0.40);
  // The next window begins at 0.40 s, with what was said as its prompt.
  EXPECT_EQ(form.transcriber->prompt(),
            (Ids{107, kTime, 10, kTime + 8, kTime + 8, 11, kTime + 20, 101, 102, 105}));
  segments = form.take({kTime, 13, kTime + 5});
  ASSERT_EQ(segments.size(), 1u);
  EXPECT_EQ(segments[0].seek, 40);
  EXPECT_DOUBLE_EQ(segments[0].start, 0.40);
  EXPECT_DOUBLE_EQ(segments[0].end, 0.50);
  // A single ending timestamp: nothing follows in that window.
  EXPECT_EQ(form.transcriber->window_frames(), 46);
  form.take({kTime, 14});
  EXPECT_TRUE(form.transcriber->at_end());
}

TEST(TranscriberTest, FallsBackAndForgetsAfterHighTemperatures) {
  LongForm form(200);
  WindowResult poor = result_of({kTime, 10, kTime + 8});
  poor.avg_logprob = -1.5;
  EXPECT_FALSE(form.transcriber->accept(poor));
  EXPECT_FLOAT_EQ(form.transcriber->temperature(), 0.2f);
  WindowResult repeated = result_of({kTime, 10, kTime + 8});
  repeated.compression_ratio = 3;
  EXPECT_FALSE(form.transcriber->accept(repeated));
  // Silence is not tried again, and skipped.
  poor.no_speech_prob = 0.9;
  EXPECT_TRUE(form.transcriber->accept(poor));
  EXPECT_TRUE(form.transcriber->segments(poor).empty());
  form.transcriber->advance({});
  WindowResult hot = result_of({kTime, 10, kTime + 8, kTime + 8});
  hot.temperature = 0.8f;
  EXPECT_TRUE(form.transcriber->accept(hot));
  form.transcriber->advance(form.transcriber->segments(hot));
  EXPECT_EQ(form.transcriber->prompt(), (Ids{101, 102, 105}));
}

// ---- Words

TEST(WordTiming, PathAndMedian) {
  // Cheap cells lead down the diagonal, with a pause in the second row.
  const std::vector<float> cost = {0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0};
  EXPECT_EQ(warp_path(cost, 3, 4),
            (std::vector<std::pair<int64_t, int64_t>>{{0, 0}, {1, 1}, {1, 2}, {2, 3}}));
  std::vector<float> row = {9, 1, 2, 3, 4, 5};
  median_filter(row, 3);
  EXPECT_EQ(row, (std::vector<float>{1, 2, 2, 3, 4, 4}));
}

TEST(WordTiming, WordsAndSegments) {
  const auto words = split_words(Ids{10, 11, kEnd}, tokens(), "en");
  ASSERT_EQ(words.size(), 3u);
  EXPECT_EQ(words[1].word, " a11");
  std::vector<Segment> segments(2);
  segments[0].tokens = {kTime, 10, 11, kTime + 9};
  segments[0].end = 0.9;
  segments[1].tokens = {12};
  segments[1].start = segments[1].end = 1.0;
  std::vector<Word> found = {
      {" a10", 0.1, 0.3, 0.9, {10}}, {" a11", 0.3, 0.5, 0.8, {11}}, {" a12", 0.6, 0.8, 1, {12}}};
  EXPECT_NEAR(assign_words(segments, found, 10, 0, tokens()), 10.8, 1e-9);
  ASSERT_EQ(segments[0].words.size(), 2u);
  EXPECT_NEAR(segments[0].words[1].end, 10.5, 1e-9);
  EXPECT_NEAR(segments[1].words[0].start, 10.6, 1e-9);
}

TEST(TranscriptFormat, EveryFormat) {
  Transcript t;
  t.language = "en";
  t.duration = 3725.5;
  Segment a;
  a.text = " One --> two.";
  a.end = 1.5;
  Segment b;
  b.text = " Three.";
  b.start = 3661.04;
  b.end = 3662;
  b.words = {{" Three.", 3661.04, 3662, 0.5, {1}}};
  t.segments = {a, b};
  EXPECT_EQ(format_transcript(t, "text"), "One --> two. Three.\n");
  EXPECT_EQ(format_transcript(t, "json"),
            R"({"text":"One --> two. Three.","usage":{"type":"duration","seconds":3726}})");
  EXPECT_EQ(format_transcript(t, "srt"),
            "1\n00:00:00,000 --> 00:00:01,500\nOne -> two.\n\n"
            "2\n01:01:01,040 --> 01:01:02,000\nThree.\n\n");
  EXPECT_EQ(format_transcript(t, "vtt", {.segments = false, .words = true}),
            "WEBVTT\n\n01:01:01.040 --> 01:01:02.000\nThree.\n\n");
  const Json verbose = parse_json(
      format_transcript(t, "verbose_json", {.segments = true, .words = true}), "verbose");
  EXPECT_EQ(verbose["language"], "english");
  EXPECT_EQ(verbose["segments"][1]["start"], 3661.04);
  EXPECT_EQ(verbose["words"][0]["word"], "Three.");
  EXPECT_THROW(format_transcript(t, "docx"), Error);
}

}  // namespace
}  // namespace reft
