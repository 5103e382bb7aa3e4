#include "train/train_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/file.h"
#include "base/json.h"
#include "train/flops.h"
#include "train/loss_guard.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class TrainLogFiles : public testing::Test {
 protected:
  TrainLogFiles()
      : folder_(
            (fs::temp_directory_path() / fmt::format("reft_train_log_{}", ::getpid())).string()) {
    fs::remove_all(folder_);
  }
  ~TrainLogFiles() override { fs::remove_all(folder_); }
  TrainLogOptions options(int64_t start_step = 0) const {
    return {.folder = folder_,
            .start_step = start_step,
            .total_steps = 10,
            .peak_flops = 1e12,
            .quiet = true};
  }
  std::vector<Json> entries() const {
    std::vector<Json> out;
    std::ifstream file(folder_ + "/train_log.jsonl");
    for (std::string line; std::getline(file, line);) out.push_back(parse_json(line, "line"));
    return out;
  }
  std::string folder_;
};

StepRecord record_of(int64_t step) {
  return {.step = step,
          .epoch = static_cast<double>(step) / 4,
          .loss = 4.0 / static_cast<double>(step),
          .learning_rate = 4e-5,
          .grad_norm = 0.5,
          .seq_len = 100 + step,
          .tokens = 1000,
          .flops = 4e11,
          .seconds = 0.5,
          .memory_bytes = 10'300'000'000};
}

TEST(TrainLogLine, IsTheSeedsWithMore) {
  TrainLogOptions options{.total_steps = 5000, .peak_flops = 1e12};
  StepRecord r = record_of(12);
  r.loss = 3.640625;
  EXPECT_EQ(step_line(options, r, 2),
            "[0/1] [12/5000] loss: 3.64062, lr: 0.0000400, seq_len: 112, grad_norm: 0.5, tokens/s: "
            "2.0k, MFU: 80.0%, mem: 10.3 GB, eta: 41:34");
  options.peak_flops = 0;
  r.memory_bytes = 0;
  r.learning_rate = 2.5e-7;
  r.step = 5000;
  EXPECT_EQ(step_line(options, r, 2),
            "[0/1] [5000/5000] loss: 3.64062, lr: 2.500e-07, seq_len: 112, grad_norm: 0.5, "
            "tokens/s: 2.0k");
}

TEST(TrainLogLine, NumbersAndDurations) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(999.4), "999");
  EXPECT_EQ(short_number(12'345), "12.3k");
  EXPECT_EQ(short_number(3'250'000), "3.25M");
  EXPECT_EQ(duration_text(59.4), "59");
  EXPECT_EQ(duration_text(753), "12:33");
  EXPECT_EQ(duration_text(3753), "1:02:33");
  EXPECT_EQ(duration_text(3753 + 3 * 86400), "3 d 01:02:33");
}

TEST_F(TrainLogFiles, JsonLinesHoldEveryStepAndEvaluation) {
  {
    TrainLog log(options());
    log.step(record_of(1));
    log.step(record_of(2));
    log.evaluation({.step = 2, .loss = 1.5, .tokens = 77, .seconds = 1});
  }
  const std::vector<Json> lines = entries();
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_EQ(lines[0]["step"], 1);
  EXPECT_EQ(lines[1]["loss"], 2.0);
  EXPECT_EQ(lines[1]["tokens_per_second"], 2000.0);
  EXPECT_EQ(lines[1]["mfu"], 0.8);
  EXPECT_EQ(lines[2]["eval_loss"], 1.5);
  EXPECT_THAT(read_file(folder_ + "/loss.svg"), HasSubstr("evaluation loss 1.5000"));
}

TEST_F(TrainLogFiles, SeveralStepsPerLineAreAveraged) {
  TrainLogOptions several = options();
  several.log_every = 4;
  {
    TrainLog log(several);
    for (int64_t s = 1; s <= 6; ++s) log.step(record_of(s));
  }
  const std::vector<Json> lines = entries();
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0]["step"], 4);
  EXPECT_NEAR(lines[0]["loss"], (4 + 2 + 4.0 / 3 + 1) / 4, 1e-12);
  EXPECT_EQ(lines[0]["seq_len"], 104);
  EXPECT_EQ(lines[0]["tokens"], 4000);
  EXPECT_EQ(lines[0]["tokens_per_second"], 2000.0);
  EXPECT_EQ(lines[1]["step"], 6);  // the rest at the end
}

