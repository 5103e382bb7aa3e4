// reft train: pre-training and fine-tuning.
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <sstream>

#include "base/log.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "tensor/safetensors_writer.h"
#include "text/chat_template.h"
#include "train/trainer.h"

namespace reft {
namespace {

// While it lives, the first SIGTERM or SIGINT is noted; a second one ends the process.
class StopSignals {
 public:
  StopSignals() {
    signal_ = 0;
    struct sigaction action = {};
    action.sa_handler = [](int signal) { signal_ = signal; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGTERM, &action, &old_term_);
    sigaction(SIGINT, &action, &old_int_);
  }
  ~StopSignals() {
    sigaction(SIGTERM, &old_term_, nullptr);
    sigaction(SIGINT, &old_int_, nullptr);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  static int received() { return signal_; }

 private:
  static inline std::atomic<int> signal_ = 0;
  struct sigaction old_term_ = {}, old_int_ = {};
};

// "a,b" is two items, as in LLaMA-Factory's flags.
std::vector<std::string> split_commas(const std::vector<std::string>& items) {
  std::vector<std::string> out;
  for (const std::string& item : items) {
    std::istringstream parts(item);
    for (std::string part; std::getline(parts, part, ',');) {
      std::erase(part, ' ');
      if (!part.empty()) out.push_back(part);
    }
  }
  return out;
}

// "3" and "5-9".
std::vector<int64_t> parse_layers(const std::vector<std::string>& items) {
  std::vector<int64_t> out;
  for (const std::string& item : split_commas(items)) {
    int64_t first = -1, last = -1;
    const char* end = item.data() + item.size();
    auto parsed = std::from_chars(item.data(), end, first);
    last = first;
    if (parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == '-')
      parsed = std::from_chars(parsed.ptr + 1, end, last);
    check(parsed.ec == std::errc() && parsed.ptr == end && first >= 0 && first <= last &&
              last < 100000,
          "--lora_layers: '{}' is neither a layer (3) nor a range (5-9)", item);
    for (; first <= last; ++first) out.push_back(first);
  }
  return out;
}

struct TrainOptions {
  static constexpr const char* kName = "train";
  static constexpr const char* kSummary = "pre-train or fine-tune a model";
  static constexpr const char* kDescription =
      "Trains a model on data sets and writes a Hugging Face folder that reft serve loads, with "
      "checkpoints, a log and a plot of the loss. Ctrl-C or SIGTERM saves a checkpoint first; "
      "--resume goes on from it. docs/training.md tells what the flags do.";

  ModelFlags model;
  TrainerOptions trainer;
  std::string dtype = "auto", stage = "sft", fine_tuning = "full", device = "auto",
              pref_loss = "sigmoid";
  std::string text_unit = "line", dataset_info, chat_template_kwargs;
  std::string optimizer = "adamw", states = "float32";
  std::string schedule = "cosine", decay_shape = "linear";
  std::string nan_policy = "abort", spike_policy = "apply";
  std::string checkpointing = "none", shard_size = "5GB", log_level = "info";
  std::vector<std::string> datasets, lora_layers;
  bool use_bf16 = false, dry_run = false;
  int64_t tensor_parallels = 1, pipeline_parallels = 1, data_parallels = 1;
  int64_t nodes = 1, gpus_per_node = 1, seed = 0;
  int64_t dry_run_sequences = 3;

  TrainOptions() {
    trainer.schedule.learning_rate = 1e-5;
    trainer.loader.mix.validation_fraction = -1;
  }

