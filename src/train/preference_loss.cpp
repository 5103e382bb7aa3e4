#include "train/preference_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace reft {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double log_sigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); }

// A sequence as the losses of pairs see it.
struct Answer {
  double policy = 0;     // log p, summed over its tokens or their mean
  double reference = 0;  // 0 without a reference
  double tokens = 0;

  double ratio() const { return policy - reference; }
};

Answer answer_of(const TokenLogProbs& tokens, size_t sequence, bool mean) {
  const auto begin = tokens.start[sequence], end = tokens.start[sequence + 1];
  const auto sum = [&](const std::vector<double>& values) {
    return std::accumulate(values.begin() + begin, values.begin() + end, 0.0);
  };
  Answer answer{.policy = sum(tokens.policy), .tokens = static_cast<double>(end - begin)};
  if (!tokens.reference.empty()) answer.reference = sum(tokens.reference);
  if (mean) {
    answer.policy /= answer.tokens;
    answer.reference /= answer.tokens;
  }
  return answer;
}

void check_sizes(const TokenLogProbs& tokens, bool reference) {
  const size_t rows = tokens.policy.size();
  check(!tokens.start.empty() && static_cast<size_t>(tokens.start.back()) == rows &&
            tokens.reference.size() == (reference ? rows : 0),
        "{} log-probabilities and {} of the reference for {} tokens", rows, tokens.reference.size(),
        tokens.start.empty() ? 0 : tokens.start.back());
}

// A loss and what it changes by with the log-probability of either side.
struct PairTerm {
  double loss = 0;
  double chosen = 0, rejected = 0;
};

// log (eˣ / (1 − eˣ)) and its derivative 1 / (1 − eˣ); x = 0 has no odds.
double log_odds(double x) { return x - std::log(-std::expm1(std::min(x, -1e-12))); }
double log_odds_slope(double x) { return -1 / std::expm1(std::min(x, -1e-12)); }

PairTerm pair_term(const Answer& chosen, const Answer& rejected, const PreferenceOptions& o) {
  const double h = chosen.ratio() - rejected.ratio();
  const auto both = [](double loss, double slope) { return PairTerm{loss, slope, -slope}; };
  switch (o.loss) {
    case PreferenceLoss::kSigmoid: {
      const double z = o.beta * h, e = o.label_smoothing;
      return both(-(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z), o.beta * (sigmoid(z) - (1 - e)));
    }
    case PreferenceLoss::kHinge: {
      const double gap = 1 - o.beta * h;
      return both(std::max(0.0, gap), gap > 0 ? -o.beta : 0);
    }
    case PreferenceLoss::kIpo: {
      const double distance = h - 1 / (2 * o.beta);
      return both(distance * distance, 2 * distance);
    }
    case PreferenceLoss::kOrpo: {
      const double z = log_odds(chosen.policy) - log_odds(rejected.policy);
      const double slope = o.beta * (sigmoid(z) - 1);
      return {-chosen.policy - o.beta * log_sigmoid(z), -1 + slope * log_odds_slope(chosen.policy),
              -slope * log_odds_slope(rejected.policy)};
    }
    case PreferenceLoss::kSimpo: {
      const double z = o.beta * h - o.simpo_gamma;
      return both(-log_sigmoid(z), o.beta * (sigmoid(z) - 1));
    }
  }
  return {};
}

void add_pair_metrics(double chosen, double rejected, Metrics* metrics) {
  metrics->add("rewards/chosen", chosen);
  metrics->add("rewards/rejected", rejected);
  metrics->add("rewards/margins", chosen - rejected);
  metrics->add("rewards/accuracies", chosen > rejected ? 1 : 0);
}

}  // namespace

PreferenceLoss parse_preference_loss(std::string_view name) {
  if (name == "sigmoid") return PreferenceLoss::kSigmoid;
  if (name == "ipo") return PreferenceLoss::kIpo;
  if (name == "hinge") return PreferenceLoss::kHinge;
  if (name == "orpo") return PreferenceLoss::kOrpo;
  if (name == "simpo") return PreferenceLoss::kSimpo;
  fail("--pref_loss '{}' is not known: sigmoid, ipo, hinge, orpo and simpo are", name);
}

void PreferenceOptions::validate() const {
  check(beta > 0, "--pref_beta must be above 0, got {}", beta);
  check(ftx >= 0, "--pref_ftx must not be negative, got {}", ftx);
  check(label_smoothing >= 0 && label_smoothing < 0.5,
        "--dpo_label_smoothing must be from 0 to below 0.5, got {}", label_smoothing);
  check(label_smoothing == 0 || loss == PreferenceLoss::kSigmoid,
        "--dpo_label_smoothing is for --pref_loss sigmoid");
  check(kto_chosen_weight >= 0 && kto_rejected_weight >= 0,
        "--kto_chosen_weight and --kto_rejected_weight must not be negative");
}

