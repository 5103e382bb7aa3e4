// A training run from its options to a model folder, or with LoRA an adapter's: texts,
// conversations and preferences; whole models, some of their layers or adapters.
//
// The loss of a step is the mean over all trained tokens of its micro-batches (stage kto: over
// their rows, dpo and rm: pairs): gradients are added up as sums and divided once, so that how a
// batch is cut into micro-batches changes nothing. The last step of an epoch takes the
// micro-batches that are left. A step without a trained token changes nothing. A run that is
// interrupted, at any micro-batch, and resumed gives the bits of one that was not.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "train/data/loader.h"
#include "train/lora.h"
#include "train/loss_guard.h"
#include "train/memory_estimate.h"
#include "train/optimizer.h"
#include "train/preference_loss.h"
#include "train/schedule.h"
#include "train/trainable.h"

namespace reft {

struct TrainerOptions {
  // Model and tokenizer.
  std::string model_path;      // a folder or a .gguf file
  std::string tokenizer_path;  // folder or file; empty: the model's
  std::string chat_template;   // its text; empty: the model's own
  Json chat_template_kwargs = Json::object();
  bool load_pretrained = true;  // else random weights for the folder's config.json
  Device device = kCpuDevice;
  std::string dtype = "auto";  // float32 or bfloat16; auto: the checkpoint's if it is one of both,
                               // else float32
  FineTuning fine_tuning = FineTuning::kFull;
  FreezeOptions freeze;
  LoraOptions lora;
  PreferenceOptions preference;  // stages dpo and kto
  std::string ref_model;         // what they are measured against; empty: model_path

  // Data. The loader's mix also says the seed of everything random, and what share of the rows is
  // held out; −1: 0.01 where test_every is set, as far as rows fall into it, else none.
  EncoderOptions encoder;
  LoaderOptions loader;

  // Optimisation. Steps are optimizer steps.
  int64_t grad_accumulation_steps = 1;  // micro-batches of a step
  double epochs = 1;
  int64_t max_steps = 0;  // instead of epochs, which must not be measured then
  OptimizerOptions optimizer;
  ScheduleOptions schedule;  // total_steps is set by the run
  double max_grad_norm = 1;  // 0: no clipping
  LossGuardOptions guard;
  Recompute recompute = Recompute::kNone;
  double neftune_noise_alpha = 0;  // noise on the embeddings, ± alpha / √(length · D); 0: none

  // Output.
  std::string output_dir;
  bool resume = false;     // from the newest whole checkpoint in output_dir, if there is one
  int64_t save_every = 0;  // 0: at the end only
  int64_t save_total_limit = 0;
  int64_t max_shard_bytes = 5'000'000'000;
  int64_t test_every = 0;  // evaluation on the rows held out; 0: none
  int64_t log_every = 1;
  bool quiet = false;
};

struct TrainResult {
  int64_t steps = 0;  // done in all, those before a resumption included
  int64_t total_steps = 0;
  bool interrupted = false;  // by should_stop; a checkpoint was saved
};

// Runs to the end, or until should_stop() (may be empty), which is asked after every micro-batch,
// is true. Writes checkpoints, train_log.jsonl, runs/ and loss.svg into output_dir, and at the end
// the model. Throws Error naming the option, file or row at fault; guards that end a run do so too.
TrainResult train(const TrainerOptions& options, const std::function<bool()>& should_stop = {});

// What it would be trained on, see dry_run(): loads no model.
std::string preview_training(const TrainerOptions& options, int64_t num_sequences, bool color);

}  // namespace reft
