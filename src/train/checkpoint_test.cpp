#include "train/checkpoint.h"
#include "base/error_of_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "base/file.h"
#include "tensor/checkpoint_reader.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class Checkpoint : public testing::Test {
 protected:
  Checkpoint()
      : folder_(
            (fs::temp_directory_path() / fmt::format("reft_checkpoint_{}", ::getpid())).string()) {
    fs::remove_all(folder_);
  }
  ~Checkpoint() override { fs::remove_all(folder_); }
  std::string at(int64_t step) const { return fmt::format("{}/checkpoint-{}", folder_, step); }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      out.push_back(entry.path().filename().string());
    }
    std::sort(out.begin(), out.end());
    return out;
  }
  std::string folder_;
};

// Everything in it tells the step.
CheckpointContents contents_of(int64_t step, int64_t numel = 1000) {
  const std::vector<float> values(static_cast<size_t>(numel), static_cast<float>(step));
  CheckpointContents contents;
  contents.state.step = step;
  contents.state.epoch = static_cast<double>(step) / 10;
  contents.state.optimizer = {{"optimizer", "adamw"}, {"steps", step}};
  contents.state.data = {{"cursor", {1, 2, step}}};
  contents.state.rng = {{"seed", 18446744073709551615ULL}};
  contents.model = {{"model.norm.weight", Tensor::from_vector(values)},
                    {"lm_head.weight", Tensor::from_vector(values).to(DType::kBF16)}};
  contents.tensors["optimizer"] = {{"model.norm.weight.exp_avg", Tensor::from_vector(values)}};
  contents.files = {{"config.json", "{}"}, {"tokenizer.json", std::string(1000, 't')}};
  return contents;
}

void expect_whole(const std::string& path, int64_t step) {
  EXPECT_EQ(checkpoint_fault(path), "");
  const TrainState state = read_train_state(path);
  const TrainState want = contents_of(step).state;
  EXPECT_EQ(state.to_json(), want.to_json());
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    const auto reader = open_checkpoint(path + "/" + file);
    for (const TensorEntry& entry : reader->entries()) {
      for (const float x : reader->read(entry.name).to(DType::kF32).to_vector<float>()) {
        ASSERT_EQ(x, static_cast<float>(step)) << path << " " << entry.name;
      }
    }
  }
}

TEST_F(Checkpoint, IsAModelFolderWithTheStateBeside) {
  for (const bool background : {false, true}) {
    fs::remove_all(folder_);
    CheckpointWriter writer({.folder = folder_, .background = background});
    writer.save(contents_of(12));
    writer.wait();
    EXPECT_THAT(names(), ElementsAre("checkpoint-12"));
    expect_whole(at(12), 12);
    EXPECT_EQ(read_file(at(12) + "/tokenizer.json"), std::string(1000, 't'));
    EXPECT_EQ(open_checkpoint(at(12))->read("lm_head.weight").dtype(), DType::kBF16);
  }
}

// What is trained on while the write goes on does not get into it.
TEST_F(Checkpoint, BackgroundWriteIsASnapshot) {
  CheckpointWriter writer({.folder = folder_});
  CheckpointContents contents = contents_of(1, 1'000'000);
  writer.save(contents);
  for (auto& [name, tensor] : contents.model) {
    std::fill_n(tensor.raw(), tensor.nbytes(), std::byte{7});
  }
  writer.wait();
  expect_whole(at(1), 1);
}

TEST_F(Checkpoint, LargeModelsAreSharded) {
  CheckpointWriter writer({.folder = folder_, .max_shard_bytes = 5000});
  writer.save(contents_of(3));
  writer.wait();
  EXPECT_TRUE(fs::exists(at(3) + "/model-00002-of-00002.safetensors"));
  EXPECT_EQ(open_checkpoint(at(3))->entries().size(), 2U);
}

TEST_F(Checkpoint, AdaptersAreOneFile) {
  CheckpointContents contents = contents_of(3);
  contents.model_stem = kAdapterStem;
  CheckpointWriter writer({.folder = folder_, .max_shard_bytes = 5000, .background = false});
  writer.save(contents);
  EXPECT_TRUE(fs::exists(at(3) + "/adapter_model.safetensors"));
  EXPECT_EQ(checkpoint_fault(at(3)), "");
}

