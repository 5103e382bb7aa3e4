#include "train/objective.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "ops/philox.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

// What the model sees of the sequences [first, last) of a micro-batch; rows without a label cost no
// logits.
struct ModelBatch {
  Batch batch;
  Tensor labels;
  std::vector<int64_t> start;  // where the labels of each sequence begin, and their end

  ModelBatch(const TrainBatch& b, Device device) : ModelBatch(b, device, 0, b.sequences.size()) {}
  ModelBatch(const TrainBatch& b, Device device, size_t first, size_t last) {
    const auto begin = static_cast<size_t>(b.sequence_start[first]);
    const auto end = static_cast<size_t>(b.sequence_start[last]);
    std::vector<int32_t> rows, targets, starts;
    for (size_t s = first; s < last; ++s) {
      starts.push_back(b.sequence_start[s] - b.sequence_start[first]);
      batch.attention.max_query_len =
          std::max(batch.attention.max_query_len,
                   int64_t{b.sequence_start[s + 1]} - int64_t{b.sequence_start[s]});
      start.push_back(static_cast<int64_t>(targets.size()));
      for (auto i = static_cast<size_t>(b.sequence_start[s]);
           i < static_cast<size_t>(b.sequence_start[s + 1]); ++i) {
        if (b.labels[i] == kIgnored) continue;
        rows.push_back(static_cast<int32_t>(i - begin));
        targets.push_back(b.labels[i]);
      }
    }
    starts.push_back(static_cast<int32_t>(end - begin));
    start.push_back(static_cast<int64_t>(targets.size()));
    const auto part = [&](const std::vector<int32_t>& values) {
      return Tensor::from_vector(
          std::vector<int32_t>(values.begin() + static_cast<ptrdiff_t>(begin),
                               values.begin() + static_cast<ptrdiff_t>(end)));
    };
    batch.token_ids = part(b.token_ids).to(device);
    batch.positions = part(b.positions).to(device);
    batch.attention.query_start = Tensor::from_vector(starts).to(device);
    batch.logit_rows = Tensor::from_vector(rows).to(device);
    labels = Tensor::from_vector(targets).to(device);
  }
};

// The log-probabilities that token losses are the negatives of.
std::vector<double> log_probs_of(const Tensor& losses) {
  std::vector<double> out;
  for (const float loss : losses.to_vector<float>()) out.push_back(-double{loss});
  return out;
}

Tensor seed_of(std::span<const double> gradient, double factor) {
  std::vector<float> seed;
  for (const double g : gradient) seed.push_back(static_cast<float>(factor * g));
  return Tensor::from_vector(seed);
}

// Stages pt and sft: −log p of every trained token.
class TokenObjective final : public Objective {
 public:
  TokenObjective(CausalLmModel& model, Device device) : model_(model), device_(device) {}

  LossSum run(const TrainBatch& batch, const TrainingForward& forward, bool backward) override {
    LossSum sum{.units = batch.num_trained};
    if (batch.num_trained == 0) return sum;
    const ModelBatch inputs(batch, device_);
    Tensor losses;
    if (backward) {
      TrainingForward once = forward;
      once.loss.in_backward = true;
      Tape tape;
      watch_parameters(tape, model_);
      losses = model_.token_losses(inputs.batch, inputs.labels, once);
      const std::vector<float> ones(static_cast<size_t>(losses.numel()), 1.0f);
      tape.backward(losses, Tensor::from_vector(ones).to(device_));
      pending_.push_back(losses);
      return sum;
    } else {
      losses = model_.token_losses(inputs.batch, inputs.labels, forward);
    }
    sum.loss = sum_of(losses);
    return sum;
  }

  double settle() override {
    double sum = 0;
    for (const Tensor& losses : std::exchange(pending_, {})) sum += sum_of(losses);
    return sum;
  }

 private:
  static double sum_of(const Tensor& losses) {
    double sum = 0;
    for (const float loss : losses.to_vector<float>()) sum += double{loss};
    return sum;
  }

  CausalLmModel& model_;
  Device device_;
  std::vector<Tensor> pending_;
};

// What preferences about answers share: the log-probabilities of a batch, and the way back from the
// gradient with respect to them.
class AnswerObjective : public Objective {
 public:
  AnswerObjective(CausalLmModel& model, Device device, const PreferenceOptions& options,
                  ReferenceModel reference)
      : options_(options), device_(device), model_(model), reference_(std::move(reference)) {}

 protected:
  using Loss = std::function<LossSum(const TokenLogProbs& tokens)>;

