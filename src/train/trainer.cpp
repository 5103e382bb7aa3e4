#include "train/trainer.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "base/log.h"
#include "engine/memory_plan.h"
#include "tensor/allocator.h"
#include "train/checkpoint.h"
#include "train/data/dry_run.h"
#include "train/flops.h"
#include "train/model_state.h"
#include "train/neftune.h"
#include "train/objective.h"
#include "train/train_data.h"
#include "train/train_log.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The most that this process has taken of the device's memory.
int64_t peak_memory(Device device) {
  if (device != kCpuDevice) return allocator_for(device).use().peak;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

void log_lines(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) log_info("train", "{}", line);
}

// What the micro-batches of a step have come to so far.
struct Window {
  int64_t batches = 0;
  double loss = 0;    // sum over the units
  int64_t units = 0;  // what the loss is a mean over: trained tokens, pairs or rows
  int64_t tokens = 0;
  double squared_lengths = 0;
  int64_t seq_len = 0;
  Metrics metrics;

  void add(const TrainBatch& batch) {
    ++batches;
    tokens += batch.num_tokens();
    seq_len = std::max(seq_len, batch.max_sequence_len);
    for (size_t i = 0; i + 1 < batch.sequence_start.size(); ++i) {
      squared_lengths += std::pow(batch.sequence_start[i + 1] - batch.sequence_start[i], 2);
    }
  }
  void add(const LossSum& sum) {
    loss += sum.loss;
    units += sum.units;
    metrics.add(sum.metrics);
  }
  Json to_json() const {
    return {batches, loss, units, tokens, squared_lengths, seq_len, metrics.to_json()};
  }
  static Window from_json(const Json& j) {
    return {j.at(0), j.at(1), j.at(2), j.at(3), j.at(4), j.at(5), Metrics::from_json(j.at(6))};
  }
};

// What a resumed run must share with the one before it for its batches and updates to be those that
// would have come.
Json identity_of(const TrainerOptions& o, const LoaderOptions& loader, DType dtype,
                 const LoraConfig& lora) {
  Json identity = {{"stage", stage_name(o.encoder.stage)},
                   {"batch_size", loader.batch_size},
                   {"grad_accumulation_steps", o.grad_accumulation_steps},
                   {"cutoff_len", o.encoder.cutoff_len},
                   {"packing", loader.packing},
                   {"shuffle", loader.mix.shuffle},
                   {"seed", loader.mix.seed},
                   {"val_size", loader.mix.validation_fraction},
                   {"fine_tuning_type", fine_tuning_name(o.fine_tuning)},
                   {"dtype", dtype_name(dtype)}};
  if (o.neftune_noise_alpha > 0) identity["neftune_noise_alpha"] = o.neftune_noise_alpha;
  if (is_lora(o.fine_tuning)) {
    identity["lora"] = adapter_config_json(lora);
    identity["lora"].erase("base_model_name_or_path");  // it may have moved
    identity["quantization_bit"] = o.lora.quantization_bit;
  }
  return identity;
}

void check_options(const TrainerOptions& o) {
  check_preferences(o.encoder.stage, o.preference, o.load_pretrained, o.ref_model);
  check(!o.output_dir.empty(), "--checkpoint_dir is missing: where checkpoints and the model go");
  check(o.grad_accumulation_steps >= 1, "--grad_accumulation_steps must be at least 1, got {}",
        o.grad_accumulation_steps);
  check(o.max_steps >= 0, "--max_steps must not be negative, got {}", o.max_steps);
  check(o.max_steps > 0 || (std::isfinite(o.epochs) && o.epochs > 0),
        "--epochs must be above 0, got {}", o.epochs);
  check(o.max_grad_norm >= 0, "--max_grad_norm must not be negative, got {}", o.max_grad_norm);
  check(o.save_every >= 0 && o.test_every >= 0,
        "--save_every and --test_every must not be negative");
  check(o.neftune_noise_alpha >= 0, "--neftune_noise_alpha must not be negative, got {}",
        o.neftune_noise_alpha);
  check(!is_lora(o.fine_tuning) || o.device == kCpuDevice,
        "--fine_tuning_type {} is there on the CPU alone so far: --device cpu",
        fine_tuning_name(o.fine_tuning));
  check(o.neftune_noise_alpha == 0 || o.device == kCpuDevice,
        "--neftune_noise_alpha is there on the CPU alone so far: --device cpu");
  check(o.lora.quantization_bit == 0 || is_lora(o.fine_tuning),
        "--quantization_bit {} needs --fine_tuning_type lora or qlora: quantised weights cannot be "
        "trained",
        o.lora.quantization_bit);
  check(o.load_pretrained || o.fine_tuning == FineTuning::kFull,
        "--no-load_pretrained needs --fine_tuning_type full: frozen random weights learn nothing");
}