TEST_F(Checkpoint, TheNewestAreKept) {
  CheckpointWriter writer({.folder = folder_, .save_total_limit = 2});
  for (const int64_t step : {5, 90, 100, 1000}) writer.save(contents_of(step));
  writer.wait();
  EXPECT_THAT(names(), ElementsAre("checkpoint-100", "checkpoint-1000"));
  EXPECT_THAT(find_checkpoints(folder_), ElementsAre(at(100), at(1000)));
  EXPECT_EQ(latest_checkpoint(folder_), at(1000));
}

TEST_F(Checkpoint, TheSameStepIsReplaced) {
  CheckpointWriter writer({.folder = folder_, .background = false});
  CheckpointContents old = contents_of(7);
  old.files["old.txt"] = "old";
  writer.save(old);
  writer.save(contents_of(7));
  EXPECT_THAT(names(), ElementsAre("checkpoint-7"));
  EXPECT_FALSE(fs::exists(at(7) + "/old.txt"));
  expect_whole(at(7), 7);
}

TEST_F(Checkpoint, CutAndForeignFoldersAreLeftOut) {
  EXPECT_EQ(latest_checkpoint(folder_), std::nullopt);
  {
    CheckpointWriter writer({.folder = folder_});
    for (const int64_t step : {1, 2, 3, 4}) writer.save(contents_of(step));
  }
  fs::resize_file(at(4) + "/optimizer.safetensors", 100);
  fs::remove(at(3) + "/tokenizer.json");
  std::ofstream(at(2) + "/trainer_state.json") << "{\"step\": 2";
  fs::create_directories(folder_ + "/checkpoint-99.tmp-1x");
  fs::create_directories(folder_ + "/checkpoint-x");
  fs::create_directories(folder_ + "/runs");
  EXPECT_THAT(find_checkpoints(folder_), ElementsAre(at(1)));
  EXPECT_THAT(checkpoint_fault(at(4)), HasSubstr("'optimizer.safetensors' has 100 bytes, not"));
  EXPECT_THAT(checkpoint_fault(at(3)), HasSubstr("'tokenizer.json' is missing"));
  EXPECT_THAT(checkpoint_fault(at(2)), HasSubstr("trainer_state.json"));
  EXPECT_THAT(checkpoint_fault(folder_ + "/runs"), HasSubstr("trainer_state.json"));
}

TEST_F(Checkpoint, HalfWrittenFoldersOfDeadProcessesAreRemoved) {
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(gone, nullptr, 0), gone);
  const pid_t alive = ::fork();
  if (alive == 0) {
    ::pause();
    ::_exit(0);
  }
  for (const pid_t process : {gone, ::getpid(), alive}) {
    fs::create_directories(fmt::format("{}/checkpoint-5.tmp-{}/x", folder_, process));
  }
  fs::create_directories(folder_ + "/notes.tmp-1");
  CheckpointWriter writer({.folder = folder_});
  EXPECT_THAT(names(), ElementsAre(fmt::format("checkpoint-5.tmp-{}", alive), "notes.tmp-1"));
  ::kill(alive, SIGKILL);
  ASSERT_EQ(::waitpid(alive, nullptr, 0), alive);
}

