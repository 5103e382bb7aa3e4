#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "base/check.h"

namespace reft {
namespace {

constexpr std::pair<const char*, ScheduleKind> kKinds[] = {
    {"constant", ScheduleKind::kConstant}, {"linear", ScheduleKind::kLinear},
    {"cosine", ScheduleKind::kCosine},     {"step", ScheduleKind::kStep},
    {"wsd", ScheduleKind::kWsd},           {"inverse_sqrt", ScheduleKind::kInverseSqrt}};

double cosine_fall(double progress) { return 0.5 * (1 + std::cos(std::numbers::pi * progress)); }

double fall(DecayShape shape, double progress) {
  switch (shape) {
    case DecayShape::kLinear:
      return 1 - progress;
    case DecayShape::kCosine:
      return cosine_fall(progress);
    case DecayShape::kOneMinusSqrt:
      return 1 - std::sqrt(progress);
  }
  return 0;
}

}  // namespace

ScheduleKind parse_schedule(std::string_view name) {
  for (const auto& [known, kind] : kKinds) {
    if (name == known) return kind;
  }
  fail("--lr_scheduler_type must be constant, linear, cosine, step, wsd or inverse_sqrt, not '{}'",
       name);
}

DecayShape parse_decay_shape(std::string_view name) {
  if (name == "linear") return DecayShape::kLinear;
  if (name == "cosine") return DecayShape::kCosine;
  if (name == "1-sqrt") return DecayShape::kOneMinusSqrt;
  fail("--lr_decay_shape must be linear, cosine or 1-sqrt, not '{}'", name);
}

LearningRateSchedule::LearningRateSchedule(const ScheduleOptions& options) : options_(options) {
  ScheduleOptions& o = options_;
  check(o.learning_rate >= 0 && std::isfinite(o.learning_rate),
        "--learning_rate must be a number of at least 0, got {}", o.learning_rate);
  check(o.decay_frac >= 0 && o.decay_frac <= 1,
        "--learning_rate_decay_frac must be from 0 to 1, got {}", o.decay_frac);
  check(o.warmup_steps >= 0, "--warmup_steps must not be negative, got {}", o.warmup_steps);
  check(o.total_steps >= 1, "a schedule needs at least one step, got {}", o.total_steps);
  check(o.step_size >= 0, "--lr_step_size must not be negative, got {}", o.step_size);
  check(o.gamma > 0 && o.gamma <= 1, "--lr_gamma must be above 0 and at most 1, got {}", o.gamma);
  check(o.decay_steps >= 0, "--lr_decay_steps must not be negative, got {}", o.decay_steps);
  const int64_t after_warmup = std::max<int64_t>(1, o.total_steps - o.warmup_steps);
  if (o.step_size == 0) o.step_size = (after_warmup + 2) / 3;
  if (o.decay_steps == 0) o.decay_steps = (o.total_steps + 9) / 10;
  o.decay_steps = std::min(o.decay_steps, after_warmup);
}

double LearningRateSchedule::at(int64_t step) const {
  return options_.learning_rate * factor(std::clamp<int64_t>(step, 0, options_.total_steps));
}

double LearningRateSchedule::factor(int64_t step) const {
  const ScheduleOptions& o = options_;
  const int64_t since = step - o.warmup_steps;
  if (since < 0) return static_cast<double>(step) / static_cast<double>(o.warmup_steps);
  const auto ratio = [](int64_t part, int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(std::max<int64_t>(1, whole));
  };
  const auto above_floor = [&](double x) { return o.decay_frac + (1 - o.decay_frac) * x; };
  switch (o.kind) {
    case ScheduleKind::kConstant:
      return 1;
    case ScheduleKind::kLinear:
      return above_floor(ratio(o.total_steps - step, o.total_steps - o.warmup_steps));
    case ScheduleKind::kCosine:
      return above_floor(cosine_fall(ratio(since, o.total_steps - o.warmup_steps)));
    case ScheduleKind::kStep: {
      const int64_t drops = since / o.step_size;
      return std::max(o.decay_frac, std::pow(o.gamma, static_cast<double>(drops)));
    }
    case ScheduleKind::kWsd: {
      const int64_t into = step - (o.total_steps - o.decay_steps);
      return into <= 0 ? 1 : above_floor(fall(o.decay_shape, ratio(into, o.decay_steps)));
    }
    case ScheduleKind::kInverseSqrt: {
      const int64_t scale = o.warmup_steps > 0 ? o.warmup_steps : 10'000;
      return std::max(o.decay_frac, std::sqrt(ratio(scale, since + scale)));
    }
  }
  return 1;
}

std::string LearningRateSchedule::str() const {
  const ScheduleOptions& o = options_;
  std::string out;
  for (const auto& [name, kind] : kKinds) {
    if (kind == o.kind) out = fmt::format("{} from {:g}", name, o.learning_rate);
  }
  if (o.kind != ScheduleKind::kConstant) out += fmt::format(" to {:g}", at(o.total_steps));
  if (o.kind == ScheduleKind::kStep) out += fmt::format(", x{:g} each {}", o.gamma, o.step_size);
  if (o.kind == ScheduleKind::kWsd) out += fmt::format(" in the last {}", o.decay_steps);
  return out + fmt::format(", {} warm-up steps of {}", o.warmup_steps, o.total_steps);
}

}  // namespace reft