// The base of an adapter: which type its weights take in memory.
void choose_base_type(const TrainerOptions& o, const std::string& path, LoadOptions* load) {
  const std::vector<CheckpointTensor> tensors = checkpoint_tensors(path);
  const bool blocks = std::ranges::any_of(
      tensors, [](const CheckpointTensor& t) { return is_block_format(t.value.dtype()); });
  int64_t bits = o.lora.quantization_bit;
  if (bits == 0 && o.fine_tuning == FineTuning::kQlora && !blocks) bits = 4;
  check(bits == 0 || !blocks, "--quantization_bit {}: the weights of '{}' are quantised already",
        bits, path);
  if (bits > 0) load->quantize = quantized_format(bits);
  // float32 expands blocks; any other type leaves them as they are.
  if (o.dtype == "auto" && (blocks || bits > 0)) load->dtype = "bfloat16";
  check(o.lora.quantization_bit == 0 || load->dtype != "float32",
        "--quantization_bit {} needs --dtype bfloat16: float32 would expand the weights again",
        bits);
}

// A folder with a configuration alone.
bool lacks_weights(const std::string& path) {
  if (!fs::exists(path + "/config.json")) return false;
  return std::ranges::none_of(fs::directory_iterator(path), [](const fs::directory_entry& entry) {
    return entry.path().extension() == ".safetensors" || entry.path().extension() == ".gguf";
  });
}

// What a model folder gets: a model's weights, or an adapter's.
struct ModelOutput {
  std::string stem{kModelStem};
  NamedTensors tensors;
  ModelFiles files;
};

class Trainer {
 public:
  Trainer(const TrainerOptions& options, const std::function<bool()>& should_stop);
  TrainResult run();

 private:
  void load();
  void load_adapter();
  void make_objective(const LoadOptions& load);
  void count_steps();
  void restore();
  void accumulate(const TrainBatch& batch);
  void settle_losses();
  void trim_memory();
  void finish_step();
  void evaluate();
  void save();
  ModelOutput output();
  void write_extra();
  void write_model();
  std::optional<std::string> start_point() const;
  double epoch() const;

  const TrainerOptions& options_;
  const std::function<bool()>& should_stop_;
  std::optional<std::string> resumed_;  // checkpoint that the run goes on from
  TrainData data_;
  LoadedModel model_;
  std::string source_;  // of the weights; empty: random ones
  FlopModel flops_;
  std::unique_ptr<Objective> objective_;
  std::optional<Optimizer> optimizer_;
  LossGuard guard_;
  std::optional<LearningRateSchedule> schedule_;
  std::optional<CheckpointWriter> writer_;
  std::optional<DataLoader> loader_;
  std::optional<TrainLog> log_;
  TrainingForward forward_;
  LoraConfig lora_;                       // of a run that trains an adapter
  std::shared_ptr<LoraDropout> dropout_;  // null where it trains none