  void declare(ArgParser& parser) {
    model.declare_source(parser);
    declare_method(parser);
    declare_preferences(parser);
    declare_data(parser);
    declare_optimization(parser);
    declare_output(parser);
    parser.example(
        "reft train --stage sft --model ./Qwen3-0.6B --datasets alpaca@alpaca.json --epochs 3 "
        "--learning_rate 1e-5 --checkpoint_dir out",
        "Fine-tune a whole model on conversations:");
    parser.example("reft train --model ./Qwen3-0.6B --datasets alpaca@alpaca.json --dry_run",
                   "See which tokens would be learnt:");
    parser.example(
        "reft train --stage dpo --model ./Qwen3-0.6B --datasets pairs@pairs.jsonl --pref_beta 0.1 "
        "--learning_rate 5e-6 --checkpoint_dir out",
        "Prefer the chosen answers of pairs:");
    parser.example(
        "reft train --stage pt --no-load_pretrained --model ./config --datasets text@corpus.txt "
        "--learning_rate 1e-3 --checkpoint_dir out",
        "A new model, from config.json and a tokenizer alone:");
  }

  void declare_method(ArgParser& parser) {
    parser.group("Method");
    parser.add("stage", &stage,
               "pt learns texts, sft the answers of conversations, dpo and kto which answers are "
               "preferred; rm makes a reward model of it.");
    parser.choices("stage", {"pt", "sft", "dpo", "kto", "rm"});
    parser.add("fine_tuning_type", &fine_tuning,
               "full trains all parameters, freeze some of the layers, lora low-rank adapters "
               "beside the frozen weights, qlora such on 4-bit weights.",
               {"finetuning_type"});
    parser.choices("fine_tuning_type", {"full", "freeze", "lora", "qlora"});
    parser.add("load_pretrained", &trainer.load_pretrained,
               "Begin with the model's weights; --no-load_pretrained: with random ones.");
    parser.add("dtype", &dtype,
               "Type of the weights. auto: the checkpoint's, float32 where it is neither.");
    parser.choices("dtype", {"auto", "float32", "bfloat16"});
    parser.add("use_bf16", &use_bf16, "The same as --dtype bfloat16.", {"bf16"});
    parser.add("freeze_trainable_layers", &trainer.freeze.layers,
               "freeze: train the last n layers, of a negative number the first n.");
    parser.add("freeze_trainable_modules", &trainer.freeze.modules,
               "freeze: modules of these layers (self_attn, mlp ...); all without it.");
    parser.add("freeze_extra_modules", &trainer.freeze.extra_modules,
               "freeze: modules beside the layers (embed_tokens, lm_head, norm).");
    declare_lora(parser);
    parser.add("device", &device, "Where to train.");
    parser.choices("device", {"auto", "cpu", "cuda"});
    for (const auto& [name, value] :
         {std::pair("tensor_parallels", &tensor_parallels),
          std::pair("pipeline_parallels", &pipeline_parallels),
          std::pair("data_parallels", &data_parallels), std::pair("nodes", &nodes),
          std::pair("gpus_per_node", &gpus_per_node)}) {
      parser.add(name, value, "Only 1 so far: one process trains.");
    }
    parser.ignored("block_size", "training keeps no KV cache");
  }

  void declare_lora(ArgParser& parser) {
    LoraOptions& lora = trainer.lora;
    parser.add("lora_rank", &lora.rank, "lora: rows of A.", {"lora_r"});
    parser.add("lora_alpha", &lora.alpha, "lora: the scale is alpha / rank; 0: 2 x rank.");
    parser.add("lora_dropout", &lora.dropout, "lora: share of A's input that becomes 0.");
    parser.add("lora_target", &lora.targets,
               "lora: modules with an adapter (q_proj, down_proj ...); all: every linear module of "
               "the layers.",
               {"lora_target_modules"});
    parser.add("lora_layers", &lora_layers,
               "lora: numbers of the layers with adapters, such as 0,5,20-29; all without it.",
               {"layers_to_transform"});
    parser.add("use_rslora", &lora.use_rslora, "lora: the scale is alpha / sqrt(rank).");
    parser.add("use_dora", &lora.use_dora, "lora: learn the lengths of the rows too (DoRA).");
    parser.add("loraplus_lr_ratio", &lora.loraplus_lr_ratio,
               "lora: B's learning rate over A's (LoRA+); 0: the same.");
    parser.add("additional_target", &lora.additional_targets,
               "lora: modules that are trained whole and saved with the adapter (embed_tokens, "
               "lm_head, norm).",
               {"modules_to_save"});
    parser.add("adapter_name_or_path", &lora.adapter,
               "lora: folder of an adapter to go on from, PEFT's or reft's; its settings count.");
    parser.add("quantization_bit", &lora.quantization_bit,
               "lora: round plain weights to 4 (Q4_1) or 8 (Q8_0) bits at load; 0: as they are, "
               "with qlora 4.");
  }

