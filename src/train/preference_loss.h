// Losses of preference tuning as functions of what the models say of the trained tokens, with their
// gradients: in double, on the host, without a model. Each is a sum over its units (pairs or rows),
// so that how a step is cut into micro-batches changes nothing. Losses of reinforcement learning
// are functions of the same log-probabilities and of advantages, and belong beside these.
//
// Follows LLaMA-Factory's stages dpo, kto and rm and TRL's DPOTrainer, KTOTrainer and
// RewardTrainer.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "train/metrics.h"

namespace reft {

enum class PreferenceLoss { kSigmoid, kIpo, kHinge, kOrpo, kSimpo };
// "sigmoid", "ipo", "hinge", "orpo", "simpo". Throws Error naming --pref_loss.
PreferenceLoss parse_preference_loss(std::string_view name);

struct PreferenceOptions {
  PreferenceLoss loss = PreferenceLoss::kSigmoid;
  double beta = 0.1;             // --pref_beta
  double ftx = 0;                // --pref_ftx
  double label_smoothing = 0;    // --dpo_label_smoothing
  double simpo_gamma = 0.5;      // --simpo_gamma
  double kto_chosen_weight = 1;  // --kto_chosen_weight
  double kto_rejected_weight = 1;

  // Whether pairs are measured against a reference model.
  bool pairs_need_reference() const {
    return loss != PreferenceLoss::kOrpo && loss != PreferenceLoss::kSimpo;
  }
  // Throws Error naming the flag at fault.
  void validate() const;
};

// log p of the trained tokens, sequence after sequence: those of sequence i are [start[i], start[i
// + 1]).
struct TokenLogProbs {
  std::vector<double> policy;     // [R]
  std::vector<double> reference;  // [R]; empty where the loss needs none
  std::vector<int64_t> start;     // [B + 1]

  size_t num_sequences() const { return start.size() - 1; }
};

struct LossSum {
  double loss = 0;               // summed over the units
  int64_t units = 0;             // what the loss is a mean over: tokens, pairs or rows
  std::vector<double> gradient;  // d loss / d policy [R], or d loss / d score
  Metrics metrics;
};

// Sequence 2i was chosen over sequence 2i + 1. With s = Σ log p of a sequence, s̄ = s / its tokens,
// h = (s − s_ref) of the chosen − that of the rejected one, σ the logistic function:
//   sigmoid  −(1 − ε) log σ(βh) − ε log σ(−βh), ε = label_smoothing
//   hinge    max(0, 1 − βh)
//   ipo      (h − 1 / 2β)², h of s̄
//   orpo     −s̄⁺ − β log σ(log odds(s̄⁺) − log odds(s̄⁻)), odds(x) = eˣ / (1 − eˣ)
//   simpo    −log σ(β (s̄⁺ − s̄⁻) − γ)
// and −ftx · s̄⁺ added to each. Rewards are β (s − s_ref) (ipo: of s̄), without a reference β s̄.
LossSum pair_loss(const TokenLogProbs& tokens, const PreferenceOptions& options);

// How far the policy is from the reference, by answers that belong to other prompts: the mean of
// Σ (log p − log p_ref) over the sequences, not below 0.
double mismatch_kl(const TokenLogProbs& mismatched);
// Rows that are good or not: with r = Σ (log p − log p_ref), λ their weight,
//   λ⁺ (1 − σ(β (r − kl))) of a good one, λ⁻ (1 − σ(β (kl − r))) of another
// and ftx · (mean of −s̄ of the good rows) · rows / good rows added to their mean.
LossSum kto_loss(const TokenLogProbs& tokens, std::span<const uint8_t> desirable, double kl,
                 const PreferenceOptions& options);

// −log σ(scores[2i] − scores[2i + 1]).
LossSum reward_loss(std::span<const double> scores);

}  // namespace reft
