#include "train/train_log.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"

namespace reft {
namespace {

constexpr const char* kComponent = "train";
constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

// Means of loss, norm and metrics, sums of tokens, FLOPs and seconds, the largest of the rest.
StepRecord mean_of(const std::vector<StepRecord>& records) {
  StepRecord mean = records.back();
  const auto n = static_cast<double>(records.size());
  mean.loss = mean.grad_norm = mean.flops = mean.seconds = 0;
  mean.tokens = 0;
  for (const StepRecord& r : records) {
    mean.loss += r.loss / n;
    mean.grad_norm += r.grad_norm / n;
    mean.seq_len = std::max(mean.seq_len, r.seq_len);
    mean.memory_bytes = std::max(mean.memory_bytes, r.memory_bytes);
    mean.tokens += r.tokens;
    mean.flops += r.flops;
    mean.seconds += r.seconds;
  }
  mean.metrics.clear();
  std::map<std::string, std::pair<double, double>> sums;
  for (const StepRecord& r : records) {
    for (const auto& [name, value] : r.metrics) {
      auto& [sum, count] = sums[name];
      sum += value;
      ++count;
    }
  }
  for (const auto& [name, sum] : sums) mean.metrics.emplace_back(name, sum.first / sum.second);
  return mean;
}

double per_second(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

// MFU; 0 when it cannot be told.
double utilisation(const TrainLogOptions& options, const StepRecord& r) {
  return options.peak_flops > 0 ? per_second(r.flops, r.seconds) / options.peak_flops : 0;
}

std::string rate_text(double learning_rate) {
  const bool small = learning_rate > 0 && learning_rate < 1e-5;
  return small ? fmt::format("{:.3e}", learning_rate) : fmt::format("{:.7f}", learning_rate);
}

std::string metrics_text(const NamedValues& metrics) {
  std::string text;
  for (const auto& [name, value] : metrics) text += fmt::format(", {}: {:.4g}", name, value);
  return text;
}

}  // namespace

std::string short_number(double value) {
  if (value < 999.5) return fmt::format("{:.0f}", value);
  if (value < 999'950) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.2f}M", value / 1e6);
}

std::string duration_text(double seconds) {
  const auto all = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  const int64_t days = all / 86400, hours = all / 3600 % 24, minutes = all / 60 % 60;
  if (days > 0) return fmt::format("{} d {:02}:{:02}:{:02}", days, hours, minutes, all % 60);
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, all % 60);
  if (minutes > 0) return fmt::format("{}:{:02}", minutes, all % 60);
  return fmt::format("{}", all);
}

TrainLog::TrainLog(TrainLogOptions options) : options_(std::move(options)) {
  check(options_.log_every >= 1, "--log_every must be at least 1, got {}", options_.log_every);
  if (options_.rank == 0) {
    std::error_code error;
    std::filesystem::create_directories(options_.folder, error);
    check(!error, "cannot create folder '{}': {}", options_.folder, error.message());
    load_history();
    const std::string path = options_.folder + "/train_log.jsonl";
    jsonl_ = std::fopen(path.c_str(), "ae");
    check(jsonl_ != nullptr, "cannot open '{}': {}", path, std::strerror(errno));
    if (options_.tensorboard) {
      tensorboard_ =
          std::make_unique<TensorBoardWriter>(options_.folder + "/runs", options_.start_step);
    }
  }
  if (options_.quiet) return;
  log_info(kComponent, "++++++++++++++++++++++ Training +++++++++++++++++++++++");
  log_info(
      kComponent, "Start from steps: {}, total steps: {}{}", options_.start_step,
      options_.total_steps,
      options_.total_epochs > 0 ? fmt::format(", total epochs: {:g}", options_.total_epochs) : "");
  if (options_.peak_flops > 0) {
    log_info(kComponent, "MFU: FLOPs of a step / seconds / {:.4g} FLOP/s, with FLOPs = {}",
             options_.peak_flops, options_.flops_formula);
  }
  bar_ = std::make_unique<ProgressBar>(options_.total_steps - options_.start_step, "Training ...",
                                       false, options_.rank != 0);
}

TrainLog::~TrainLog() {
  try {
    finish();
  } catch (const std::exception& e) {
    log_error(kComponent, "{}", e.what());
  }
  if (jsonl_ != nullptr) std::fclose(jsonl_);
}

void TrainLog::load_history() {
  const std::string path = options_.folder + "/train_log.jsonl";
  if (!std::filesystem::exists(path)) return;
  const std::string text = read_file(path);
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    const Json entry = Json::parse(line, nullptr, false);
    if (!entry.is_object()) continue;  // cut by a crash
    const auto step = json_get<int64_t>(entry, "step", 0);
    if (step > options_.start_step) continue;
    kept += line + "\n";
    if (entry.contains("loss")) train_.push_back({step, json_get(entry, "loss", kMissing)});
    if (entry.contains("eval_loss"))
      eval_.push_back({step, json_get(entry, "eval_loss", kMissing)});
  }
  if (kept != text) write_file_atomic(path, kept);
}

void TrainLog::append(const std::string& json_line) {
  if (jsonl_ == nullptr) return;
  std::fprintf(jsonl_, "%s\n", json_line.c_str());
  check(std::fflush(jsonl_) == 0, "cannot write '{}/train_log.jsonl': {}", options_.folder,
        std::strerror(errno));
}

void TrainLog::step(const StepRecord& record) {
  pending_.push_back(record);
  train_.push_back({record.step, record.loss});
  if (bar_) bar_->advance();
  if (record.step % options_.log_every == 0 || record.step >= options_.total_steps) {
    print_pending();
  }
}

std::string step_line(const TrainLogOptions& options, const StepRecord& r,
                      double steps_per_second) {
  std::string line = fmt::format(
      "[{}/{}] [{}/{}] loss: {:.5f}{}, lr: {}, seq_len: {}, grad_norm: {:.4g}, tokens/s: {}",
      options.rank, options.world_size, r.step, options.total_steps, r.loss,
      metrics_text(r.metrics), rate_text(r.learning_rate), r.seq_len, r.grad_norm,
      short_number(per_second(static_cast<double>(r.tokens), r.seconds)));
  if (const double mfu = utilisation(options, r); mfu > 0) {
    line += fmt::format(", MFU: {:.1f}%", 100 * mfu);
  }
  if (r.memory_bytes > 0) {
    line += fmt::format(", mem: {:.1f} GB", static_cast<double>(r.memory_bytes) / 1e9);
  }
  const int64_t left = options.total_steps - r.step;
  if (steps_per_second > 0 && left > 0) {
    line += ", eta: " + duration_text(static_cast<double>(left) / steps_per_second);
  }
  return line;
}

void TrainLog::print_pending() {
  if (pending_.empty()) return;
  const StepRecord r = mean_of(pending_);
  const double steps_per_second = per_second(static_cast<double>(pending_.size()), r.seconds);
  pending_.clear();
  if (!options_.quiet) note(step_line(options_, r, steps_per_second));
  const double speed = per_second(static_cast<double>(r.tokens), r.seconds);
  const double mfu = utilisation(options_, r);
  Json entry = {{"step", r.step},          {"epoch", r.epoch},     {"loss", r.loss},
                {"lr", r.learning_rate},   {"seq_len", r.seq_len}, {"grad_norm", r.grad_norm},
                {"tokens", r.tokens},      {"seconds", r.seconds}, {"tokens_per_second", speed},
                {"memory", r.memory_bytes}};
  if (mfu > 0) entry["mfu"] = mfu;
  for (const auto& [name, value] : r.metrics) entry[name] = value;
  append(entry.dump());
  if (!tensorboard_) return;
  for (const auto& [name, value] : r.metrics) {
    tensorboard_->add_scalar("train/" + name, r.step, value);
  }
  tensorboard_->add_scalar("train/loss", r.step, r.loss);
  tensorboard_->add_scalar("train/learning_rate", r.step, r.learning_rate);
  tensorboard_->add_scalar("train/grad_norm", r.step, r.grad_norm);
  tensorboard_->add_scalar("train/epoch", r.step, r.epoch);
  tensorboard_->add_scalar("train/tokens_per_second", r.step, speed);
  tensorboard_->add_scalar("train/memory_gb", r.step, static_cast<double>(r.memory_bytes) / 1e9);
  if (mfu > 0) tensorboard_->add_scalar("train/mfu", r.step, mfu);
}

void TrainLog::evaluation(const EvalRecord& r) {
  eval_.push_back({r.step, r.loss});
  if (!options_.quiet) {
    const std::string more = r.metrics.empty()
                                 ? fmt::format(", perplexity: {:.3f}", std::exp(r.loss))
                                 : metrics_text(r.metrics);
    note(fmt::format("[{}/{}] [{}/{}] eval_loss: {:.5f}{}, tokens: {}, {:.1f} s", options_.rank,
                     options_.world_size, r.step, options_.total_steps, r.loss, more, r.tokens,
                     r.seconds));
  }
  Json entry = {
      {"step", r.step}, {"eval_loss", r.loss}, {"eval_tokens", r.tokens}, {"seconds", r.seconds}};
  for (const auto& [name, value] : r.metrics) entry["eval_" + name] = value;
  append(entry.dump());
  if (tensorboard_) {
    tensorboard_->add_scalar("eval/loss", r.step, r.loss);
    for (const auto& [name, value] : r.metrics) {
      tensorboard_->add_scalar("eval/" + name, r.step, value);
    }
  }
  flush();
}

void TrainLog::note(const std::string& text) {
  if (bar_) bar_->hide();
  log_info(kComponent, "{}", text);
}

void TrainLog::flush() {
  if (options_.rank != 0) return;
  if (tensorboard_) tensorboard_->flush();
  write_file_atomic(options_.folder + "/loss.svg", loss_plot_svg({options_.title, train_, eval_}));
}

void TrainLog::finish() {
  print_pending();
  if (bar_) bar_->finish();
  flush();
}

}  // namespace reft