  void declare_preferences(ArgParser& parser) {
    PreferenceOptions& p = trainer.preference;
    parser.group("Preferences");
    parser.add("pref_loss", &pref_loss, "dpo: the loss of a pair.");
    parser.choices("pref_loss", {"sigmoid", "ipo", "hinge", "orpo", "simpo"});
    parser.add("pref_beta", &p.beta, "dpo, kto: how closely the reference is kept to.");
    parser.add("pref_ftx", &p.ftx, "dpo, kto: weight of the loss of sft on the preferred answers.");
    parser.add("dpo_label_smoothing", &p.label_smoothing,
               "sigmoid: share of the pairs that are taken to be the wrong way round.");
    parser.add("simpo_gamma", &p.simpo_gamma, "simpo: the margin that is aimed at.");
    parser.add("kto_chosen_weight", &p.kto_chosen_weight, "kto: weight of the good rows.");
    parser.add("kto_rejected_weight", &p.kto_rejected_weight, "kto: weight of the others.");
    parser.add("ref_model", &trainer.ref_model,
               "dpo, kto: the model to be measured against; without it, the one begun with.");
  }

  void declare_data(ArgParser& parser) {
    parser.group("Data");
    parser.add("datasets", &datasets,
               "name@path or name@path#weight, repeatable: a file, a pattern or a folder of json, "
               "jsonl, csv, txt or parquet.",
               {"dataset"});
    parser.add("dataset_info", &dataset_info,
               "A dataset_info.json; --datasets may then name its entries.");
    parser.add("text_unit", &text_unit, "What of a .txt file is a row.");
    parser.choices("text_unit", {"line", "paragraph", "document"});
    parser.add("cutoff_len", &trainer.encoder.cutoff_len, "Longest sequence in tokens.");
    parser.add("packing", &trainer.loader.packing,
               "sft: fill sequences of cutoff_len with whole rows, which do not see each other.");
    parser.add("train_on_prompt", &trainer.encoder.train_on_prompt,
               "sft: learn all tokens, not the answers alone.");
    parser.add("mask_history", &trainer.encoder.mask_history,
               "sft: learn the last answer of a conversation alone.");
    parser.add("chat_template_kwargs", &chat_template_kwargs,
               "JSON object of template variables, e.g. '{\"enable_thinking\": false}'.");
    parser.add("skip_bad_rows", &trainer.loader.mix.skip_bad_rows,
               "Count rows that do not fit and pass over them.");
    parser.add("shuffle", &trainer.loader.mix.shuffle, "Another order of the rows every epoch.");
    parser.add("val_size", &trainer.loader.mix.validation_fraction,
               "Share of the rows that is held out for --test_every; -1: 0.01 with --test_every.");
    parser.add("seed", &seed, "Seed of everything random.");
    parser.add("dry_run", &dry_run, "Show what would be learnt, and train nothing.");
    parser.add("dry_run_sequences", &dry_run_sequences, "Sequences that --dry_run shows.");
  }