  LossSum apply(const ModelBatch& inputs, const TrainingForward& forward, bool backward,
                const Loss& loss) const {
    TokenLogProbs tokens = with_reference(inputs);
    if (!backward) {
      tokens.policy = log_probs_of(model_.token_losses(inputs.batch, inputs.labels, forward));
      return finished(loss(tokens));
    }
    Tape tape;
    watch_parameters(tape, model_);
    const Tensor losses = model_.token_losses(inputs.batch, inputs.labels, forward);
    tokens.policy = log_probs_of(losses);
    LossSum sum = loss(tokens);
    tape.backward(losses, seed_of(sum.gradient, -1).to(device_));
    return finished(std::move(sum));
  }

  // Without a gradient.
  TokenLogProbs observe(const ModelBatch& inputs) const {
    TokenLogProbs tokens = with_reference(inputs);
    tokens.policy = log_probs_of(model_.token_losses(inputs.batch, inputs.labels, {}));
    return tokens;
  }

  PreferenceOptions options_;
  Device device_;

 private:
  TokenLogProbs with_reference(const ModelBatch& inputs) const {
    TokenLogProbs tokens{.start = inputs.start};
    if (reference_) tokens.reference = log_probs_of(reference_(inputs.batch, inputs.labels));
    return tokens;
  }
  static LossSum finished(LossSum sum) {
    sum.gradient.clear();
    return sum;
  }

  CausalLmModel& model_;
  ReferenceModel reference_;
};

class PairObjective final : public AnswerObjective {
 public:
  using AnswerObjective::AnswerObjective;

  LossSum run(const TrainBatch& batch, const TrainingForward& forward, bool backward) override {
    return apply(ModelBatch(batch, device_), forward, backward,
                 [&](const TokenLogProbs& tokens) { return pair_loss(tokens, options_); });
  }
};

// The sequences that estimate the KL term, behind the rows, get no gradient.
class KtoObjective final : public AnswerObjective {
 public:
  using AnswerObjective::AnswerObjective;

  LossSum run(const TrainBatch& batch, const TrainingForward& forward, bool backward) override {
    std::vector<uint8_t> desirable;
    for (const TrainBatch::Sequence& s : batch.sequences) {
      if (s.role == TrainBatch::Role::kTagged) desirable.push_back(s.desirable ? 1 : 0);
    }
    const size_t rows = desirable.size();
    const double kl =
        mismatch_kl(observe(ModelBatch(batch, device_, rows, batch.sequences.size())));
    return apply(
        ModelBatch(batch, device_, 0, rows), forward, backward,
        [&](const TokenLogProbs& tokens) { return kto_loss(tokens, desirable, kl, options_); });
  }
};

// Scores the last token of a conversation by a linear head.
class RewardObjective final : public Objective {
 public:
  RewardObjective(CausalLmModel& model, const std::string& source, uint64_t seed) : model_(model) {
    const int64_t hidden = model.info().hidden_size;
    weight_ = {.name = "v_head.summary.weight",
               .value = Tensor::empty({1, hidden}, DType::kF32),
               .grad = Tensor::zeros({1, hidden}, DType::kF32),
               .decay = true};
    bias_ = {.name = "v_head.summary.bias",
             .value = Tensor::empty({1}, DType::kF32),
             .grad = Tensor::zeros({1}, DType::kF32),
             .decay = false};
    const std::string file = source + "/" + kValueHeadStem + ".safetensors";
    if (!source.empty() && std::filesystem::exists(file)) {
      read(file);
    } else {
      initialize(seed);
    }
  }

  LossSum run(const TrainBatch& batch, const TrainingForward& forward, bool backward) override {
    ModelBatch inputs(batch, kCpuDevice);
    std::vector<int32_t> last;
    for (size_t i = 0; i < batch.sequences.size(); ++i) {
      last.push_back(batch.sequence_start[i + 1] - 1);
    }
    inputs.batch.logit_rows = Tensor::from_vector(last);
    if (!backward) return loss_of(model_.hidden_states(inputs.batch, forward)).first;
    Tape tape;
    watch_parameters(tape, model_);
    const Tensor hidden = model_.hidden_states(inputs.batch, forward);
    auto [sum, seed] = loss_of(hidden);
    tape.backward(hidden, seed.to(hidden.dtype()).to(hidden.device()));
    return sum;
  }

  std::vector<TrainParameter> parameters() const override { return {weight_, bias_}; }
  std::pair<std::string, NamedTensors> extra_file() const override {
    return {kValueHeadStem, {{weight_.name, weight_.value}, {bias_.name, bias_.value}}};
  }

