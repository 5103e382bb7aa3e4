// What a run tells: log lines, a progress bar, train_log.jsonl, TensorBoard events and the loss
// plot, all in the output folder. One thread at a time.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/progress.h"
#include "train/plot.h"
#include "train/tensorboard.h"

namespace reft {

using NamedValues = std::vector<std::pair<std::string, double>>;

struct StepRecord {
  int64_t step = 0;  // optimizer steps done, this one included: counts from 1
  double epoch = 0;
  double loss = 0;  // mean over the step's trained tokens, pairs or rows
  double learning_rate = 0;
  double grad_norm = 0;  // before clipping
  int64_t seq_len = 0;   // longest sequence
  int64_t tokens = 0;    // that went through the model, padding left out
  double flops = 0;      // see step_flops(); 0: not known
  double seconds = 0;
  int64_t memory_bytes = 0;  // peak
  NamedValues metrics;       // what the stage tells beside its loss: "rewards/margins" …
};

struct EvalRecord {
  int64_t step = 0;
  double loss = 0;
  int64_t tokens = 0;  // trained ones
  double seconds = 0;
  NamedValues metrics;
};

struct TrainLogOptions {
  std::string folder;
  std::string title = "Training loss";  // of the plot
  int64_t start_step = 0;               // steps done before this run
  int64_t total_steps = 0;
  double total_epochs = 0;       // 0: not known
  int64_t log_every = 1;         // --log_every: steps per line
  int rank = 0, world_size = 1;  // only rank 0 writes files
  double peak_flops = 0;         // of all devices; 0: no MFU
  std::string flops_formula;     // printed once, with MFU
  bool tensorboard = true;
  bool quiet = false;  // no lines and no bar; files are written
};

// A line of the log, with [rank/ranks] [steps done/all]:
//   [0/1] [12/5000] loss: 1.64062, lr: 0.0000400, seq_len: 288, grad_norm: 0.812, tokens/s: 12.1k,
//   MFU: 41.2%, mem: 10.3 GB, eta: 1:02:33
std::string step_line(const TrainLogOptions& options, const StepRecord& record,
                      double steps_per_second);

// With log_every over 1 a line tells means over the steps since the one before, of seq_len and
// memory the largest. The same numbers go to train_log.jsonl, a JSON object per line, and to
// TensorBoard under runs/.
class TrainLog {
 public:
  // Entries of an earlier run above start_step are dropped from train_log.jsonl: they are trained
  // again. Throws Error naming the file.
  explicit TrainLog(TrainLogOptions options);
  ~TrainLog();

  void step(const StepRecord& record);
  void evaluation(const EvalRecord& record);
  // A line that does not collide with the bar.
  void note(const std::string& text);
  // Writes TensorBoard's buffer and loss.svg. Evaluations and the end do it too.
  void flush();
  // The last line, even where log_every is not reached, the finished bar, flush().
  void finish();

 private:
  void load_history();
  void append(const std::string& json_line);
  void print_pending();

  TrainLogOptions options_;
  std::unique_ptr<ProgressBar> bar_;
  std::unique_ptr<TensorBoardWriter> tensorboard_;
  std::FILE* jsonl_ = nullptr;
  std::vector<StepRecord> pending_;
  std::vector<PlotPoint> train_, eval_;
};

// "987", "12.1k", "3.25M".
std::string short_number(double value);
// "59", "12:33", "1:02:33", "3 d 01:02:33".
std::string duration_text(double seconds);

}  // namespace reft