  void declare_optimization(ArgParser& parser) {
    OptimizerOptions& o = trainer.optimizer;
    ScheduleOptions& s = trainer.schedule;
    parser.group("Optimization");
    parser.add("batch_size", &trainer.loader.batch_size,
               "Rows, or packed sequences, of a micro-batch.", {"per_device_train_batch_size"});
    parser.add("grad_accumulation_steps", &trainer.grad_accumulation_steps,
               "Micro-batches of a step.", {"gradient_accumulation_steps"});
    parser.add("epochs", &trainer.epochs, "Passes over the data; may be a fraction.",
               {"num_train_epochs"});
    parser.add("max_steps", &trainer.max_steps,
               "Optimizer steps instead of --epochs; the data is not measured first.");
    parser.add("learning_rate", &s.learning_rate, "The highest learning rate.", {"lr"});
    parser.add("lr_scheduler_type", &schedule, "Its course.");
    parser.choices("lr_scheduler_type",
                   {"constant", "linear", "cosine", "step", "wsd", "inverse_sqrt"});
    parser.add("warmup_steps", &s.warmup_steps, "Steps in which it rises from 0.");
    parser.add("learning_rate_decay_frac", &s.decay_frac,
               "Its lowest value after the peak as a fraction of the peak; 1: it never falls.");
    parser.add("lr_step_size", &s.step_size,
               "step: steps between falls; 0: a third of those after the warm-up.");
    parser.add("lr_gamma", &s.gamma, "step: factor of a fall.");
    parser.add("lr_decay_steps", &s.decay_steps,
               "wsd: steps of the fall at the end; 0: a tenth of all.");
    parser.add("lr_decay_shape", &decay_shape, "wsd: course of that fall.");
    parser.choices("lr_decay_shape", {"linear", "cosine", "1-sqrt"});
    parser.add("optimizer", &optimizer, "Rule of the updates.", {"optim"});
    parser.choices("optimizer", {"adamw", "adamw_8bit", "muon", "sgd"});
    parser.add("weight_decay", &o.weight_decay, "Of matrices; norms and biases never decay.");
    parser.add("beta1", &o.beta1, "Of AdamW.", {"adam_beta1"});
    parser.add("beta2", &o.beta2, "Of AdamW.", {"adam_beta2"});
    parser.add("eps", &o.eps, "Of AdamW.", {"adam_epsilon"});
    parser.add("momentum", &o.momentum, "Of sgd.");
    parser.add("muon_momentum", &o.muon_momentum, "Of muon.");
    parser.add("master_weights", &o.master_weights,
               "Keep a float32 copy of bfloat16 weights; without it updates are rounded "
               "stochastically.");
    parser.add("optimizer_state_dtype", &states, "Type of AdamW's moments.");
    parser.choices("optimizer_state_dtype", {"float32", "bfloat16"});
    parser.add("max_grad_norm", &trainer.max_grad_norm, "Longest gradient; 0: any.");
    parser.add("nan_policy", &nan_policy,
               "A loss that is not finite ends the run, or its step is skipped.");
    parser.choices("nan_policy", {"abort", "skip"});
    parser.add("spike_policy", &spike_policy, "A loss spike is warned of, skipped, or the end.");
    parser.choices("spike_policy", {"apply", "skip", "abort"});
    parser.add("spike_sigma", &trainer.guard.spike_sigma,
               "Standard deviations above the mean of the last 128 steps that make a spike.");
    parser.add("activation_checkpointing", &checkpointing,
               "full keeps the input of each layer alone and computes the rest again.");
    parser.choices("activation_checkpointing", {"none", "full"});
    parser.add("neftune_noise_alpha", &trainer.neftune_noise_alpha,
               "Size of the noise on the embeddings (NEFTune), 5 to 15; 0: none.");
  }

  void declare_output(ArgParser& parser) {
    parser.group("Output");
    parser.add("checkpoint_dir", &trainer.output_dir,
               "Folder of the checkpoints, the log and, at the end, the model.", {"output_dir"});
    parser.add("resume", &trainer.resume,
               "Go on from the newest whole checkpoint in it, if there is one.");
    parser.add("save_every", &trainer.save_every,
               "Steps between checkpoints; 0: only at the end and when stopped.", {"save_steps"});
    parser.add("save_total_limit", &trainer.save_total_limit,
               "Newest checkpoints to keep; 0: all.");
    parser.add("max_shard_size", &shard_size, "Largest file of weights.");
    parser.add("test_every", &trainer.test_every,
               "Steps between evaluations on the rows held out; 0: none.", {"eval_steps"});
    parser.add("log_every", &trainer.log_every, "Steps per line of the log.", {"logging_steps"});
    parser.add("log_level", &log_level, "Least important lines that are printed.");
    parser.choices("log_level", {"debug", "info", "warning", "error"});
  }

