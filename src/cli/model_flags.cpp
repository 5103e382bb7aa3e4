#include "cli/model_flags.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "base/log.h"
#include "base/thread_pool.h"
#include "hub/resolve.h"
#include "tensor/allocator.h"
#include "tensor/gguf.h"

namespace reft {
namespace {

constexpr const char* kDefaultModelFile = "SmolLM2-135M-Instruct.Q4_1.gguf";

bool is_gguf(const std::string& path) { return std::filesystem::path(path).extension() == ".gguf"; }

// A broken tokenizer counts: loading it says what is wrong.
bool comes_with_tokenizer(const std::string& path) {
  if (is_gguf(path)) return has_tokenizer(*open_gguf(path));
  return std::filesystem::is_directory(path) && has_tokenizer(path);
}

}  // namespace

Device choose_device(const std::string& name) {
  const Device cuda{DeviceType::kCuda, 0};
  if (name == "cpu") return kCpuDevice;
  try {
    allocator_for(cuda);
    return cuda;
  } catch (const Error& e) {
    if (name == "cuda") throw;
    log_info("device", "Running on the CPU: no usable GPU ({})", e.what());
    return kCpuDevice;
  }
}

std::string default_model_path() {
  std::filesystem::path cache;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg != '\0') {
    cache = xdg;
  } else if (const char* home = std::getenv("HOME")) {
    cache = std::filesystem::path(home) / ".cache";
  }
  return (cache / "reft" / "models" / kDefaultModelFile).string();
}

std::string short_model_name(const std::string& path) {
  std::filesystem::path p(path);
  if (!p.has_filename()) p = p.parent_path();
  if (!is_gguf(path)) return p.filename().string();
  // "Name.Q4_1.gguf" and "Name-Q4_K_M.gguf": the quantisation is not part of the name.
  std::string stem = p.stem().string();
  const size_t mark = stem.find_last_of(".-");
  if (mark != std::string::npos && mark > 0) {
    const std::string tail = stem.substr(mark + 1);
    const bool quantisation =
        tail.size() >= 2 && (tail[0] == 'Q' || tail[0] == 'F' || tail.starts_with("BF") ||
                             tail.starts_with("IQ") || tail.starts_with("MXFP"));
    if (quantisation && tail.find_first_of("0123456789") != std::string::npos) stem.resize(mark);
  }
  return stem;
}

void ModelFlags::declare_source(ArgParser& parser) {
  parser.group("Model");
  parser.add("model", &model,
             "A Hugging Face folder, a .gguf file, or a hub name org/name (looked up in the hub "
             "cache, then "
             "downloaded). Without it: the default model, SmolLM2-135M-Instruct.",
             {"model_path", "m"});
  parser.add("tokenizer", &tokenizer,
             "A folder or file to take the tokenizer from instead of the model's.");
  parser.add("revision", &revision, "Branch, tag or commit on the hub.");
  parser.add("hf_token", &hf_token, "Token for gated models; HF_TOKEN is read too.");
  parser.add("download_dir", &download_dir,
             "Hub cache folder; HF_HUB_CACHE and HF_HOME are read too.");
  parser.add(
      "chat_template", &chat_template,
      "A built-in name (qwen3, llama3, chatml, gemma ...), a .jinja file, or the template's text.");
  parser.add("threads", &threads, "Compute threads of the CPU backend; 0: one per usable core.",
             {"t"});
  parser.ignored("trust_remote_code", "no remote code is ever run", false);
  parser.ignored("tokenizer_mode", "there is one tokenizer");
}

