// The parts together, as a training run uses them: a run that is killed again and again and
// resumed each time ends with the very bytes of one that was not.
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <random>

#include "base/file.h"
#include "tensor/checkpoint_reader.h"
#include "train/checkpoint.h"
#include "train/loss_guard.h"
#include "train/optimizer.h"
#include "train/schedule.h"
#include "train/train_log.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kTotalSteps = 60, kSaveEvery = 3;

std::vector<TrainParameter> make_parameters() {
  std::vector<TrainParameter> parameters;
  for (const auto& [name, shape] : {std::pair("model.embed_tokens.weight", Shape{40, 24}),
                                    {"model.layers.0.mlp.up_proj.weight", Shape{24, 40}},
                                    {"model.norm.weight", Shape{24}}}) {
    std::mt19937 random(static_cast<uint32_t>(parameters.size()));
    Tensor value = Tensor::empty(shape, DType::kBF16);
    for (int64_t i = 0; i < value.numel(); ++i) {
      value.data<bf16>()[i] = to_bf16(static_cast<float>(random() % 1000) / 500 - 1);
    }
    parameters.push_back({name, value, Tensor::zeros(shape, DType::kF32), wants_decay(shape)});
  }
  return parameters;
}

// Half the squared distance to targets that move with the step, and its gradient.
double backward(const Optimizer& optimizer, int64_t step) {
  std::mt19937 random(static_cast<uint32_t>(step));
  double loss = 0;
  for (const TrainParameter& p : optimizer.parameters()) {
    for (int64_t i = 0; i < p.value.numel(); ++i) {
      const float target = static_cast<float>(random() % 1000) / 1000;
      const float distance = to_float(p.value.data<bf16>()[i]) - target;
      p.grad.data<float>()[i] = distance;
      loss += 0.5 * static_cast<double>(distance) * static_cast<double>(distance);
    }
  }
  return loss;
}

CheckpointContents contents_of(int64_t step, const Optimizer& optimizer, const LossGuard& guard) {
  CheckpointContents contents;
  contents.state.step = step;
  contents.state.optimizer = optimizer.settings();
  contents.state.log["guard"] = guard.state();
  for (const TrainParameter& p : optimizer.parameters()) {
    contents.model.emplace_back(p.name, p.value);
  }
  contents.tensors["optimizer"] = optimizer.state();
  return contents;
}

// Kills its own process after `kill_after` steps, a moment later than the step, so that a write is
// under way or not; 0: never.
void train(const std::string& folder, const OptimizerOptions& options, int64_t kill_after) {
  Optimizer optimizer(make_parameters(), options);
  LossGuard guard({.on_spike = GuardAction::kSkip, .window = 8});
  const LearningRateSchedule schedule(
      {.learning_rate = 1e-2, .warmup_steps = 5, .total_steps = kTotalSteps});
  CheckpointWriter writer({.folder = folder, .save_total_limit = 2});
  int64_t step = 0;
  if (const auto latest = latest_checkpoint(folder)) {
    const TrainState state = read_train_state(*latest);
    const auto model = open_checkpoint(*latest + "/model.safetensors");
    for (const TrainParameter& p : optimizer.parameters()) {
      p.value.copy_from(model->read(p.name));
    }
    optimizer.load(*open_checkpoint(*latest + "/optimizer.safetensors"), state.optimizer);
    guard.load(state.log["guard"]);
    step = state.step;
  }
  const int64_t last_step = step + kill_after;
  TrainLog log({.folder = folder,
                .start_step = step,
                .total_steps = kTotalSteps,
                .tensorboard = false,
                .quiet = true});
  while (step < kTotalSteps) {
    const double loss = backward(optimizer, step), norm = optimizer.gradient_norm();
    const double rate = schedule.at(step);
    ++step;
    if (guard.check_step(step, loss, norm).action == GuardAction::kApply) {
      optimizer.step(rate, clip_scale(norm, 1));
    }
    log.step({.step = step, .loss = loss, .learning_rate = rate, .grad_norm = norm, .seconds = 1});
    if (step % kSaveEvery == 0) writer.save(contents_of(step, optimizer, guard));
    if (step == last_step) {
      ::usleep(static_cast<useconds_t>(step * 997 % 2000));
      ::raise(SIGKILL);
    }
  }
  writer.wait();
}

const OptimizerOptions kKinds[] = {
    {.weight_decay = 0.1, .seed = 5},
    {.master_weights = false, .state_dtype = DType::kBF16, .seed = 5},
    {.kind = OptimizerKind::kMuon, .seed = 5}};

// The child: this program again, with its task in the environment. (A forked process would have the
// compute pool without its threads.)
TEST(TrainingChild, DISABLED_Run) {
  const char* folder = std::getenv("REFT_TEST_FOLDER");
  const char* kind = std::getenv("REFT_TEST_KIND");
  const char* kill_after = std::getenv("REFT_TEST_KILL_AFTER");
  ASSERT_TRUE(folder != nullptr && kind != nullptr && kill_after != nullptr);
  train(folder, kKinds[std::atoi(kind)], std::atoi(kill_after));
}

// Returns how the child ended.
int run_training(const std::string& folder, int kind, int64_t kill_after) {
  const std::string folder_setting = "REFT_TEST_FOLDER=" + folder;
  const std::string kind_setting = "REFT_TEST_KIND=" + std::to_string(kind);
  const std::string kill_setting = "REFT_TEST_KILL_AFTER=" + std::to_string(kill_after);
  const std::vector<const char*> arguments = {"test_train", "--gtest_filter=TrainingChild.*",
                                              "--gtest_also_run_disabled_tests", "--gtest_brief=1",
                                              nullptr};
  std::vector<const char*> environment = {folder_setting.c_str(), kind_setting.c_str(),
                                          kill_setting.c_str(), "REFT_LOG_LEVEL=error"};
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  environment.push_back(nullptr);
  pid_t child = 0;
  EXPECT_EQ(::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr,
                          const_cast<char* const*>(arguments.data()),
                          const_cast<char* const*>(environment.data())),
            0);
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

class ResumeAfterKill : public testing::TestWithParam<int> {};

TEST_P(ResumeAfterKill, EndsWithTheSameBytes) {
  const fs::path root =
      fs::temp_directory_path() / fmt::format("reft_resume_{}_{}", ::getpid(), GetParam());
  const std::string whole = root / "whole", killed = root / "killed";
  ASSERT_EQ(run_training(whole, GetParam(), 0), 0);
  std::mt19937 random(3);
  for (int round = 0; round < 8; ++round) {
    const int status = run_training(killed, GetParam(), 1 + random() % 7);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }
  ASSERT_EQ(run_training(killed, GetParam(), 0), 0);

  const std::string end = fmt::format("/checkpoint-{}/", kTotalSteps);
  for (const std::string& file : {end + "model.safetensors", end + "optimizer.safetensors",
                                  end + "trainer_state.json", std::string("/train_log.jsonl")}) {
    EXPECT_EQ(read_file(whole + file), read_file(killed + file)) << file;
  }
  fs::remove_all(root);
}

INSTANTIATE_TEST_SUITE_P(Kinds, ResumeAfterKill, testing::Range(0, 3));

}  // namespace
}  // namespace reft
