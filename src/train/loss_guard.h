// Watches loss and gradient norm of every step before the update: what is not finite must not reach
// the weights, and a spike is at least said. One thread at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "base/json.h"

namespace reft {

enum class GuardAction { kApply, kSkip, kAbort };

struct LossGuardOptions {
  GuardAction on_nan = GuardAction::kAbort;    // --nan_policy: abort or skip
  GuardAction on_spike = GuardAction::kApply;  // --spike_policy: apply (warn only), skip or abort
  double spike_sigma = 6;  // a spike lies that many standard deviations above the mean …
  int64_t window = 128;    // … of this many accepted steps; before that nothing is a spike
  int64_t max_skips = 10;  // more skipped steps in a row end the run
};
// "apply", "skip" or "abort". Throws Error naming `flag`.
GuardAction parse_guard_action(std::string_view name, std::string_view flag);

class LossGuard {
 public:
  struct Verdict {
    GuardAction action = GuardAction::kApply;
    std::string reason;  // empty: nothing to say
  };

  explicit LossGuard(const LossGuardOptions& options);
  // Of the step about to be applied, in order. Its values join the window unless they are not
  // finite or the step is skipped.
  Verdict check_step(int64_t step, double loss, double grad_norm);
  int64_t skipped() const { return skipped_; }

  // For a checkpoint: a resumed run decides as the uninterrupted one.
  Json state() const;
  void load(const Json& state);

 private:
  struct Window {
    std::deque<double> values;
    double sigmas(double x) const;  // (x − mean) / deviation
  };

  LossGuardOptions options_;
  Window loss_, norm_;
  int64_t skipped_ = 0, in_a_row_ = 0;
};

}  // namespace reft
