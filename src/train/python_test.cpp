// What this program writes, opened in Python. Runs where REFT_PYTHON names an interpreter that has
// the packages of tests/train/check_files.py.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/file.h"
#include "engine/peft_adapter.h"
#include "tensor/checkpoint_reader.h"
#include "train/checkpoint.h"
#include "train/train_log.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

void write_log(const std::string& folder) {
  const auto run = [&](int64_t start, double scale) {
    TrainLog log({.folder = folder, .start_step = start, .total_steps = 4, .quiet = true});
    for (int64_t s = start + 1; s <= 4; ++s) {
      log.step({.step = s, .loss = scale / static_cast<double>(scale > 1 ? 1 : s), .seconds = 1});
    }
    log.evaluation({.step = 4, .loss = scale > 1 ? 0.75 : 3});
  };
  run(0, 1);
  run(2, 8);
}

TEST(Python, ReadsWhatIsWritten) {
  const char* python = std::getenv("REFT_PYTHON");
  if (python == nullptr) GTEST_SKIP() << "REFT_PYTHON is not set";
  const fs::path source = fs::path(REFT_SOURCE_DIR) / "tests";
  const fs::path folder = fs::temp_directory_path() / fmt::format("reft_python_{}", ::getpid());

  const std::string golden = (source / "golden" / "llama").string();
  const auto reader = open_checkpoint(golden);
  NamedTensors tensors;
  for (const TensorEntry& entry : reader->entries()) {
    tensors.emplace_back(entry.name, reader->read(entry.name));
  }
  ModelFiles files = read_model_files(golden);
  files["config.json"] = config_for_dtype(files["config.json"], DType::kF32);
  write_model_folder((folder / "model").string(), "model", tensors, files, 20'000);

  for (const char* name : {"plain", "patterns"}) {
    const LoraAdapter adapter = read_adapter((source / "train" / "adapters" / name).string());
    write_model_folder((folder / name).string(), "adapter_model", adapter_tensors(adapter),
                       {{"adapter_config.json", adapter_config_json(adapter.config).dump(2)}},
                       1'000'000'000);
  }
  write_log((folder / "log").string());

  const std::string command = fmt::format(
      "'{}' '{}' '{}'", python, (source / "train" / "check_files.py").string(), folder.string());
  EXPECT_EQ(std::system(command.c_str()), 0);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace reft