  int64_t total_steps_ = 0;
  int64_t epoch_batches_ = 0;     // of a whole epoch; 0: not known
  int64_t epoch_ = 0;             // of the last batch
  int64_t batches_in_epoch_ = 0;  // so far
  int64_t step_ = 0;              // done
  int64_t saved_step_ = -1;       // of a checkpoint between two steps
  int64_t tested_step_ = -1;
  Window window_;
  Clock::time_point step_begin_;
};

Trainer::Trainer(const TrainerOptions& options, const std::function<bool()>& should_stop)
    : options_(options), should_stop_(should_stop), guard_(options.guard) {
  check_options(options);
  resumed_ = start_point();
  data_ = open_train_data(options);
  load();
  count_steps();
  ScheduleOptions schedule = options.schedule;
  schedule.total_steps = total_steps_;
  schedule_.emplace(schedule);
  writer_.emplace(CheckpointOptions{.folder = options.output_dir,
                                    .save_total_limit = options.save_total_limit,
                                    .max_shard_bytes = options.max_shard_bytes});
  loader_.emplace(data_.training, *data_.encoder);
  if (resumed_) restore();
  log_info("train", "Last done steps: {}", step_);
  log_info("train", "Fine tuning type: {}, optimizer: {}, learning rate: {}",
           fine_tuning_name(options.fine_tuning), optimizer_name(options.optimizer.kind),
           schedule_->str());
  log_.emplace(TrainLogOptions{
      .folder = options.output_dir,
      .start_step = step_,
      .total_steps = total_steps_,
      .total_epochs = epoch_batches_ > 0 ? options.epochs : 0,
      .log_every = options.log_every,
      .peak_flops = peak_flops(allocator_for(options.device).name(), model_.compute_dtype),
      .flops_formula = flops_formula(flops_),
      .quiet = options.quiet,
  });
}

// The checkpoint to go on from. An output folder with checkpoints belongs to another run unless
// this one resumes it.
std::optional<std::string> Trainer::start_point() const {
  std::optional<std::string> latest = latest_checkpoint(options_.output_dir);
  check(options_.resume || !latest,
        "'{}' holds checkpoints of an earlier run: go on with --resume, or choose another "
        "--checkpoint_dir",
        options_.output_dir);
  return latest;
}

