#include "engine/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace reft {
namespace {

struct Outcome {
  std::string text;
  int32_t matched = -1;
  bool operator==(const Outcome&) const = default;
};

// Feeds `text` in pieces that end at the bits of `cuts`.
Outcome feed(const std::string& text, const std::vector<std::string>& stops, bool include,
             uint64_t cuts) {
  StopMatcher matcher(stops, include);
  Outcome outcome;
  std::string piece;
  for (size_t i = 0; i < text.size(); ++i) {
    piece += text[i];
    if ((cuts >> i & 1) == 0 && i + 1 < text.size()) continue;
    StopMatcher::Piece out = matcher.add(piece);
    outcome.text += out.text;
    piece.clear();
    if (out.matched >= 0) {
      outcome.matched = out.matched;
      return outcome;
    }
  }
  outcome.text += matcher.flush();
  return outcome;
}

TEST(StopMatcher, ResultDoesNotDependOnPieces) {
  struct Case {
    std::string text;
    std::vector<std::string> stops;
    Outcome cut, included;
  };
  const std::vector<Case> cases = {
      {"hello STOP x", {"STOP"}, {"hello ", 0}, {"hello STOP", 0}},
      {"aaab", {"aab"}, {"a", 0}, {"aaab", 0}},
      {"abababc!", {"ababc"}, {"ab", 0}, {"abababc", 0}},
      {"xabcdy", {"abcd", "bc"}, {"xa", 1}, {"xabc", 1}},
      {"xabc", {"c", "abc"}, {"x", 1}, {"xabc", 1}},
      {"no match STO", {"STOP"}, {"no match STO", -1}, {"no match STO", -1}},
      {"\xe2\x82\xac\xf0\x9f\x98\x80.",
       {"\xf0\x9f\x98\x80"},
       {"\xe2\x82\xac", 0},
       {"\xe2\x82\xac\xf0\x9f\x98\x80", 0}},
      {"line\n\nnext", {"\n\n", "\n"}, {"line", 1}, {"line\n", 1}},
  };
  for (const Case& c : cases) {
    for (uint64_t cuts = 0; cuts < uint64_t{1} << std::min<size_t>(c.text.size(), 12); ++cuts) {
      ASSERT_EQ(feed(c.text, c.stops, false, cuts), c.cut) << c.text << " cut at " << cuts;
      ASSERT_EQ(feed(c.text, c.stops, true, cuts), c.included) << c.text << " cut at " << cuts;
    }
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"END"}, false);
  EXPECT_EQ(matcher.add("the E").text, "the ");
  EXPECT_EQ(matcher.add("N").text, "");
  EXPECT_EQ(matcher.add("E").text, "EN");
  EXPECT_EQ(matcher.add("x").text, "Ex");
  EXPECT_EQ(matcher.add("EN").text, "");
  EXPECT_EQ(matcher.add("").text, "");
  EXPECT_EQ(matcher.flush(), "EN");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopMatcher, IgnoresMatchesWhileNotLooking) {
  StopMatcher matcher({"ab"}, false);
  EXPECT_EQ(matcher.add("xab", false).matched, -1);
  EXPECT_EQ(matcher.add("ya").matched, -1);
  const StopMatcher::Piece piece = matcher.add("b");
  EXPECT_EQ(piece.matched, 0);
  EXPECT_EQ(piece.text, "");
}

TEST(StopMatcher, AgreesWithANaiveSearch) {
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    const auto word = [&](size_t most) {
      std::string s;
      for (size_t n = 1 + random() % most; n > 0; --n) s += static_cast<char>('a' + random() % 2);
      return s;
    };
    const std::string text = word(30);
    const std::vector<std::string> stops = {word(4), word(6)};
    Outcome expected{text, -1};
    for (size_t end = 1; end <= text.size() && expected.matched < 0; ++end) {
      for (size_t s = 0; s < stops.size(); ++s) {
        if (!text.substr(0, end).ends_with(stops[s])) continue;
        if (expected.matched >= 0 &&
            stops[s].size() <= stops[static_cast<size_t>(expected.matched)].size())
          continue;
        expected = {text.substr(0, end - stops[s].size()), static_cast<int32_t>(s)};
      }
    }
    ASSERT_EQ(feed(text, stops, false, random()), expected)
        << text << " " << stops[0] << " " << stops[1];
  }
}

}  // namespace
}  // namespace reft