void ModelFlags::declare_model(ArgParser& parser, bool positional) {
  if (positional) parser.positional("MODEL", &model, "The same as --model.");
  declare_source(parser);
  parser.add("skip_tokenizer_init", &skip_tokenizer_init,
             "Load no tokenizer: prompts and answers are token ids.");
  parser.add("dtype", &dtype,
             "Type to load and compute in. auto keeps the checkpoint's type and GGUF's quantised "
             "blocks; float32 "
             "expands them, for exact results.");
  parser.choices("dtype", {"auto", "float32", "float", "float16", "half", "bfloat16"});
  parser.add(
      "quantization", &quantization,
      "fp8 turns the weights of linear layers into 8-bit floats at load; auto takes what the "
      "checkpoint holds (fp8, compressed-tensors, modelopt, awq, gptq; GGUF blocks).",
      {"q"});
  parser.choices("quantization",
                 {"auto", "none", "fp8", "compressed-tensors", "modelopt", "awq", "gptq"});
  parser.add("load_format", &load_format,
             "auto reads the checkpoint; dummy fills random weights from config.json alone, for "
             "speed tests.");
  parser.choices("load_format", {"auto", "safetensors", "gguf", "dummy"});
  parser.add("device", &device, "Where to run.");
  parser.choices("device", {"auto", "cpu", "cuda"});
}

void ModelFlags::declare_engine(ArgParser& parser) {
  parser.group("Memory and scheduling");
  parser.add(
      "max_model_len", &engine.max_model_len,
      "Longest prompt plus output, in tokens; 0: the model's own, or what the KV memory holds.",
      {"context_length"});
  parser.add("max_num_seqs", &engine.max_num_seqs, "Sequences in one step.",
             {"max_running_requests"});
  parser.add("max_num_batched_tokens", &engine.max_num_batched_tokens,
             "Tokens in one step; longer prompts are computed in chunks of it.",
             {"chunked_prefill_size"});
  parser.add("block_size", &engine.block_size, "Tokens in a KV block.");
  parser.add("num_gpu_blocks_override", &engine.num_gpu_blocks_override,
             "Number of KV blocks, on any device; 0: from the memory.");
  parser.add("kv_cache_memory_bytes", &engine.kv_cache_memory_bytes,
             "Memory of the KV cache; 0: automatic.");
  parser.add("gpu_memory_utilization", &engine.gpu_memory_utilization,
             "Share of a GPU's memory to use.", {"mem_fraction_static"});
  parser.add("kv_cache_dtype", &engine.kv_cache_dtype,
             "Type of cached keys and values; fp8 (e4m3) halves their memory.");
  parser.choices("kv_cache_dtype", {"auto", "float32", "float16", "bfloat16", "fp8", "fp8_e4m3"});
  parser.add("enforce_eager", &engine.enforce_eager, "Do not record decode steps as CUDA graphs.");
  parser.add("enable_prefix_caching", &engine.enable_prefix_caching,
             "Reuse the keys and values of prompts with the same beginning.");
  parser.add("enable_chunked_prefill", &engine.enable_chunked_prefill,
             "Split long prompts over several steps.");
  parser.add("scheduling_policy", &engine.scheduling_policy, "Order of waiting requests.");
  parser.choices("scheduling_policy", {"fcfs", "priority"});
  parser.add("max_queued_requests", &engine.max_queued_requests,
             "Waiting requests beyond which new ones get a 503; 0: no limit.");
  parser.ignored("swap_space", "preempted requests are recomputed");
  for (const char* flag :
       {"tensor_parallel_size", "tp", "pipeline_parallel_size", "pp", "data_parallel_size", "dp"}) {
    parser.ignored(flag, "one process with one device serves the model");
  }
  parser.ignored("async_scheduling", "scheduling always overlaps with the compute", false);
  parser.ignored("max_seq_len_to_capture", "every length is captured");
}

void ModelFlags::declare_adapter(ArgParser& parser) {
  parser.add("lora", &adapter, "Folder of a LoRA adapter to answer with.");
}

AdapterFlag parse_adapter(const std::string& text) {
  AdapterFlag flag;
  if (text.starts_with("{")) {
    const Json json = parse_json(text, "--lora");
    flag.name = json_get<std::string>(json, "name", "");
    flag.path = json_get<std::string>(json, "path", "");
  } else if (const size_t at = text.find('='); at != std::string::npos) {
    flag.name = text.substr(0, at);
    flag.path = text.substr(at + 1);
  } else {
    flag.name = short_model_name(text);
    flag.path = text;
  }
  check(!flag.name.empty() && !flag.path.empty(),
        "--lora '{}' must be name=folder or {{\"name\": ..., \"path\": ...}}", text);
  return flag;
}

