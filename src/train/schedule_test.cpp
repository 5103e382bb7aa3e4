#include "train/schedule.h"
#include "base/error_of_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"

namespace reft {
namespace {

using testing::HasSubstr;

TEST(Schedule, MatchesTorchAndTransformersAtEveryStep) {
  const Json cases = read_json_file(REFT_SOURCE_DIR "/tests/train/schedules.json");
  ASSERT_EQ(cases.size(), 13U);
  for (const Json& c : cases) {
    ScheduleOptions o;
    o.kind = parse_schedule(json_get<std::string>(c, "type", ""));
    o.learning_rate = json_get(c, "peak", 0.0);
    o.decay_frac = json_get(c, "frac", 0.0);
    o.warmup_steps = json_get<int64_t>(c, "warmup", 0);
    o.total_steps = json_get<int64_t>(c, "total", 0);
    o.step_size = json_get<int64_t>(c, "step_size", 0);
    o.gamma = json_get(c, "gamma", 0.1);
    o.decay_steps = json_get<int64_t>(c, "decay_steps", 0);
    o.decay_shape = parse_decay_shape(json_get<std::string>(c, "decay_shape", "linear"));
    const LearningRateSchedule schedule(o);
    const Json& rates = c.at("rates");
    ASSERT_EQ(static_cast<int64_t>(rates.size()), o.total_steps);
    for (int64_t s = 0; s < o.total_steps; ++s) {
      const auto want = rates[static_cast<size_t>(s)].get<double>();
      ASSERT_NEAR(schedule.at(s), want, 1e-14 * o.learning_rate) << schedule.str() << " step " << s;
    }
  }
}

ScheduleOptions options_of(ScheduleKind kind, double frac) {
  return {.kind = kind,
          .learning_rate = 2,
          .decay_frac = frac,
          .warmup_steps = 10,
          .total_steps = 1000};
}

TEST(Schedule, DecayFractionIsTheFloorOverThePeak) {
  for (const ScheduleKind kind : {ScheduleKind::kLinear, ScheduleKind::kCosine, ScheduleKind::kStep,
                                  ScheduleKind::kWsd, ScheduleKind::kInverseSqrt}) {
    const LearningRateSchedule flat(options_of(kind, 1)), half(options_of(kind, 0.5));
    EXPECT_DOUBLE_EQ(half.at(10), 2);
    EXPECT_NEAR(half.at(1000), 1, 1e-12);
    for (int64_t s = 10; s <= 1000; ++s) {
      EXPECT_DOUBLE_EQ(flat.at(s), 2);
      EXPECT_GE(half.at(s), 1 - 1e-12);
      EXPECT_LE(half.at(s), half.at(s - (s > 10)) + 1e-12);
    }
    EXPECT_EQ(half.at(1'000'000), half.at(1000));
  }
  EXPECT_NEAR(LearningRateSchedule(options_of(ScheduleKind::kLinear, 0)).at(1000), 0, 1e-15);
  // By default three stages: 1, 0.1, 0.01.
  const LearningRateSchedule step(options_of(ScheduleKind::kStep, 0));
  EXPECT_DOUBLE_EQ(step.at(339), 2);
  EXPECT_DOUBLE_EQ(step.at(340), 0.2);
  EXPECT_DOUBLE_EQ(step.at(999), 0.02);
}

TEST(Schedule, WarmupLongerThanTheRunNeverReachesThePeak) {
  ScheduleOptions o = options_of(ScheduleKind::kCosine, 0);
  o.total_steps = 5;
  const LearningRateSchedule schedule(o);
  EXPECT_DOUBLE_EQ(schedule.at(0), 0);
  EXPECT_DOUBLE_EQ(schedule.at(5), 1);
  EXPECT_DOUBLE_EQ(schedule.at(9), 1);
}

TEST(Schedule, ErrorsNameTheFlag) {
  EXPECT_THAT(error_of([] { parse_schedule("cosin"); }), HasSubstr("--lr_scheduler_type"));
  EXPECT_THAT(error_of([] { parse_decay_shape("sqrt"); }), HasSubstr("--lr_decay_shape"));
  const auto error_with = [](auto change) {
    ScheduleOptions o = options_of(ScheduleKind::kStep, 0);
    change(o);
    return error_of([&] { LearningRateSchedule{o}; });
  };
  EXPECT_THAT(error_with([](auto& o) { o.decay_frac = 1.5; }),
              HasSubstr("--learning_rate_decay_frac must be from 0 to 1, got 1.5"));
  EXPECT_THAT(error_with([](auto& o) { o.learning_rate = -1; }), HasSubstr("--learning_rate"));
  EXPECT_THAT(error_with([](auto& o) { o.warmup_steps = -1; }), HasSubstr("--warmup_steps"));
  EXPECT_THAT(error_with([](auto& o) { o.gamma = 0; }), HasSubstr("--lr_gamma"));
  EXPECT_THAT(error_with([](auto& o) { o.total_steps = 0; }), HasSubstr("at least one step"));
}

}  // namespace
}  // namespace reft
