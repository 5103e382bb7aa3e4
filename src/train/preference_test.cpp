// Preference tuning against torch, transformers and TRL's formulas
// (tools/make_training_golden_preference.py), and what must hold whatever the loss.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <sstream>

#include "base/error_of_test.h"
#include "base/log.h"
#include "tensor/safetensors.h"
#include "train/checkpoint.h"
#include "train/data/test_files_test.h"
#include "train/objective.h"
#include "train/trainer.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const std::string kRoot = REFT_SOURCE_DIR;

const Json& golden() {
  static const Json json = read_json_file(kRoot + "/tests/train/preference.json");
  return json;
}

PreferenceOptions options_of(const Json& json) {
  PreferenceOptions o;
  const auto loss = json.at("loss").get<std::string>();
  if (loss != "kto") o.loss = parse_preference_loss(loss);
  o.beta = json_get(json, "beta", o.beta);
  o.ftx = json_get(json, "ftx", o.ftx);
  o.label_smoothing = json_get(json, "label_smoothing", o.label_smoothing);
  o.simpo_gamma = json_get(json, "simpo_gamma", o.simpo_gamma);
  o.kto_chosen_weight = json_get(json, "kto_chosen_weight", o.kto_chosen_weight);
  o.kto_rejected_weight = json_get(json, "kto_rejected_weight", o.kto_rejected_weight);
  return o;
}

double mean_of(const LossSum& sum, const std::string& name) {
  for (const auto& [key, value] : sum.metrics.means()) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no " << name;
  return 0;
}

struct FixedTokens {
  TokenLogProbs tokens;
  std::vector<uint8_t> desirable;
  double kl = 0;

  LossSum loss(const Json& case_options) const {
    const PreferenceOptions o = options_of(case_options);
    if (case_options.at("loss") == "kto") return kto_loss(tokens, desirable, kl, o);
    return pair_loss(tokens, o);
  }
};

FixedTokens fixed_tokens(bool reference) {
  const Json& losses = golden().at("losses");
  FixedTokens fixed;
  fixed.tokens.policy = losses.at("policy").get<std::vector<double>>();
  if (reference) fixed.tokens.reference = losses.at("reference").get<std::vector<double>>();
  fixed.tokens.start = {0};
  for (const int64_t n : losses.at("lengths")) {
    fixed.tokens.start.push_back(fixed.tokens.start.back() + n);
  }
  for (const bool good : losses.at("desirable")) fixed.desirable.push_back(good ? 1 : 0);
  fixed.kl = losses.at("kl").get<double>();
  return fixed;
}

TEST(PreferenceLoss, LossesRewardsAndGradientsAreThoseOfTorch) {
  EXPECT_NEAR(mismatch_kl(fixed_tokens(true).tokens), golden().at("losses").at("kl"), 1e-9);
  for (const auto& [name, want] : golden().at("losses").at("cases").items()) {
    const Json& case_options = want.at("options");
    const bool pairs = case_options.at("loss") != "kto";
    const bool reference = !pairs || options_of(case_options).pairs_need_reference();
    FixedTokens fixed = fixed_tokens(reference);
    const LossSum sum = fixed.loss(case_options);
    EXPECT_NEAR(sum.loss, want.at("loss"), 1e-9) << name;
    EXPECT_EQ(sum.units, want.at("units")) << name;
    const auto gradient = want.at("gradient").get<std::vector<double>>();
    ASSERT_EQ(sum.gradient.size(), gradient.size());
    for (size_t i = 0; i < gradient.size(); ++i) {
      EXPECT_NEAR(sum.gradient[i], gradient[i], 1e-9) << name << " " << i;
    }
    // Central differences in double: their own oracle.
    for (size_t i = 0; i < gradient.size(); ++i) {
      constexpr double kStep = 1e-5;
      const double value = fixed.tokens.policy[i];
      fixed.tokens.policy[i] = value + kStep;
      const double above = fixed.loss(case_options).loss;
      fixed.tokens.policy[i] = value - kStep;
      const double below = fixed.loss(case_options).loss;
      fixed.tokens.policy[i] = value;
      EXPECT_NEAR((above - below) / (2 * kStep), sum.gradient[i], 1e-6) << name << " " << i;
    }
    double chosen = 0, rejected = 0, right = 0, good = 0, bad = 0;
    const auto rewards = want.at("rewards").get<std::vector<double>>();
    for (size_t i = 0; i < rewards.size(); ++i) {
      const bool is_chosen = pairs ? i % 2 == 0 : fixed.desirable[i] != 0;
      (is_chosen ? chosen : rejected) += rewards[i];
      ++(is_chosen ? good : bad);
      if (pairs && i % 2 == 0) right += rewards[i] > rewards[i + 1] ? 1 : 0;
    }
    EXPECT_NEAR(mean_of(sum, "rewards/chosen"), chosen / good, 1e-9) << name;
    EXPECT_NEAR(mean_of(sum, "rewards/rejected"), rejected / bad, 1e-9) << name;
    EXPECT_NEAR(mean_of(sum, "rewards/margins"), chosen / good - rejected / bad, 1e-9) << name;
    if (!pairs) continue;
    EXPECT_NEAR(mean_of(sum, "rewards/accuracies"), right / good, 1e-9) << name;
  }
}