void Trainer::load() {
  if (options_.device != kCpuDevice)
    log_info("train", "Training on {}: {}", options_.device, allocator_for(options_.device).name());
  const bool adapts = is_lora(options_.fine_tuning);
  const bool random = !resumed_ && !options_.load_pretrained;
  const std::string path = adapts ? options_.model_path : resumed_.value_or(options_.model_path);
  check(random || (resumed_ && !adapts) || !lacks_weights(path),
        "'{}' has no weights: --no-load_pretrained begins with random ones", path);
  LoadOptions load{.device = options_.device,
                   .load_format = random ? "dummy" : "auto",
                   .seed = options_.loader.mix.seed,
                   .max_model_len = options_.encoder.cutoff_len,
                   .quiet = options_.quiet};
  const auto described = describe_model(path, load);
  const ModelInfo& info = described->info();
  check(options_.encoder.cutoff_len <= info.max_position,
        "--cutoff_len {} is longer than the model's {} positions", options_.encoder.cutoff_len,
        info.max_position);
  DType dtype = info.checkpoint_dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  if (options_.dtype != "auto") dtype = parse_float_dtype(options_.dtype);
  check(dtype != DType::kF16,
        "--dtype float16 cannot be trained: gradients would vanish; use bfloat16");
  load.dtype = dtype_name(dtype);
  if (adapts) {
    choose_base_type(options_, path, &load);
    lora_ = options_.lora.adapter.empty() ? choose_lora(*described, options_.lora, path)
                                          : read_adapter(options_.lora.adapter).config;
    lora_.base_model = path;
    attach_lora(*described, lora_, 0);
    load.trainable = [this](const std::string& name) { return is_lora_trainable(name, lora_); };
  } else {
    load.trainable = choose_trainable(*described, options_.fine_tuning, options_.freeze);
  }
  if (options_.encoder.stage == Stage::kReward) {
    load.trainable = [chosen = load.trainable](const std::string& name) {
      return name != "lm_head.weight" && chosen(name);  // whose place the value head takes
    };
  }
  described->visit(
      [&](const std::string& name, Parameter& p) { p.trainable = load.trainable(name); });

  const bool on_cpu = options_.device == kCpuDevice;
  const MemoryOptions plan{.lora = adapts,
                           .trainable_dtype = adapts ? DType::kF32 : dtype,
                           .optimizer = options_.optimizer.kind,
                           .master_weights = options_.optimizer.master_weights,
                           .state_dtype = options_.optimizer.state_dtype,
                           .batch_size = options_.loader.batch_size,
                           .cutoff_len = options_.encoder.cutoff_len,
                           .recompute = options_.recompute,
                           .activation_bytes = on_cpu ? 4 : row_bytes(dtype, 1),
                           .loss_chunk_bytes = loss_chunk_bytes(options_.device)};
  MemoryModel memory = memory_model_of(*described, dtype);
  if (adapts) memory.weight_bytes = loaded_bytes(path, load);
  if (needs_reference(options_.encoder.stage, options_.preference)) {
    memory.reference_bytes = memory.weight_bytes;
  }
  log_lines(memory_report(
      memory, plan,
      on_cpu ? available_memory() : allocator_for(options_.device).device_memory().free));
  log_info("train", "Trained parameters: {} of {}", memory.trainable_parameters, memory.parameters);

  model_ = load_model(path, load);
  if (adapts) load_adapter();
  if (random) {
    log_info("train", "Random weights: --no-load_pretrained");
    initialize_weights(*model_.model, json_get<double>(model_.config, "initializer_range", 0.02),
                       options_.loader.mix.seed);
  } else {
    source_ = path;
  }
  flops_ = flop_model_of(*model_.model);
  forward_.recompute_layers = options_.recompute == Recompute::kFull ? info.num_layers : 0;
  make_objective(load);
  OptimizerOptions optimizer = options_.optimizer;
  optimizer.seed = options_.loader.mix.seed;
  std::vector<TrainParameter> parameters = train_parameters(*model_.model);
  for (TrainParameter& p : parameters) {
    if (options_.lora.loraplus_lr_ratio > 0 && p.name.ends_with(".lora_B.weight"))
      p.learning_rate_scale = options_.lora.loraplus_lr_ratio;
  }
  for (TrainParameter& p : objective_->parameters()) parameters.push_back(std::move(p));
  optimizer_.emplace(std::move(parameters), optimizer);
}

// The reference is what the run began with, also when it is resumed; with LoRA its base.
void Trainer::make_objective(const LoadOptions& load) {
  ReferenceModel reference;
  if (needs_reference(options_.encoder.stage, options_.preference)) {
    const std::string& path = options_.ref_model.empty() ? options_.model_path : options_.ref_model;
    log_info("train", "Reference model: {}", path);
    LoadOptions frozen = load;
    frozen.trainable = {};
    frozen.load_format = "auto";
    reference = load_reference(path, frozen, model_.model->info());
  }
  const std::string head = source_.empty() ? "" : resumed_.value_or(options_.model_path);
  objective_ =
      reft::make_objective(options_.encoder.stage, options_.preference, *model_.model,
                           options_.device, std::move(reference), head, options_.loader.mix.seed);
}

void Trainer::load_adapter() {
  const uint64_t seed = options_.loader.mix.seed;
  dropout_ = attach_lora(*model_.model, lora_, seed);
  initialize_lora(*model_.model, model_.device, seed);
  const std::string from = resumed_.value_or(options_.lora.adapter);
  if (!from.empty()) load_lora(*model_.model, read_adapter(from));
  log_info("train", "{}LoRA: rank {}, alpha {:g}, dropout {:g} on {}{}{}",
           lora_.use_dora     ? "Do"
           : lora_.use_rslora ? "rs"
                              : "",
           lora_.rank, lora_.alpha, lora_.dropout,
           lora_.target_modules.empty() ? lora_.target_pattern
                                        : fmt::format("{}", fmt::join(lora_.target_modules, ", ")),
           lora_.modules_to_save.empty() ? "" : "; trained whole: ",
           fmt::join(lora_.modules_to_save, ", "));
}