void make_room_for_adapters(const std::vector<AdapterFlag>& adapters, EngineOptions* options) {
  constexpr int64_t kUsualRank = 16;
  int64_t rank = kUsualRank;
  for (const AdapterFlag& flag : adapters) {
    for (const auto& [path, w] : read_adapter(flag.path).layers) rank = std::max(rank, w.a.size(0));
  }
  const auto count = static_cast<int64_t>(adapters.size());
  if (options->max_loras == 0) options->max_loras = std::max<int64_t>(count, 1);
  check(count <= options->max_loras, "{} adapters are given, --max_loras is {}", count,
        options->max_loras);
  if (options->max_lora_rank == 0) options->max_lora_rank = rank;
}

void ModelFlags::declare_seed(ArgParser& parser) {
  parser.add("seed", &seed, "Seed for requests that bring none.");
}

std::string ModelFlags::resolve_path() const {
  if (model.empty()) {
    std::string path = default_model_path();
    check(
        std::filesystem::exists(path),
        "no --model was given and the default model is not at '{}': pass --model with a folder, a "
        ".gguf file or org/name, or run quickstart.sh of the repository once",
        path);
    return path;
  }
  HubOptions hub;
  hub.revision = revision;
  hub.token = hf_token;
  hub.cache_dir = download_dir;
  hub.quiet = quiet;
  return resolve_model(model, hub);
}

std::shared_ptr<const Tokenizer> ModelFlags::load_tokenizer_for(const std::string& path) const {
  const std::string from = tokenizer.empty() ? path : tokenizer;
  if (!is_gguf(from)) return load_tokenizer(from);
  const auto gguf = open_gguf(from);
  try {
    return load_tokenizer(*gguf);
  } catch (const Error& e) {
    fail("{}: {}", from, e.what());
  }
}

const Tokenizer& ServingModel::require_tokenizer() const {
  check(tokenizer != nullptr, "'{}' comes without a tokenizer: choose one with --tokenizer", path);
  return *tokenizer;
}

void ModelFlags::apply_threads() const {
  check(threads >= 0 && threads <= 1024, "--threads must be between 0 and 1024, got {}", threads);
  set_compute_threads(static_cast<int>(threads));
}

LoadOptions ModelFlags::load_options() const {
  LoadOptions options;
  options.device = choose_device(device);
  options.dtype = dtype == "float" ? "float32" : dtype == "half" ? "float16" : dtype;
  options.quantization = quantization;
  options.load_format = load_format == "dummy" ? "dummy" : "auto";
  options.seed = static_cast<uint64_t>(seed);
  options.max_model_len = engine.max_model_len;
  options.quiet = quiet;
  return options;
}

ServingModel ModelFlags::load() const {
  apply_threads();
  ServingModel out;
  out.path = resolve_path();
  if (model.empty() && !quiet)
    log_info("Serve", "No --model given: using the default model, {}", out.path);
  out.loaded = load_model(out.path, load_options());
  const bool skip = skip_tokenizer_init || (tokenizer.empty() && !comes_with_tokenizer(out.path));
  if (!skip) {
    out.tokenizer = load_tokenizer_for(out.path);
  } else if (!skip_tokenizer_init) {
    log_warning("Serve", "'{}' has no tokenizer: prompts must be token ids", out.path);
  }
  std::string source;
  if (!chat_template.empty()) {
    source = resolve_chat_template(chat_template);
    if (!quiet)
      log_info("Serve", "Apply chat template: {}",
               chat_template.size() < 80 ? chat_template : "(text)");
  } else if (out.tokenizer != nullptr && !out.tokenizer->chat_template().empty()) {
    source = out.tokenizer->chat_template();
  } else {
    source = default_chat_template(json_get<std::string>(out.loaded.config, "model_type", ""));
  }
  if (!source.empty() && out.tokenizer != nullptr)
    out.chat_template = std::make_shared<ChatTemplate>(source);
  return out;
}

ServingSpeechModel ModelFlags::load_speech() const {
  apply_threads();
  ServingSpeechModel out;
  out.path = resolve_path();
  check(is_speech_model(out.path), "'{}' is not a speech model", out.path);
  out.loaded = load_speech_model(out.path, load_options());
  out.tokenizer = load_tokenizer_for(out.path);
  return out;
}

}  // namespace reft