TEST(PreferenceLoss, RewardModelsLossIsThatOfTorch) {
  const Json& want = golden().at("losses").at("reward");
  const LossSum sum = reward_loss(want.at("scores").get<std::vector<double>>());
  EXPECT_NEAR(sum.loss, want.at("loss"), 1e-9);
  const auto gradient = want.at("gradient").get<std::vector<double>>();
  for (size_t i = 0; i < gradient.size(); ++i) EXPECT_NEAR(sum.gradient[i], gradient[i], 1e-9);
}

TEST(PreferenceLoss, ExtremesStayFinite) {
  for (const char* loss : {"sigmoid", "ipo", "hinge", "orpo", "simpo"}) {
    PreferenceOptions o;
    o.loss = parse_preference_loss(loss);
    for (const double a : {0.0, -1e-300, -5000.0}) {
      TokenLogProbs tokens{.policy = {a, -3}, .start = {0, 1, 2}};
      if (o.pairs_need_reference()) tokens.reference = {-3, a};
      const LossSum sum = pair_loss(tokens, o);
      EXPECT_TRUE(std::isfinite(sum.loss)) << loss << " " << a;
      for (const double g : sum.gradient) EXPECT_TRUE(std::isfinite(g)) << loss << " " << a;
    }
  }
}

TEST(PreferenceLoss, FlagsThatExcludeEachOtherAreNamed) {
  const auto fault = [](PreferenceOptions o) { return error_of([&] { o.validate(); }); };
  EXPECT_EQ(fault({}), "");
  EXPECT_THAT(fault({.beta = 0}), HasSubstr("--pref_beta"));
  EXPECT_THAT(fault({.ftx = -1}), HasSubstr("--pref_ftx"));
  EXPECT_THAT(fault({.loss = PreferenceLoss::kIpo, .label_smoothing = 0.1}),
              HasSubstr("--dpo_label_smoothing"));
  EXPECT_THAT(fault({.kto_chosen_weight = -1}), HasSubstr("--kto_chosen_weight"));
  EXPECT_THAT(error_of([] { parse_preference_loss("nonsense"); }), HasSubstr("--pref_loss"));
}