void Trainer::count_steps() {
  total_steps_ = options_.max_steps;
  if (total_steps_ > 0) return;
  log_info("train", "Measuring an epoch ...");
  const EpochSize size = measure_epoch(data_.training, *data_.encoder);
  epoch_batches_ = size.batches;
  const int64_t per_epoch =
      (size.batches + options_.grad_accumulation_steps - 1) / options_.grad_accumulation_steps;
  total_steps_ =
      static_cast<int64_t>(std::ceil(options_.epochs * static_cast<double>(per_epoch) - 1e-9));
  log_info("train", "An epoch: {} sequences, {} tokens, {} trained, {} micro-batches, {} steps",
           size.sequences, size.tokens, size.trained_tokens, size.batches, per_epoch);
}

void Trainer::restore() {
  const TrainState state = read_train_state(*resumed_);
  const Json mine = identity_of(options_, data_.training, model_.compute_dtype, lora_);
  for (const auto& [key, value] : mine.items()) {
    const Json saved = json_get<Json>(state.schedule, key.c_str(), Json());
    check(saved == value, "--resume: '{}' was trained with {} {}, this run has {}", *resumed_, key,
          saved.dump(), value.dump());
  }
  optimizer_->load(*open_checkpoint(*resumed_ + "/optimizer.safetensors"), state.optimizer);
  try {
    guard_.load(state.log.at("guard"));
    window_ = Window::from_json(state.log.at("window"));
    batches_in_epoch_ = state.log.at("batches_in_epoch").get<int64_t>();
  } catch (const nlohmann::json::exception& e) {
    fail("'{}/trainer_state.json' is damaged: {}", *resumed_, e.what());
  }
  if (window_.batches > 0) {
    const auto gradients = open_checkpoint(*resumed_ + "/gradients.safetensors");
    for (const TrainParameter& p : optimizer_->parameters()) {
      p.grad.copy_from(gradients->read(p.name));
    }
  }
  loader_->restore(state.data);
  epoch_ = loader_->epoch();
  step_ = state.step;
  if (window_.batches == 0) saved_step_ = step_;
  log_info("train", "Resumed from {}", *resumed_);
}

double Trainer::epoch() const {
  const double part = epoch_batches_ > 0 ? static_cast<double>(batches_in_epoch_) /
                                               static_cast<double>(epoch_batches_)
                                         : 0;
  return static_cast<double>(loader_->epoch()) + std::min(part, 1.0);
}

void Trainer::accumulate(const TrainBatch& batch) {
  if (std::exchange(epoch_, loader_->epoch()) != loader_->epoch()) batches_in_epoch_ = 0;
  ++batches_in_epoch_;
  window_.add(batch);
  const auto pass = static_cast<uint64_t>(step_ * options_.grad_accumulation_steps +
                                          window_.batches);  // other draws every time
  if (dropout_ != nullptr) dropout_->pass = pass;
  if (const double alpha = options_.neftune_noise_alpha; alpha > 0) {
    forward_.after_embedding = [this, &batch, alpha, pass](Tensor& embedded) {
      add_neftune_noise(embedded, batch.sequence_start, alpha, options_.loader.mix.seed, pass);
    };
  }
  window_.add(objective_->run(batch, forward_, /*backward=*/true));
}

// Reading them waits for the device: once a step.
void Trainer::settle_losses() { window_.loss += objective_->settle(); }