LossSum pair_loss(const TokenLogProbs& tokens, const PreferenceOptions& o) {
  check_sizes(tokens, o.pairs_need_reference());
  check(tokens.num_sequences() % 2 == 0, "{} sequences are not pairs", tokens.num_sequences());
  const bool mean = !o.pairs_need_reference() || o.loss == PreferenceLoss::kIpo;
  LossSum out;
  out.gradient.resize(tokens.policy.size());
  for (size_t i = 0; i < tokens.num_sequences(); i += 2) {
    const Answer chosen = answer_of(tokens, i, mean), rejected = answer_of(tokens, i + 1, mean);
    PairTerm term = pair_term(chosen, rejected, o);
    const double mean_logp = mean ? chosen.policy : chosen.policy / chosen.tokens;
    if (o.loss == PreferenceLoss::kOrpo) {
      out.metrics.add("sft_loss", -mean_logp);
      out.metrics.add("odds_ratio_loss", (term.loss + mean_logp) / o.beta);
    }
    term.loss -= o.ftx * mean_logp;
    term.chosen -= o.ftx / (mean ? 1 : chosen.tokens);
    out.loss += term.loss;
    ++out.units;
    const auto fill = [&](size_t sequence, const Answer& answer, double slope) {
      std::fill(out.gradient.begin() + tokens.start[sequence],
                out.gradient.begin() + tokens.start[sequence + 1],
                mean ? slope / answer.tokens : slope);
    };
    fill(i, chosen, term.chosen);
    fill(i + 1, rejected, term.rejected);
    add_pair_metrics(o.beta * chosen.ratio(), o.beta * rejected.ratio(), &out.metrics);
    out.metrics.add("logps/chosen", chosen.policy);
    out.metrics.add("logps/rejected", rejected.policy);
  }
  return out;
}

double mismatch_kl(const TokenLogProbs& mismatched) {
  check_sizes(mismatched, true);
  double sum = 0;
  for (size_t i = 0; i < mismatched.policy.size(); ++i) {
    sum += mismatched.policy[i] - mismatched.reference[i];
  }
  return std::max(0.0, sum / static_cast<double>(mismatched.num_sequences()));
}

LossSum kto_loss(const TokenLogProbs& tokens, std::span<const uint8_t> desirable, double kl,
                 const PreferenceOptions& o) {
  check_sizes(tokens, true);
  const size_t rows = tokens.num_sequences();
  check(desirable.size() == rows, "{} labels for {} rows", desirable.size(), rows);
  const auto good = std::count(desirable.begin(), desirable.end(), uint8_t{1});
  // The mean over the good rows, on the scale of the sum over all.
  const double ftx = good == 0 ? 0
                               : o.ftx * static_cast<double>(rows) * static_cast<double>(rows) /
                                     static_cast<double>(good * good);
  LossSum out;
  out.units = static_cast<int64_t>(rows);
  out.gradient.resize(tokens.policy.size());
  for (size_t i = 0; i < rows; ++i) {
    const Answer answer = answer_of(tokens, i, false);
    const bool chosen = desirable[i] != 0;
    const double sign = chosen ? 1 : -1;
    const double weight = chosen ? o.kto_chosen_weight : o.kto_rejected_weight;
    const double s = sigmoid(sign * o.beta * (answer.ratio() - kl));
    double slope = -weight * s * (1 - s) * sign * o.beta;
    out.loss += weight * (1 - s);
    if (chosen) {
      out.loss -= ftx * answer.policy / answer.tokens;
      slope -= ftx / answer.tokens;
    }
    std::fill(out.gradient.begin() + tokens.start[i], out.gradient.begin() + tokens.start[i + 1],
              slope);
    out.metrics.add(chosen ? "rewards/chosen" : "rewards/rejected", o.beta * answer.ratio());
    out.metrics.add(chosen ? "logps/chosen" : "logps/rejected", answer.policy);
  }
  out.metrics.add("kl", kl);
  return out;
}

LossSum reward_loss(std::span<const double> scores) {
  check(scores.size() % 2 == 0, "{} scores are not pairs", scores.size());
  LossSum out;
  out.gradient.resize(scores.size());
  for (size_t i = 0; i < scores.size(); i += 2) {
    const double margin = scores[i] - scores[i + 1];
    out.loss -= log_sigmoid(margin);
    ++out.units;
    out.gradient[i] = sigmoid(margin) - 1;
    out.gradient[i + 1] = -out.gradient[i];
    add_pair_metrics(scores[i], scores[i + 1], &out.metrics);
  }
  return out;
}

}  // namespace reft