TEST_F(TrainLogFiles, AResumedRunReplacesWhatItTrainsAgain) {
  {
    TrainLog log(options());
    for (int64_t s = 1; s <= 5; ++s) log.step(record_of(s));
    log.evaluation({.step = 5, .loss = 9});
  }
  std::ofstream(folder_ + "/train_log.jsonl", std::ios::app) << "{\"step\": 6, \"lo";  // killed
  {
    TrainLog log(options(3));
    StepRecord again = record_of(4);
    again.loss = 7;
    log.step(again);
  }
  const std::vector<Json> lines = entries();
  ASSERT_EQ(lines.size(), 4U);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(lines[i]["step"], i + 1);
  EXPECT_EQ(lines[3]["loss"], 7.0);
  EXPECT_THAT(read_file(folder_ + "/loss.svg"), Not(HasSubstr("evaluation")));
}

TEST_F(TrainLogFiles, OtherRanksWriteNothing) {
  TrainLogOptions other = options();
  other.rank = 1;
  TrainLog log(other);
  log.step(record_of(1));
  log.finish();
  EXPECT_FALSE(fs::exists(folder_));
}

TEST(Crc32c, KnownValues) {
  EXPECT_EQ(crc32c(""), 0U);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);  // RFC 3720, B.4
}

// The records of an event file, their checksums checked.
std::vector<std::string> records_of(const std::string& file) {
  const auto number = [&](size_t at, auto zero) {
    auto value = zero;
    std::memcpy(&value, file.data() + at, sizeof(value));
    return value;
  };
  const auto mask = [](uint32_t crc) { return (crc >> 15 | crc << 17) + 0xa282ead8U; };
  std::vector<std::string> out;
  for (size_t at = 0; at < file.size();) {
    const auto length = number(at, uint64_t{0});
    EXPECT_EQ(number(at + 8, uint32_t{0}), mask(crc32c(file.substr(at, 8))));
    out.push_back(file.substr(at + 12, length));
    EXPECT_EQ(number(at + 12 + length, uint32_t{0}), mask(crc32c(out.back())));
    at += 16 + length;
  }
  return out;
}

TEST_F(TrainLogFiles, TensorBoardEvents) {
  std::string path;
  {
    TensorBoardWriter writer(folder_, 7);
    path = writer.path();
    writer.add_scalar("train/loss", 300, 0.25);
  }
  EXPECT_THAT(path, HasSubstr("/events.out.tfevents."));
  const std::vector<std::string> records = records_of(read_file(path));
  ASSERT_EQ(records.size(), 3U);
  // Behind the time (9 bytes): step 0 and file_version; step 8 and SessionLog.START; the scalar.
  EXPECT_EQ(records[0].substr(9), std::string("\x10\0\x1a\x0d", 4) + "brain.Event:2");
  EXPECT_EQ(records[1].substr(9), "\x10\x08\x3a\x02\x08\x01");
  EXPECT_EQ(records[2].substr(9),
            std::string("\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss", 19) +
                std::string("\x15\0\0\x80\x3e", 5));
}

