// What a run reads besides weights: tokenizer, template, encoder and the options of its loaders.
#pragma once

#include <memory>

#include "train/checkpoint.h"
#include "train/trainer.h"

namespace reft {

struct TrainData {
  std::unique_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<const ChatEncoder> chat;  // null where there is no template
  std::unique_ptr<const ExampleEncoder> encoder;
  LoaderOptions training;
  LoaderOptions validation;
  int64_t validation_batches = 0;  // 0: nothing to evaluate on
};

// Throws Error naming the file or option; where rows are to be held out by --val_size and there are
// none, too.
TrainData open_train_data(const TrainerOptions& options);

// What a folder with the trained weights needs beside them: configuration for weights of `dtype`,
// tokenizer, template.
ModelFiles files_of_trained_model(const TrainerOptions& options, const Json& config, DType dtype);

}  // namespace reft