// A child that writes checkpoint after checkpoint and tells the step of each finished one; it is
// killed at a random moment, over and over. What it had told must be there.
TEST_F(Checkpoint, SurvivesKillAtAnyMoment) {
  std::mt19937 random(1);
  int64_t step = 0;
  for (int round = 0; round < 30; ++round) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(pipe_ends[0]);
      try {
        CheckpointWriter writer(
            {.folder = folder_, .save_total_limit = 2, .background = round % 2 == 0});
        for (int64_t next = step + 1;; ++next) {
          writer.save(contents_of(next, 100'000));
          writer.wait();
          if (::write(pipe_ends[1], &next, sizeof(next)) != sizeof(next)) ::_exit(2);
        }
      } catch (const Error& e) {
        std::fprintf(stderr, "%s\n", e.what());
      }
      ::_exit(1);
    }
    ::close(pipe_ends[1]);
    int64_t told = step;
    if (round % 3 != 0) {  // else: perhaps before the first is finished
      ASSERT_EQ(::read(pipe_ends[0], &told, sizeof(told)), static_cast<ssize_t>(sizeof(told)));
    }
    ::usleep(std::uniform_int_distribution<useconds_t>(0, 20'000)(random));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the writer failed by itself";
    int64_t next = 0;
    while (::read(pipe_ends[0], &next, sizeof(next)) == sizeof(next)) told = next;
    ::close(pipe_ends[0]);

    const auto latest = latest_checkpoint(folder_);
    if (told == 0 && !latest) continue;
    ASSERT_TRUE(latest.has_value());
    step = read_train_state(*latest).step;
    ASSERT_GE(step, told);
    ASSERT_LE(step, told + 1);
    for (const std::string& path : find_checkpoints(folder_)) {
      expect_whole(path, read_train_state(path).step);
    }
  }
  ASSERT_GT(step, 10);
  const CheckpointWriter cleaner({.folder = folder_});
  for (const std::string& name : names()) EXPECT_THAT(name, Not(HasSubstr(".tmp-")));
}

// A file size limit stands for a disk that fills up in the middle of a write.
TEST_F(Checkpoint, AFullDiskIsSaidAndTheEarlierCheckpointStays) {
  {
    CheckpointWriter writer({.folder = folder_});
    writer.save(contents_of(1));
  }
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {100'000, 100'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    std::string error;
    {
      CheckpointWriter writer({.folder = folder_});
      writer.save(contents_of(2, 100'000));
      error = error_of([&] { writer.wait(); });
    }
    const bool said = error.find("checkpoint-2 was not written: cannot write '") == 0 &&
                      error.find("File too large") != std::string::npos &&
                      error.find("; the latest checkpoint is '" + at(1) + "'") != std::string::npos;
    if (!said) std::fprintf(stderr, "%s\n", error.c_str());
    ::_exit(said ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_THAT(names(), ElementsAre("checkpoint-1"));
  expect_whole(at(1), 1);
}

TEST_F(Checkpoint, WhatDoesNotFitIsRefusedBeforeItIsWritten) {
  CheckpointWriter writer({.folder = folder_, .background = false});
  CheckpointContents contents = contents_of(1);
  // A tensor of 2^52 bytes over one number; it is not read.
  float number = 0;
  contents.tensors["optimizer"] = {
      {"huge", Tensor::borrow(&number, {int64_t{1} << 50}, DType::kF32)}};
  EXPECT_THAT(error_of([&] { writer.save(contents); }),
              testing::AllOf(HasSubstr("checkpoint-1 was not written: it needs 4503599627.4 MB"),
                             HasSubstr("MB left"), HasSubstr("no earlier checkpoint")));
  EXPECT_THAT(names(), IsEmpty());
}

TEST_F(Checkpoint, ModelGoesIntoAFolderInPlaceOfTheEarlierOne) {
  CheckpointContents contents = contents_of(1);
  fs::create_directories(folder_);
  std::ofstream(folder_ + "/train_log.jsonl") << "kept";
  write_model_folder(folder_, "model", contents.model, contents.files, 5000);
  EXPECT_TRUE(fs::exists(folder_ + "/model.safetensors.index.json"));
  write_model_folder(folder_, "model", contents.model, contents.files, 50'000);
  EXPECT_THAT(names(),
              ElementsAre("config.json", "model.safetensors", "tokenizer.json", "train_log.jsonl"));
  contents.model.emplace_back("bad", Tensor());
  EXPECT_THAT(
      error_of([&] { write_model_folder(folder_, "model", contents.model, contents.files, 5000); }),
      HasSubstr("'bad' is undefined"));
  EXPECT_EQ(open_checkpoint(folder_)->entries().size(), 2U);
  EXPECT_EQ(names().size(), 4U);
}

TEST_F(Checkpoint, ModelFilesAreThoseOfTheBase) {
  fs::create_directories(folder_);
  for (const char* name : {"config.json", "tokenizer.json", "chat_template.jinja", "README.md",
                           "model.safetensors", "generation_config.json"}) {
    std::ofstream(folder_ + "/" + name) << name;
  }
  std::vector<std::string> found;
  for (const auto& [name, content] : read_model_files(folder_)) {
    EXPECT_EQ(content, name);
    found.push_back(name);
  }
  EXPECT_THAT(found, ElementsAre("chat_template.jinja", "config.json", "generation_config.json",
                                 "tokenizer.json"));
  EXPECT_EQ(
      parse_json(config_for_dtype(R"({"torch_dtype":"float32","quantization_config":{},"a":1})",
                                  DType::kBF16),
                 "config"),
      parse_json(R"({"torch_dtype":"bfloat16","a":1})", "config"));
  EXPECT_EQ(parse_json(config_for_dtype("{}", DType::kF32), "config"),
            parse_json(R"({"dtype":"float32"})", "config"));
}

}  // namespace
}  // namespace reft