TEST(LossPlot, TicksAreRoundNumbers) {
  EXPECT_THAT(axis_ticks(0, 10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(axis_ticks(1.23, 1.31, 4),
              ElementsAre(testing::DoubleNear(1.24, 1e-9), testing::DoubleNear(1.26, 1e-9),
                          testing::DoubleNear(1.28, 1e-9), testing::DoubleNear(1.30, 1e-9)));
}

TEST(LossPlot, SmoothingKeepsAConstantAndFollowsAStep) {
  std::vector<PlotPoint> points;
  for (int64_t i = 0; i < 400; ++i) points.push_back({i, i < 200 ? 3.0 : 1.0});
  const std::vector<PlotPoint> average = smooth(points);
  ASSERT_EQ(average.size(), points.size());
  for (size_t i = 0; i < 200; ++i) EXPECT_NEAR(average[i].value, 3, 1e-12);
  EXPECT_GT(average[203].value, 1.5);
  EXPECT_NEAR(average[399].value, 1, 1e-3);
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(LossPlot, DrawsLinesAxesAndLegend) {
  LossPlot plot{.title = "a < b & c"};
  for (int64_t i = 1; i <= 100'000; ++i) {
    plot.train.push_back({i, i == 50 ? kNan : 1 + 3 / std::sqrt(static_cast<double>(i))});
  }
  EXPECT_EQ(count(loss_plot_svg(plot), "evaluation"), 0U);
  for (const int64_t step : {20'000, 40'000}) plot.eval.push_back({step, 2});
  const std::string svg = loss_plot_svg(plot);
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; c"));
  EXPECT_THAT(svg, HasSubstr(">step</text>"));
  EXPECT_THAT(svg, HasSubstr(">loss</text>"));
  EXPECT_THAT(svg, HasSubstr("evaluation loss 2.0000"));
  EXPECT_EQ(count(svg, "<circle"), 2U);
  EXPECT_EQ(count(svg, "nan"), 0U);
  EXPECT_LT(svg.size(), 100'000U);  // two lines of at most 2000 points
  EXPECT_THAT(loss_plot_svg({}), HasSubstr("</svg>"));
  EXPECT_THAT(loss_plot_svg({.train = {{1, 0.5}}}), Not(HasSubstr("nan")));
}

TEST(LossGuard, NotFiniteAbortsOrSkips) {
  LossGuard strict({});
  EXPECT_EQ(strict.check_step(1, 2.0, 1.0).action, GuardAction::kApply);
  const LossGuard::Verdict verdict = strict.check_step(2, kNan, 1.0);
  EXPECT_EQ(verdict.action, GuardAction::kAbort);
  EXPECT_THAT(verdict.reason, HasSubstr("step 2: loss nan, gradient norm 1"));
  EXPECT_EQ(strict.check_step(3, 1.0, INFINITY).action, GuardAction::kAbort);

  LossGuard lenient({.on_nan = GuardAction::kSkip, .max_skips = 2});
  EXPECT_EQ(lenient.check_step(1, 1.0, kNan).action, GuardAction::kSkip);
  EXPECT_EQ(lenient.check_step(2, 1.0, kNan).action, GuardAction::kSkip);
  EXPECT_EQ(lenient.check_step(3, 1.0, 1.0).action, GuardAction::kApply);
  for (int64_t s = 4; s < 6; ++s) {
    EXPECT_EQ(lenient.check_step(s, kNan, 1.0).action, GuardAction::kSkip);
  }
  EXPECT_EQ(lenient.check_step(6, kNan, 1.0).action, GuardAction::kAbort);
  EXPECT_EQ(lenient.skipped(), 5);
  EXPECT_THROW(LossGuard({.on_nan = GuardAction::kApply}), Error);
}

LossGuard warmed_up(GuardAction on_spike) {
  LossGuard guard({.on_spike = on_spike, .window = 16});
  for (int64_t s = 1; s <= 16; ++s) {
    // Within the first steps nothing is a spike.
    EXPECT_EQ(guard.check_step(s, s == 3 ? 100 : 2 + 0.1 * (s % 3), 1).reason, "");
  }
  for (int64_t s = 17; s <= 40; ++s) guard.check_step(s, 2 + 0.1 * (s % 3), 1);
  return guard;
}

TEST(LossGuard, SpikesAreJudgedByTheWindow) {
  LossGuard warn = warmed_up(GuardAction::kApply);
  EXPECT_EQ(warn.check_step(41, 2.3, 1).reason, "");
  const LossGuard::Verdict verdict = warn.check_step(42, 4, 1);
  EXPECT_EQ(verdict.action, GuardAction::kApply);
  EXPECT_THAT(verdict.reason, HasSubstr("step 42: loss 4.00000 (+"));

  LossGuard skip = warmed_up(GuardAction::kSkip);
  EXPECT_EQ(skip.check_step(41, 2.1, 50).action, GuardAction::kSkip);  // the norm jumps
  EXPECT_EQ(skip.check_step(42, 4, 1).action, GuardAction::kSkip);     // 50 did not join the window
  EXPECT_EQ(skip.check_step(43, 0.1, 0.1).action, GuardAction::kApply);  // a fall is no spike
  EXPECT_EQ(skip.skipped(), 2);
}

TEST(LossGuard, GoesOnFromACheckpoint) {
  LossGuard guard = warmed_up(GuardAction::kSkip);
  LossGuard resumed({.on_spike = GuardAction::kSkip, .window = 16});
  resumed.load(parse_json(guard.state().dump(), "guard"));
  EXPECT_EQ(resumed.state(), guard.state());
  EXPECT_EQ(resumed.check_step(41, 4, 1).action, GuardAction::kSkip);
}

TEST(Flops, FormulaAndPeaks) {
  // Qwen3-0.6B, 440 million parameters in the blocks and 155.6 in the head: 4.28 GFLOP per token at
  // a length of 2048.
  const FlopModel model = flop_model_of({.vocab_size = 151'936,
                                         .hidden_size = 1024,
                                         .intermediate_size = 3072,
                                         .num_layers = 28,
                                         .num_heads = 16,
                                         .num_kv_heads = 8,
                                         .head_dim = 128});
  EXPECT_EQ(model.matmul_parameters, 440'401'920 + 155'582'464);
  EXPECT_NEAR(step_flops(model, 2048, 2048.0 * 2048) / 2048, 4.28e9, 0.01e9);
  FlopModel lora = model;
  lora.trainable_parameters = 0;
  EXPECT_DOUBLE_EQ(step_flops(lora, 10, 0), 4.0 * 595'984'384 * 10);
  EXPECT_THAT(flops_formula(model), HasSubstr("4 x 5.96e+08 + 2 x 5.96e+08"));
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", DType::kBF16), 989.4e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe", DType::kBF16), 756e12);
  EXPECT_EQ(peak_flops("NVIDIA H100", DType::kF32), 0);
  EXPECT_EQ(peak_flops("Some chip", DType::kBF16), 0);
}

}  // namespace
}  // namespace reft
