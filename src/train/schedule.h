// Learning rates by optimizer step. Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reft {

enum class ScheduleKind { kConstant, kLinear, kCosine, kStep, kWsd, kInverseSqrt };
// "constant", "linear", "cosine", "step", "wsd", "inverse_sqrt". Throws Error naming
// --lr_scheduler_type.
ScheduleKind parse_schedule(std::string_view name);

// How WSD falls at its end: "linear", "cosine", "1-sqrt".
enum class DecayShape { kLinear, kCosine, kOneMinusSqrt };
// Throws Error naming --lr_decay_shape.
DecayShape parse_decay_shape(std::string_view name);

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::kCosine;
  double learning_rate = 0;  // the peak
  double decay_frac = 0;     // --learning_rate_decay_frac: the lowest rate after the peak over the
                             // peak; 0: may reach 0, 1: never below the peak
  int64_t warmup_steps = 0;  // optimizer steps
  int64_t total_steps = 0;   // optimizer steps, warm-up included
  int64_t step_size = 0;     // step: steps between drops; 0: a third of those after the warm-up
  double gamma = 0.1;        // step: factor of a drop
  int64_t decay_steps = 0;   // wsd: length of the fall at the end; 0: a tenth of total_steps
  DecayShape decay_shape = DecayShape::kLinear;  // wsd
};

// The rate of step s, counted from 0, of W warm-up and N total steps, over the peak, with the
// floor f = decay_frac:
//   s < W         s / W, so that the first step has rate 0
//   constant      1
//   linear        f + (1 − f) (N − s) / (N − W)
//   cosine        f + (1 − f) (1 + cos(π (s − W) / (N − W))) / 2
//   step          max(f, gamma^⌊(s − W) / step_size⌋)
//   wsd           1, and in the last decay_steps f + (1 − f) d, where d falls from 1 to 0:
//                 1 − p, (1 + cos πp) / 2 or 1 − sqrt(p)
//   inverse_sqrt  max(f, sqrt(T / (s − W + T))), T = W, or 10000 without warm-up
// From N on the rate is that of N. Follows torch's StepLR and the get_*_schedule_with_warmup
// functions of transformers; linear and step with f > 0 follow llm.c's decay fraction.
class LearningRateSchedule {
 public:
  // Throws Error naming the flag.
  explicit LearningRateSchedule(const ScheduleOptions& options);
  double at(int64_t step) const;
  // "cosine from 4e-05 to 0, 100 warm-up steps".
  std::string str() const;

 private:
  double factor(int64_t step) const;
  ScheduleOptions options_;
};

}  // namespace reft
