#include "train/loss_guard.h"

#include <cmath>

namespace reft {

GuardAction parse_guard_action(std::string_view name, std::string_view flag) {
  if (name == "apply") return GuardAction::kApply;
  if (name == "skip") return GuardAction::kSkip;
  if (name == "abort") return GuardAction::kAbort;
  fail("--{} must be apply, skip or abort, not '{}'", flag, name);
}

LossGuard::LossGuard(const LossGuardOptions& options) : options_(options) {
  check(options_.on_nan != GuardAction::kApply,
        "--nan_policy must be skip or abort: an update that is not finite ruins the model");
  check(options_.spike_sigma > 0, "--spike_sigma must be above 0, got {}", options_.spike_sigma);
  check(options_.window >= 2, "a spike window of {} steps is too short", options_.window);
}

double LossGuard::Window::sigmas(double x) const {
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double v : values) sum += v;
  for (const double v : values) squares += (v - sum / n) * (v - sum / n);
  const double deviation = std::sqrt(squares / n);
  // A window of equal values: any rise beyond rounding is a spike.
  return (x - sum / n) / std::max(deviation, 1e-6 * std::abs(sum / n) + 1e-12);
}

LossGuard::Verdict LossGuard::check_step(int64_t step, double loss, double grad_norm) {
  Verdict verdict;
  const bool finite = std::isfinite(loss) && std::isfinite(grad_norm);
  if (!finite) {
    verdict = {options_.on_nan,
               fmt::format("step {}: loss {}, gradient norm {}", step, loss, grad_norm)};
  } else if (static_cast<int64_t>(loss_.values.size()) >= options_.window) {
    const double loss_sigmas = loss_.sigmas(loss), norm_sigmas = norm_.sigmas(grad_norm);
    if (std::max(loss_sigmas, norm_sigmas) > options_.spike_sigma) {
      verdict = {options_.on_spike,
                 fmt::format("step {}: loss {:.5f} ({:+.1f} sigma), gradient norm {:.4g} ({:+.1f} "
                             "sigma) against the last {} steps",
                             step, loss, loss_sigmas, grad_norm, norm_sigmas, options_.window)};
    }
  }
  if (verdict.action == GuardAction::kApply) {
    in_a_row_ = 0;
    for (auto [window, value] : {std::pair(&loss_, loss), std::pair(&norm_, grad_norm)}) {
      window->values.push_back(value);
      if (static_cast<int64_t>(window->values.size()) > options_.window) window->values.pop_front();
    }
    return verdict;
  }
  ++skipped_;
  if (++in_a_row_ > options_.max_skips) {
    verdict.action = GuardAction::kAbort;
    verdict.reason += fmt::format("; {} steps in a row", in_a_row_);
  }
  return verdict;
}

Json LossGuard::state() const {
  return {{"loss", loss_.values},
          {"norm", norm_.values},
          {"skipped", skipped_},
          {"in_a_row", in_a_row_}};
}

void LossGuard::load(const Json& state) {
  loss_.values = json_get(state, "loss", std::deque<double>());
  norm_.values = json_get(state, "norm", std::deque<double>());
  skipped_ = json_get<int64_t>(state, "skipped", 0);
  in_a_row_ = json_get<int64_t>(state, "in_a_row", 0);
}

}  // namespace reft