// Sequences of ever other lengths leave blocks of ever other sizes behind, which are kept for
// reuse: no more than twice what a micro-batch ever took.
void Trainer::trim_memory() {
  Allocator& allocator = allocator_for(model_.device);
  const MemoryUse use = allocator.use();
  if (use.cached > 2 * (use.peak - use.allocated)) allocator.trim();
}

void Trainer::finish_step() {
  settle_losses();
  const Window w = std::exchange(window_, {});
  StepRecord record{.step = step_ + 1,
                    .epoch = epoch(),
                    .learning_rate = schedule_->at(step_),
                    .seq_len = w.seq_len,
                    .tokens = w.tokens};
  if (w.units > 0) {
    const auto units = static_cast<double>(w.units);
    record.loss = w.loss / units;
    record.grad_norm = optimizer_->gradient_norm() / units;
    record.metrics = w.metrics.means();
    const LossGuard::Verdict verdict =
        guard_.check_step(record.step, record.loss, record.grad_norm);
    if (verdict.action == GuardAction::kAbort) {
      writer_->wait();
      const auto latest = latest_checkpoint(options_.output_dir);
      fail("training ends: {}; {}", verdict.reason,
           latest ? fmt::format("the latest checkpoint is '{}'", *latest)
                  : std::string("there is no checkpoint"));
    }
    if (!verdict.reason.empty()) {
      log_warning("train", "{}{}", verdict.reason,
                  verdict.action == GuardAction::kSkip ? ": skipped" : "");
    }
    if (verdict.action == GuardAction::kApply) {
      optimizer_->step(record.learning_rate,
                       clip_scale(record.grad_norm, options_.max_grad_norm) / units);
    }
    optimizer_->zero_gradients();
  } else {
    log_warning("train", "step {} has no token to learn: nothing changes", record.step);
  }
  ++step_;
  record.flops = step_flops(flops_, static_cast<double>(w.tokens), w.squared_lengths);
  record.seconds = seconds_since(step_begin_);
  record.memory_bytes = peak_memory(options_.device);
  log_->step(record);
  if (options_.test_every > 0 && step_ % options_.test_every == 0) evaluate();
  if (options_.save_every > 0 && step_ % options_.save_every == 0) save();
  step_begin_ = Clock::now();
}

void Trainer::evaluate() {
  if (data_.validation_batches == 0 || tested_step_ == step_) return;
  const Clock::time_point begin = Clock::now();
  DataLoader loader(data_.validation, *data_.encoder);
  EvalRecord record{.step = step_};
  Window all;
  TrainBatch batch;
  while (loader.next(&batch)) {
    all.add(objective_->run(batch, {}, /*backward=*/false));
    record.tokens += batch.num_trained;
    trim_memory();
  }
  if (all.units > 0) record.loss = all.loss / static_cast<double>(all.units);
  record.metrics = all.metrics.means();
  record.seconds = seconds_since(begin);
  log_->evaluation(record);
  tested_step_ = step_;
}

void Trainer::save() {
  if (saved_step_ == step_ && window_.batches == 0) return;
  settle_losses();
  CheckpointContents contents;
  contents.state.step = step_;
  contents.state.epoch = epoch();
  contents.state.optimizer = optimizer_->settings();
  contents.state.schedule = identity_of(options_, data_.training, model_.compute_dtype, lora_);
  contents.state.schedule["schedule"] = schedule_->str();
  contents.state.schedule["total_steps"] = total_steps_;
  contents.state.rng = {{"seed", options_.loader.mix.seed}};
  contents.state.data = loader_->state();
  contents.state.log = {{"guard", guard_.state()},
                        {"window", window_.to_json()},
                        {"batches_in_epoch", batches_in_epoch_}};
  ModelOutput out = output();
  contents.model_stem = out.stem;
  contents.model = std::move(out.tensors);
  contents.files = std::move(out.files);
  contents.tensors["optimizer"] = optimizer_->state();
  if (auto [stem, tensors] = objective_->extra_file(); !tensors.empty()) {
    contents.tensors[stem] = std::move(tensors);
  }
  if (window_.batches > 0) {
    for (const TrainParameter& p : optimizer_->parameters()) {
      contents.tensors["gradients"].emplace_back(p.name, p.grad);
    }
  }
  writer_->save(contents);
  saved_step_ = window_.batches == 0 ? step_ : -1;
  log_->note(fmt::format("Saving {}/checkpoint-{}", options_.output_dir, step_));
}

