// Checkpoints of a training run: folders checkpoint-<step> in the output folder. Each is a model
// folder that transformers and reft load (or a PEFT adapter), with the rest of the training state
// beside:
//   model.safetensors or its shards and index; config.json, tokenizer and template files …
//   optimizer.safetensors, and other tensors by name
//   trainer_state.json: TrainState, and the size of every other file
// A checkpoint is written into checkpoint-<step>.tmp-<pid>, every file is synced, then the folder
// is renamed: whatever ends the process at whatever moment, a folder without ".tmp" in its name is
// whole, and the checkpoint before it is still there.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "tensor/safetensors_writer.h"

namespace reft {

// What a run needs to go on besides weights and optimizer tensors.
struct TrainState {
  int64_t step = 0;  // optimizer steps done
  double epoch = 0;  // passes over the data, with the fraction of the current one
  Json optimizer;    // Optimizer::settings()
  Json schedule;     // as the run chose; for people and for checks
  Json rng;          // of all random streams
  Json data;         // the data loader's cursor, shuffle and packing buffer
  Json log;          // what the logs go on with

  Json to_json() const;
  // Throws Error naming the key.
  static TrainState from_json(const Json& json);
};

// Small files of a model folder by name → content.
using ModelFiles = std::map<std::string, std::string>;

// Configuration, tokenizer and template files that lie in a model's folder: what a folder with
// trained weights needs beside them.
ModelFiles read_model_files(const std::string& folder);
// config.json for weights of `dtype`: "dtype" and "torch_dtype" are set where present ("dtype"
// where neither is), "quantization_config" is dropped.
std::string config_for_dtype(const std::string& config_json, DType dtype);

// What weight files are called.
inline constexpr std::string_view kModelStem = "model";
inline constexpr std::string_view kAdapterStem = "adapter_model";  // never in shards

struct CheckpointContents {
  TrainState state;
  std::string model_stem{kModelStem};
  NamedTensors model;                           // by Hugging Face key
  std::map<std::string, NamedTensors> tensors;  // "optimizer" → optimizer.safetensors …
  ModelFiles files;
};

// Puts a trained model into `folder`, which may hold other things: all files are written aside
// first, then moved in, in place of earlier weights. Throws Error saying what was needed and what
// is free when the disk is full; the folder is then as it was.
void write_model_folder(const std::string& folder, const std::string& model_stem,
                        const NamedTensors& model, const ModelFiles& files,
                        int64_t max_shard_bytes);

struct CheckpointOptions {
  std::string folder;            // --output_dir; made when absent
  int64_t save_total_limit = 0;  // newest checkpoints to keep; 0: all
  int64_t max_shard_bytes = 5'000'000'000;
  bool background = true;  // copy everything to host memory and write while training goes on
};

// One thread at a time calls it; the writing thread is its own.
class CheckpointWriter {
 public:
  // Removes what earlier runs left half written.
  explicit CheckpointWriter(CheckpointOptions options);
  ~CheckpointWriter();  // waits; a failure is logged
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Waits for the write before it and throws that one's Error. When it returns, `contents` may
  // change; with `background` off the checkpoint is on disk. Then deletes checkpoints over the
  // limit. A checkpoint of the same step is replaced. Throws Error naming the folder, with the
  // checkpoint that remains the latest.
  void save(const CheckpointContents& contents);
  // Until everything is on disk. Throws the Error of the last write.
  void wait();

 private:
  struct Job;
  CheckpointOptions options_;
  std::unique_ptr<Job> job_;
};

// Paths of the whole checkpoints in an output folder, oldest first. Half-written folders and those
// with a missing or cut file are left out, with a warning for the latter.
std::vector<std::string> find_checkpoints(const std::string& folder);
// The last of them.
std::optional<std::string> latest_checkpoint(const std::string& folder);
// Why a folder is no whole checkpoint; empty when it is one.
std::string checkpoint_fault(const std::string& path);
// Throws Error naming the file.
TrainState read_train_state(const std::string& path);
// Deletes half-written folders of processes that are gone; returns how many.
int remove_unfinished_checkpoints(const std::string& folder);

}  // namespace reft