 private:
  void read(const std::string& file) {
    const auto reader = open_safetensors(file);
    for (const TrainParameter* p : {&weight_, &bias_}) {
      check(reader->contains(p->name), "{}: tensor '{}' is missing", file, p->name);
      const Tensor value = reader->read(p->name);
      check(value.shape() == p->value.shape() && is_float(value.dtype()),
            "{}: tensor '{}' is {}, this model needs {}", file, p->name, value, p->value.shape());
      p->value.copy_from(value.to(DType::kF32));
    }
  }

  // As torch.nn.Linear begins: uniform within 1 / √D.
  void initialize(uint64_t seed) {
    const double bound = 1 / std::sqrt(static_cast<double>(weight_.value.numel()));
    uint64_t stream = UINT64_C(1) << 32;  // behind those of the model's parameters
    for (const TrainParameter* p : {&weight_, &bias_}) {
      for (int64_t i = 0; i < p->value.numel(); ++i) {
        const double u = static_cast<double>(philox(seed, static_cast<uint64_t>(i), stream)[0]);
        p->value.data<float>()[i] = static_cast<float>(bound * (2 * u * 0x1p-32 - 1));
      }
      ++stream;
    }
  }

  // The loss of hidden states [B, D], and d loss / d hidden. Adds to the head's own gradients,
  // which an evaluation does not ask for.
  std::pair<LossSum, Tensor> loss_of(const Tensor& hidden) const {
    const std::vector<float> states = hidden.to(DType::kF32).to_vector<float>();
    const auto width = static_cast<size_t>(hidden.size(1));
    const auto rows = static_cast<size_t>(hidden.size(0));
    const float* weight = weight_.value.data<float>();
    std::vector<double> scores(rows, double{*bias_.value.data<float>()});
    for (size_t r = 0; r < rows; ++r) {
      for (size_t d = 0; d < width; ++d) {
        scores[r] += double{states[r * width + d]} * double{weight[d]};
      }
    }
    LossSum sum = reward_loss(scores);
    std::vector<float> seed(states.size());
    if (Tape::current() != nullptr) {
      for (size_t r = 0; r < rows; ++r) {
        const auto slope = static_cast<float>(sum.gradient[r]);
        for (size_t d = 0; d < width; ++d) {
          seed[r * width + d] = slope * weight[d];
          weight_.grad.data<float>()[d] += slope * states[r * width + d];
        }
        *bias_.grad.data<float>() += slope;
      }
    }
    sum.gradient.clear();
    return {std::move(sum), Tensor::from_vector(seed, hidden.shape())};
  }

  CausalLmModel& model_;
  TrainParameter weight_, bias_;
};

}  // namespace

ReferenceModel load_reference(const std::string& path, const LoadOptions& options,
                              const ModelInfo& info) {
  const auto loaded = std::make_shared<LoadedModel>(load_model(path, options));
  check(loaded->model->info().vocab_size == info.vocab_size,
        "--ref_model '{}' has a vocabulary of {}, the trained model one of {}", path,
        loaded->model->info().vocab_size, info.vocab_size);
  return [loaded](const Batch& batch, const Tensor& labels) {
    return loaded->model->token_losses(batch, labels, {});
  };
}

const char* stage_name(Stage stage) {
  constexpr const char* kNames[] = {"pt", "sft", "dpo", "kto", "rm"};
  return kNames[static_cast<size_t>(stage)];
}

bool needs_reference(Stage stage, const PreferenceOptions& options) {
  return stage == Stage::kKto || (stage == Stage::kDpo && options.pairs_need_reference());
}

void check_preferences(Stage stage, const PreferenceOptions& options, bool load_pretrained,
                       const std::string& ref_model) {
  options.validate();
  const bool reference = needs_reference(stage, options);
  check(reference || ref_model.empty(),
        "--ref_model: neither stages pt, sft and rm nor --pref_loss orpo and simpo have one");
  check(!reference || load_pretrained || !ref_model.empty(),
        "--no-load_pretrained: random weights are no reference for preferences; --ref_model is");
}

std::unique_ptr<Objective> make_objective(Stage stage, const PreferenceOptions& options,
                                          CausalLmModel& model, Device device,
                                          ReferenceModel reference, const std::string& source,
                                          uint64_t seed) {
  check(!needs_reference(stage, options) || reference, "the loss needs a reference model");
  switch (stage) {
    case Stage::kPretrain:
    case Stage::kSft:
      return std::make_unique<TokenObjective>(model, device);
    case Stage::kDpo:
      return std::make_unique<PairObjective>(model, device, options, std::move(reference));
    case Stage::kKto:
      return std::make_unique<KtoObjective>(model, device, options, std::move(reference));
    case Stage::kReward:
      check(device.type == DeviceType::kCpu, "--stage rm trains on the CPU alone so far");
      return std::make_unique<RewardObjective>(model, source, seed);
  }
  return nullptr;
}

}  // namespace reft