  // What the product has a name for but this build cannot do.
  void check_available() const {
    for (const auto& [name, value] :
         {std::pair("tensor_parallels", tensor_parallels),
          std::pair("pipeline_parallels", pipeline_parallels),
          std::pair("data_parallels", data_parallels), std::pair("nodes", nodes),
          std::pair("gpus_per_node", gpus_per_node)}) {
      check(value == 1, "--{} {} is not there yet: 1 is, one process trains", name, value);
    }
    check(!use_bf16 || dtype == "auto" || dtype == "bfloat16",
          "--use_bf16 and --dtype {} exclude each other", dtype);
    check(!datasets.empty(), "--datasets is missing: name@path, see reft train --help");
    check(seed >= 0, "--seed must not be negative, got {}", seed);
    const double share = trainer.loader.mix.validation_fraction;
    check(share == -1 || (share >= 0 && share < 1), "--val_size must be from 0 to below 1, got {}",
          share);
  }

  void fill_trainer() {
    TrainerOptions& t = trainer;
    t.encoder.stage = parse_stage(stage);
    t.preference.loss = parse_preference_loss(pref_loss);
    t.fine_tuning = parse_fine_tuning(fine_tuning);
    t.lora.targets = split_commas(t.lora.targets);
    t.lora.additional_targets = split_commas(t.lora.additional_targets);
    t.lora.layers = parse_layers(lora_layers);
    t.dtype = use_bf16 ? "bfloat16" : dtype;
    t.loader.mix.text_unit = parse_text_unit(text_unit);
    t.loader.mix.seed = static_cast<uint64_t>(seed);
    for (const std::string& text : datasets)
      t.loader.mix.datasets.push_back(parse_dataset(text, dataset_info));
    if (!chat_template_kwargs.empty()) {
      t.chat_template_kwargs = parse_json(chat_template_kwargs, "--chat_template_kwargs");
      check(t.chat_template_kwargs.is_object(), "--chat_template_kwargs must be a JSON object");
    }
    if (!model.chat_template.empty()) t.chat_template = resolve_chat_template(model.chat_template);
    t.optimizer.kind = parse_optimizer(optimizer);
    t.optimizer.state_dtype = parse_float_dtype(states);
    t.schedule.kind = parse_schedule(schedule);
    t.schedule.decay_shape = parse_decay_shape(decay_shape);
    t.guard.on_nan = parse_guard_action(nan_policy, "nan_policy");
    t.guard.on_spike = parse_guard_action(spike_policy, "spike_policy");
    t.recompute = parse_recompute(checkpointing);
    t.max_shard_bytes = parse_byte_size(shard_size, "max_shard_size");
    // Adapters are there on the CPU alone so far.
    t.device = is_lora(t.fine_tuning) && device == "auto" ? kCpuDevice : choose_device(device);
    t.model_path = model.resolve_path();
    t.tokenizer_path = model.tokenizer;
  }

  int execute(const ArgParser& parser) {
    set_log_level(parse_log_level(log_level));
    for (const std::string& flag : parser.ignored_flags()) log_warning("train", "Ignored {}", flag);
    check_available();
    model.apply_threads();
    fill_trainer();
    if (dry_run) {
      const bool terminal = ::isatty(STDOUT_FILENO) == 1;
      std::fputs(preview_training(trainer, dry_run_sequences, terminal).c_str(), stdout);
      return 0;
    }
    log_info("train", "Reft: v{}", REFT_VERSION);
    const StopSignals signals;
    const TrainResult result = train(trainer, [] { return StopSignals::received() != 0; });
    if (!result.interrupted) return 0;
    log_info("train", "Stopped after {} of {} steps; --resume goes on", result.steps,
             result.total_steps);
    return 128 + StopSignals::received();
  }
};

}  // namespace

Command train_command() { return make_command<TrainOptions>(); }

}  // namespace reft