// A word for every id of the golden's model, and a template that writes words alone.
std::string word_tokenizer(int32_t eos) {
  Json vocab = Json::object();
  for (int id = 0; id < 211; ++id) vocab[id == eos ? "</s>" : fmt::format("w{}", id)] = id;
  return Json{{"version", "1.0"},
              {"added_tokens", {{{"id", eos}, {"content", "</s>"}, {"special", true}}}},
              {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
              {"model", {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", "w0"}}}}
      .dump();
}
constexpr const char* kTemplate =
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} </s>{% endif %} "
    "{% endfor %}";

std::string text_of(const Json& ids) {
  std::string text;
  for (const int id : ids) text += fmt::format("{}w{}", text.empty() ? "" : " ", id);
  return text;
}

class PreferenceRun : public testing::Test {
 protected:
  PreferenceRun() {
    set_log_level(LogLevel::kError);
    folder_.write("words/tokenizer.json", word_tokenizer(golden().at("eos")));
    folder_.write("words/tokenizer_config.json", R"({"eos_token": "</s>"})");
    std::string pairs, tagged;
    for (const Json& row : golden().at("rows")) {
      const std::string prompt = text_of(row.at("prompt")), chosen = text_of(row.at("chosen"));
      pairs +=
          Json{{"prompt", prompt}, {"chosen", chosen}, {"rejected", text_of(row.at("rejected"))}}
              .dump() +
          "\n";
      tagged +=
          Json{{"prompt", prompt}, {"completion", chosen}, {"label", row.at("desirable")}}.dump() +
          "\n";
    }
    folder_.write("pairs.jsonl", pairs);
    folder_.write("tagged.jsonl", tagged);
  }
  ~PreferenceRun() override { set_log_level(LogLevel::kInfo); }

  // On tests/golden/llama, as the script trained it.
  TrainerOptions options(const std::string& stage, const std::string& out) const {
    const Json& settings = golden().at("options");
    TrainerOptions o;
    o.model_path = kRoot + "/tests/golden/llama";
    o.tokenizer_path = folder_.path("words");
    o.chat_template = kTemplate;
    o.dtype = "float32";
    o.encoder.stage = parse_stage(stage);
    o.encoder.cutoff_len = 96;
    o.loader.mix.datasets = {
        {.name = "rows", .path = folder_.path(stage == "kto" ? "tagged.jsonl" : "pairs.jsonl")}};
    o.loader.mix.shuffle = false;
    o.loader.batch_size = golden().at("curves").at(stage).at("batch_size");
    o.grad_accumulation_steps = settings.at("grad_accumulation_steps");
    o.max_steps = settings.at("steps");
    o.optimizer.weight_decay = settings.at("weight_decay");
    o.max_grad_norm = settings.at("max_grad_norm");
    o.schedule = {.kind = ScheduleKind::kLinear,
                  .learning_rate = settings.at("learning_rate"),
                  .warmup_steps = settings.at("warmup_steps")};
    o.output_dir = folder_.path(out);
    o.quiet = true;
    return o;
  }

  std::vector<double> logged(const std::string& out, const std::string& key) const {
    std::vector<double> values;
    std::istringstream lines(folder_.read(out + "/train_log.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const Json entry = parse_json(line, "train_log.jsonl");
      if (entry.contains(key)) values.push_back(entry[key].get<double>());
    }
    return values;
  }

  static void expect_near(const std::vector<double>& got, const std::vector<double>& want,
                          const std::string& what, double tolerance) {
    ASSERT_EQ(got.size(), want.size()) << what;
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
    EXPECT_LT(worst, tolerance) << what;
  }

  TempFolder folder_;
};

TEST_F(PreferenceRun, CurvesAreThoseOfTorch) {
  for (const std::string stage : {"dpo", "kto", "rm"}) {
    const Json& want = golden().at("curves").at(stage);
    TrainerOptions o = options(stage, stage);
    if (stage == "rm") {
      const auto weight = want.at("weight").get<std::vector<float>>();
      fs::copy(o.model_path, folder_.path("scored"), fs::copy_options::recursive);
      write_safetensors(
          folder_.path("scored/value_head.safetensors"),
          {{"v_head.summary.weight",
            Tensor::from_vector(weight, Shape{1, static_cast<int64_t>(weight.size())})},
           {"v_head.summary.bias",
            Tensor::from_vector(std::vector<float>{want.at("bias").get<float>()})}});
      o.model_path = folder_.path("scored");
    }
    train(o);
    expect_near(logged(stage, "loss"), want.at("loss"), stage + " loss", 1e-4);
    expect_near(logged(stage, "grad_norm"), want.at("grad_norm"), stage + " grad_norm", 1e-4);
    std::vector<double> chosen, accuracies;
    for (const Json& step : want.at("rewards")) {
      double sum = 0, right = 0;
      for (size_t i = 0; i + 1 < step.size(); i += 2) {
        sum += step[i].get<double>();
        right += step[i] > step[i + 1] ? 1 : 0;
      }
      chosen.push_back(2 * sum / static_cast<double>(step.size()));
      accuracies.push_back(2 * right / static_cast<double>(step.size()));
    }
    if (stage == "kto") continue;
    expect_near(logged(stage, "rewards/chosen"), chosen, stage + " rewards", 1e-4);
    const std::vector<double> got = logged(stage, "rewards/accuracies");
    // At the first step the policy is the reference: which reward is larger is rounding.
    expect_near({got.begin() + 2, got.end()}, {accuracies.begin() + 2, accuracies.end()},
                stage + " accuracies", 1e-9);
    EXPECT_GT(got.back(), 0.99) << stage;
  }
}

TEST_F(PreferenceRun, PairsAreLearntByEveryLoss) {
  for (const char* loss : {"ipo", "hinge", "orpo", "simpo"}) {
    TrainerOptions o = options("dpo", loss);
    o.preference.loss = parse_preference_loss(loss);
    o.preference.ftx = 0.1;
    o.loader.batch_size = 8;
    o.grad_accumulation_steps = 1;
    o.max_steps = 24;
    train(o);
    EXPECT_GT(logged(loss, "rewards/accuracies").back(), 0.95) << loss;
    EXPECT_LT(logged(loss, "loss").back(), logged(loss, "loss").front()) << loss;
    EXPECT_GT(logged(loss, "rewards/margins").back(), 0) << loss;
  }
}

TEST_F(PreferenceRun, HowAStepOfPairsIsCutIntoMicroBatchesChangesNothing) {
  for (const std::string stage : {"dpo", "rm"}) {
    std::vector<double> losses, norms;
    for (const auto& [batch_size, accumulation] :
         {std::pair(4, 1), std::pair(2, 2), std::pair(1, 4)}) {
      const std::string out = fmt::format("{}{}", stage, accumulation);
      TrainerOptions o = options(stage, out);
      o.loader.batch_size = batch_size;
      o.grad_accumulation_steps = accumulation;
      o.max_steps = 8;
      train(o);
      if (losses.empty()) {
        losses = logged(out, "loss");
        norms = logged(out, "grad_norm");
      }
      expect_near(logged(out, "loss"), losses, out, 1e-5);
      expect_near(logged(out, "grad_norm"), norms, out, 1e-4);
    }
  }
}

TEST_F(PreferenceRun, InterruptedRunsGoOnBitForBit) {
  const auto bytes = [](const std::string& file) {
    std::map<std::string, std::string> result;
    const auto reader = open_safetensors(file);
    for (const TensorEntry& entry : reader->entries()) {
      const Tensor t = reader->read(entry.name);
      result[entry.name].assign(reinterpret_cast<const char*>(t.raw()),
                                static_cast<size_t>(t.nbytes()));
    }
    return result;
  };
  for (const std::string stage : {"dpo", "kto", "rm"}) {
    TrainerOptions o = options(stage, stage + "-whole");
    o.loader.mix.shuffle = true;
    o.max_steps = 6;
    train(o);
    o.output_dir = folder_.path(stage + "-parts");
    o.resume = true;
    for (const int micro_batch : {3, 2, 1}) {
      int seen = 0;
      EXPECT_TRUE(train(o, [&] { return ++seen == micro_batch; }).interrupted);
    }
    train(o);
    for (const char* key : {"loss", "grad_norm", "rewards/chosen", "rewards/margins"}) {
      EXPECT_EQ(logged(stage + "-parts", key), logged(stage + "-whole", key)) << stage << key;
    }
    for (const std::string file : {"model", "value_head"}) {
      if (file == "value_head" && stage != "rm") continue;
      EXPECT_EQ(bytes(folder_.path(stage + "-parts/" + file + ".safetensors")),
                bytes(folder_.path(stage + "-whole/" + file + ".safetensors")))
          << stage;
    }
  }
}

TEST_F(PreferenceRun, RewardModelsGoOnFromTheirHeadAndLeaveTheOtherOneAlone) {
  TrainerOptions o = options("rm", "first");
  train(o);
  const double learnt = logged("first", "loss").back();
  const auto head = open_safetensors(o.output_dir + "/value_head.safetensors");
  EXPECT_EQ(head->read("v_head.summary.weight").shape(), (Shape{1, 32}));
  EXPECT_EQ(head->read("v_head.summary.bias").shape(), Shape{1});
  const Tensor before =
      open_safetensors(o.model_path + "/model.safetensors")->read("lm_head.weight");
  const Tensor after =
      open_safetensors(o.output_dir + "/model.safetensors")->read("lm_head.weight");
  EXPECT_EQ(before.to_vector<float>(), after.to_vector<float>());
  TrainerOptions next = options("rm", "next");
  next.model_path = o.output_dir;
  next.max_steps = 1;
  next.loader.batch_size = 12;
  train(next);
  EXPECT_LT(logged("next", "loss").at(0), learnt + 0.1);
}

TEST_F(PreferenceRun, PairsThatAreHeldOutAreEvaluated) {
  TrainerOptions o = options("dpo", "held");
  o.loader.mix.validation_fraction = 0.3;
  o.test_every = 5;
  o.max_steps = 10;
  train(o);
  EXPECT_EQ(logged("held", "eval_loss").size(), 2u);
  EXPECT_EQ(logged("held", "eval_rewards/accuracies").size(), 2u);
}

TEST_F(PreferenceRun, TheReferenceMayBeAnotherModel) {
  TrainerOptions first = options("dpo", "first");
  train(first);
  TrainerOptions o = options("dpo", "out");
  o.ref_model = first.output_dir;
  o.max_steps = 1;
  train(o);
  EXPECT_LT(logged("out", "rewards/margins").at(0), -0.1);  // of what the other one prefers
  const auto fault = [](const TrainerOptions& options) {
    return error_of([&] { train(options); });
  };
  EXPECT_THAT(error_of([&] { load_reference(o.model_path, {.quiet = true}, {.vocab_size = 7}); }),
              HasSubstr("--ref_model"));
  o = options("dpo", "bad");
  o.ref_model = "/nowhere";
  EXPECT_THAT(fault(o), HasSubstr("/nowhere"));
  o.ref_model = o.model_path;
  o.preference.loss = PreferenceLoss::kOrpo;
  EXPECT_THAT(fault(o), HasSubstr("--ref_model"));
  o = options("dpo", "bad");
  o.load_pretrained = false;
  EXPECT_THAT(fault(o), HasSubstr("--no-load_pretrained"));
}

TEST_F(PreferenceRun, DryRunShowsBothSidesOfAPair) {
  const std::string shown = preview_training(options("dpo", "none"), 1, false);
  EXPECT_THAT(shown, HasSubstr("chosen"));
  EXPECT_THAT(shown, HasSubstr("rejected"));
  EXPECT_THAT(preview_training(options("kto", "none"), 1, false), HasSubstr("tagged"));
}

TEST_F(PreferenceRun, TheSharedDataSetsAreRead) {
  for (const auto& [stage, file] :
       {std::pair("dpo", "dpo_en_demo.json"), std::pair("rm", "dpo_en_demo.json"),
        std::pair("kto", "kto_en_demo.json")}) {
    const std::string path = shared_dataset(file);
    if (path.empty()) GTEST_SKIP() << "no shared data sets";
    TrainerOptions o = options(stage, "none");
    o.loader.mix.datasets = {{.name = "demo", .path = path}};
    EXPECT_THAT(preview_training(o, 2, false), HasSubstr(" 0 bad")) << file;
  }
}

}  // namespace
}  // namespace reft