ModelOutput Trainer::output() {
  ModelOutput out;
  out.files = files_of_trained_model(options_, model_.config, model_.compute_dtype);
  if (dropout_ == nullptr) {
    out.tensors = model_tensors(*model_.model, source_, model_.compute_dtype);
    return out;
  }
  out.stem = kAdapterStem;
  out.tensors = adapter_tensors(lora_of(*model_.model, lora_));
  out.files.erase("config.json");  // the base model's
  out.files.erase("generation_config.json");
  out.files["adapter_config.json"] = adapter_config_json(lora_).dump(2) + "\n";
  return out;
}

void Trainer::write_extra() {
  if (const auto [stem, extra] = objective_->extra_file(); !extra.empty()) {
    write_safetensors(fmt::format("{}/{}.safetensors", options_.output_dir, stem), extra);
  }
}

void Trainer::write_model() {
  ModelOutput out = output();
  if (dropout_ != nullptr) {
    write_model_folder(options_.output_dir, out.stem, out.tensors, out.files, INT64_MAX);
    write_extra();
    log_info("train", "The adapter is in {}: reft serve --model {} --lora NAME={}",
             options_.output_dir, options_.model_path, options_.output_dir);
    return;
  }
  // What is trained has one type in the end; frozen tensors keep their bytes.
  std::set<const Storage*> trained;
  for (const TrainParameter& p : optimizer_->parameters()) trained.insert(p.value.storage().get());
  for (auto& [name, tensor] : out.tensors) {
    if (trained.contains(tensor.storage().get()))
      tensor = tensor.to(kCpuDevice).to(model_.compute_dtype);
  }
  const ModelFiles& files = out.files;
  write_model_folder(options_.output_dir, out.stem, out.tensors, files, options_.max_shard_bytes);
  write_extra();
  log_info("train", "The model is in {}", options_.output_dir);
  if (!files.contains("tokenizer.json") && !files.contains("tokenizer.model")) {
    const std::string& tokenizer =
        options_.tokenizer_path.empty() ? options_.model_path : options_.tokenizer_path;
    log_info("train", "Its tokenizer stays where it is: reft serve --model {} --tokenizer {}",
             options_.output_dir, tokenizer);
  }
}

TrainResult Trainer::run() {
  TrainResult result{.total_steps = total_steps_};
  bool first_epoch = step_ == 0;
  step_begin_ = Clock::now();
  while (step_ < total_steps_ && !result.interrupted) {
    TrainBatch batch;
    if (loader_->next(&batch)) {
      accumulate(batch);
      trim_memory();
      if (window_.batches == options_.grad_accumulation_steps) finish_step();
    } else {
      if (window_.batches > 0) finish_step();
      if (first_epoch) log_lines(describe_counts(loader_->counts()));
      first_epoch = false;
    }
    result.interrupted = should_stop_ && step_ < total_steps_ && should_stop_();
  }
  result.steps = step_;
  if (!result.interrupted && options_.test_every > 0) evaluate();
  save();
  writer_->wait();
  log_->finish();
  if (!result.interrupted) write_model();
  return result;
}

}  // namespace

TrainResult train(const TrainerOptions& options, const std::function<bool()>& should_stop) {
  return Trainer(options, should_stop).run();
}

std::string preview_training(const TrainerOptions& options, int64_t num_sequences, bool color) {
  const TrainData data = open_train_data(options);
  return dry_run(data.training, *data.encoder, *data.tokenizer, num_sequences, color);
}

}  // namespace reft
