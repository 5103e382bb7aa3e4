// reft export: a model in another form.
#include "train/export.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "tensor/safetensors_writer.h"
#include "text/chat_template.h"

namespace reft {
namespace {

struct ExportFlags {
  static constexpr const char* kName = "export";
  static constexpr const char* kSummary = "merge an adapter, change the dtype, write GGUF";
  static constexpr const char* kDescription =
      "Writes a model as a Hugging Face folder or as a GGUF file that reft and llama.cpp load. "
      "docs/export.md tells what becomes of which tensor.";

  ModelFlags model;
  ExportOptions options;
  std::string format = "hf", dtype = "auto", quant, shard_size = "5GB";

  void declare(ArgParser& parser) {
    model.declare_source(parser);
    parser.group("Export");
    parser.add("output", &options.output,
               "Folder to write to; with --format gguf also the name of a .gguf file.",
               {"export_dir"});
    parser.add("adapter", &options.adapter,
               "LoRA adapter to be folded into the weights: a folder of PEFT's or of reft train.",
               {"adapter_name_or_path"});
    parser.add("format", &format, "A Hugging Face folder or a GGUF file.");
    parser.choices("format", {"hf", "gguf"});
    parser.add("dtype", &dtype,
               "hf: type of the weights; auto: as they are, quantised ones bfloat16.");
    parser.choices("dtype", {"auto", "float32", "bfloat16", "float16"});
    parser.add("quant", &quant, "gguf: type of the matrices; F16 without it.");
    parser.choices("quant", {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K"});
    parser.add("max_shard_size", &shard_size, "hf: largest file of weights.");
    parser.add("verify", &options.verify,
               "Compare the predictions of the written model with those of the source, its adapter "
               "added in float32.");
    parser.example("reft export --model ./Qwen3-0.6B --adapter out/checkpoint-100 --output merged",
                   "Fold an adapter into its base model:");
    parser.example(
        "reft export --model merged --format gguf --quant Q4_K --output Qwen3-0.6B.Q4_K.gguf "
        "--verify",
        "A GGUF file of 4 bits per weight, and how much that changes:");
  }

  int execute(const ArgParser& parser) {
    for (const std::string& flag : parser.ignored_flags())
      log_warning("export", "Ignored {}", flag);
    model.apply_threads();
    options.gguf = format == "gguf";
    check(options.gguf || quant.empty(), "--quant {} needs --format gguf", quant);
    check(!options.gguf || dtype == "auto", "--dtype is for --format hf; --quant is GGUF's");
    if (!quant.empty()) options.quant = parse_quant(quant);
    if (dtype != "auto") options.dtype = parse_float_dtype(dtype);
    options.max_shard_bytes = parse_byte_size(shard_size, "max_shard_size");
    if (!model.chat_template.empty()) {
      options.chat_template = resolve_chat_template(model.chat_template);
    }
    options.model_path = model.resolve_path();
    options.tokenizer_path = model.tokenizer;
    const ExportResult result = export_model(options);
    if (const auto& d = result.difference) {
      log_info("export",
               "Over {} positions: largest difference of logits {:.4g}, mean KL {:.3e}, the same "
               "best token at {:.1f}%",
               d->positions, d->max_logit, d->kl, 100 * d->agreement);
    }
    return 0;
  }
};

}  // namespace

Command export_command() { return make_command<ExportFlags>(); }

}  // namespace reft
