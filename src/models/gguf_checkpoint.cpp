#include "models/gguf_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>

#include "tensor/gguf.h"

namespace reft {

namespace {

// What distinguishes the architectures of GGUF that we know.
struct GgufFamily {
  const char* name;          // general.architecture
  const char* architecture;  // of config.json
  bool permuted = false;     // q and k rows are ordered for interleaved rotary pairs
  bool one_plus = false;     // norm weights are stored as 1 + w
};

constexpr GgufFamily kFamilies[] = {
    {.name = "llama", .architecture = "LlamaForCausalLM", .permuted = true},
    {.name = "qwen2", .architecture = "Qwen2ForCausalLM"},
    {.name = "qwen3", .architecture = "Qwen3ForCausalLM"},
    {.name = "qwen2moe", .architecture = "Qwen2MoeForCausalLM"},
    {.name = "qwen3moe", .architecture = "Qwen3MoeForCausalLM"},
    {.name = "gpt-oss", .architecture = "GptOssForCausalLM"},
    {.name = "gemma", .architecture = "GemmaForCausalLM", .one_plus = true},
    {.name = "gemma2", .architecture = "Gemma2ForCausalLM", .one_plus = true},
    {.name = "gemma3", .architecture = "Gemma3ForCausalLM", .one_plus = true},
};

const GgufFamily& find_family(const GgufReader& gguf, const std::string& path) {
  const auto name = gguf.require<std::string>("general.architecture");
  std::string known;
  for (const GgufFamily& family : kFamilies) {
    if (name == family.name) return family;
    known += (known.empty() ? "" : ", ") + std::string(family.name);
  }
  fail("{}: general.architecture '{}' is not supported; known are {}", path, name, known);
}

// blk.<i>.<first> -> model.layers.<i>.<second>
using Renames = std::vector<std::pair<std::string, std::string>>;

Renames block_renames(const GgufFamily& family) {
  Renames renames = {
      {"attn_norm", "input_layernorm"},
      {"attn_q", "self_attn.q_proj"},
      {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},
      {"attn_output", "self_attn.o_proj"},
      {"attn_q_norm", "self_attn.q_norm"},
      {"attn_k_norm", "self_attn.k_norm"},
      {"ffn_gate", "mlp.gate_proj"},
      {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"},
      {"ffn_gate_inp", "mlp.gate"},
      {"ffn_gate_exps", "mlp.experts.gate_proj"},
      {"ffn_up_exps", "mlp.experts.up_proj"},
      {"ffn_down_exps", "mlp.experts.down_proj"},
      {"attn_sinks", "self_attn.sinks"},
      {"ffn_gate_inp_shexp", "mlp.shared_expert_gate"},
      {"ffn_gate_shexp", "mlp.shared_expert.gate_proj"},
      {"ffn_up_shexp", "mlp.shared_expert.up_proj"},
      {"ffn_down_shexp", "mlp.shared_expert.down_proj"},
  };
  const bool sandwich =
      family.name == std::string("gemma2") || family.name == std::string("gemma3");
  if (family.name == std::string("gpt-oss")) {
    renames.insert(renames.begin(), {"ffn_gate_inp", "mlp.router"});
    renames.emplace_back("post_attention_norm", "post_attention_layernorm");
  } else if (sandwich) {
    renames.emplace_back("post_attention_norm", "post_attention_layernorm");
    renames.emplace_back("ffn_norm", "pre_feedforward_layernorm");
    renames.emplace_back("post_ffw_norm", "post_feedforward_layernorm");
  } else {
    renames.emplace_back("ffn_norm", "post_attention_layernorm");
  }
  return renames;
}

std::string rename(const std::string& name, const Renames& renames) {
  if (name == "token_embd.weight") return "model.embed_tokens.weight";
  if (name == "output_norm.weight") return "model.norm.weight";
  if (name == "output.weight") return "lm_head.weight";
  if (!name.starts_with("blk.")) return name;
  const size_t layer_end = name.find('.', 4);
  const size_t kind = name.rfind('.');
  if (layer_end == std::string::npos || kind <= layer_end) return name;
  const std::string middle = name.substr(layer_end + 1, kind - layer_end - 1);
  for (const auto& [from, to] : renames) {
    if (middle == from)
      return "model.layers." + name.substr(4, layer_end - 4) + "." + to + name.substr(kind);
  }
  return name;
}

// Row h·Dh + 2i + j of the file is row h·Dh + j·Dh/2 + i here (j = 0, 1). Whole rows move, so block
// formats stay as they are.
Tensor move_rows(const Tensor& t, int64_t head_dim, bool to_file) {
  const int64_t rows = t.size(0);
  check(rows % head_dim == 0, "{} rows are not heads of {}", rows, head_dim);
  const Tensor source = t.contiguous();
  Tensor result = Tensor::empty(t.shape(), t.dtype());
  const auto bytes = static_cast<size_t>(t.nbytes() / rows);
  const int64_t half = head_dim / 2;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t within = row % head_dim;
    const int64_t other = row - within + within % 2 * half + within / 2;
    const auto from = static_cast<size_t>(to_file ? other : row);
    const auto to = static_cast<size_t>(to_file ? row : other);
    std::memcpy(result.raw() + to * bytes, source.raw() + from * bytes, bytes);
  }
  return result;
}

Tensor plus(const Tensor& t, float summand) {
  Tensor result = Tensor::empty(t.shape(), DType::kF32);
  const Tensor source = t.to(DType::kF32).contiguous();
  for (int64_t i = 0; i < t.numel(); ++i)
    result.data<float>()[i] = source.data<float>()[i] + summand;
  return result;
}

// A matrix of one row, which files keep as a vector.
bool is_row(const std::string& name, const Shape& shape) {
  return name.ends_with("shared_expert_gate.weight") && shape.dims() == 1;
}

bool is_rotated(const std::string& name) {
  return name.find("q_proj.") != std::string::npos || name.find("k_proj.") != std::string::npos;
}

class RenamedReader final : public CheckpointReader {
 public:
  RenamedReader(std::shared_ptr<const GgufReader> gguf, const GgufFamily& family, int64_t head_dim)
      : gguf_(std::move(gguf)), family_(family), head_dim_(head_dim) {
    const Renames renames = block_renames(family);
    for (TensorEntry entry : gguf_->entries()) {
      // Facts about the rotary table, which the config already carries.
      if (entry.name.starts_with("rope_freqs.") || entry.name.starts_with("rope_factors_"))
        continue;
      std::string name = rename(entry.name, renames);
      if (is_row(name, entry.shape)) entry.shape = {1, entry.shape[0]};
      file_names_.emplace(name, entry.name);
      entry.name = std::move(name);
      entries_.push_back(std::move(entry));
    }
  }

  const std::vector<TensorEntry>& entries() const override { return entries_; }
  bool contains(const std::string& name) const override { return file_names_.count(name) > 0; }
  void release_pages() const override { gguf_->release_pages(); }
  Tensor read(const std::string& name) const override {
    const auto it = file_names_.find(name);
    check(it != file_names_.end(), "tensor '{}' is missing", name);
    Tensor t = gguf_->read(it->second);
    if (family_.permuted && is_rotated(name)) return move_rows(t, head_dim_, /*to_file=*/false);
    if (is_row(name, t.shape())) return t.reshape({1, t.size(0)});
    return family_.one_plus && name.ends_with("norm.weight") ? plus(t, -1.0f) : t;
  }

 private:
  std::shared_ptr<const GgufReader> gguf_;
  const GgufFamily& family_;
  int64_t head_dim_;
  std::vector<TensorEntry> entries_;
  std::unordered_map<std::string, std::string> file_names_;
};

Json rope_scaling(const GgufReader& gguf, const std::string& arch, double context_length) {
  const std::string prefix = arch + ".rope.scaling.";
  if (gguf.contains("rope_freqs.weight")) {
    const std::vector<float> factors =
        gguf.read("rope_freqs.weight").to(DType::kF32).to_vector<float>();
    return {{"rope_type", "factors"}, {"short_factor", factors}};
  }
  const auto type = gguf.get<std::string>(prefix + "type", "none");
  const double factor =
      gguf.get<double>(prefix + "factor", gguf.get<double>(arch + ".rope.scale_linear", 0.0));
  if (type == "linear" || (type == "none" && factor > 1.0)) {
    if (factor == 0.0 || factor == 1.0) return nullptr;
    return {{"rope_type", "linear"}, {"factor", factor}};
  }
  if (type == "yarn") {
    const auto original = static_cast<int64_t>(gguf.get<double>(
        prefix + "original_context_length", context_length / std::max(factor, 1.0)));
    Json yarn = {
        {"rope_type", "yarn"}, {"factor", factor}, {"original_max_position_embeddings", original}};
    yarn["beta_fast"] = gguf.get<double>(prefix + "yarn_beta_fast", 32.0);
    yarn["beta_slow"] = gguf.get<double>(prefix + "yarn_beta_slow", 1.0);
    const double attention = gguf.get<double>(prefix + "yarn_attn_factor", 1.0) *
                             gguf.get<double>(prefix + "attn_factor", 1.0);
    if (attention != 1.0)
      yarn["attention_factor"] = attention * (1.0 + 0.1 * std::log(std::max(factor, 1.0)));
    return yarn;
  }
  check(type == "none", "{}: rope.scaling.type '{}' is not supported", arch, type);
  return nullptr;
}

// The keys of the families with soft caps and windows of their own.
void add_gemma_keys(Json& config, const GgufReader& gguf, const std::string& arch) {
  const auto cap = [&](const char* key, double fallback) {
    const double value = gguf.get<double>(arch + "." + key, fallback);
    return value > 0.0 ? Json(value) : Json(nullptr);
  };
  const int64_t layers = config["num_hidden_layers"].get<int64_t>();
  const int64_t heads = config["num_attention_heads"].get<int64_t>();
  const bool gemma2 = arch == "gemma2";
  config["attn_logit_softcapping"] = gemma2 ? cap("attn_logit_softcapping", 50.0) : Json(nullptr);
  config["final_logit_softcapping"] = cap("final_logit_softcapping", gemma2 ? 30.0 : 0.0);
  // The 27B models scale by hidden / heads, all others by the head size; the file does not say it.
  const bool is_27b = layers == (gemma2 ? 46 : 62);
  config["query_pre_attn_scalar"] =
      is_27b ? config["hidden_size"].get<int64_t>() / heads : config["head_dim"].get<int64_t>();
  const int64_t window = gguf.get<int64_t>(arch + ".attention.sliding_window", gemma2 ? 4096 : 0);
  const int64_t pattern = gemma2 ? 2 : 6;
  Json types = Json::array();
  for (int64_t i = 0; i < layers; ++i) {
    types.push_back(window > 0 && (i + 1) % pattern != 0 ? "sliding_attention" : "full_attention");
  }
  config["layer_types"] = types;
  if (window > 0) config["sliding_window"] = window;
  if (!gemma2)
    config["rope_local_base_freq"] = gguf.get<double>(arch + ".rope.freq_base_swa", 10000.0);
}

void add_gpt_oss_keys(Json& config, const GgufReader& gguf, const std::string& arch) {
  config["sliding_window"] = gguf.get<int64_t>(arch + ".attention.sliding_window", 128);
  config["intermediate_size"] = gguf.require<int64_t>(arch + ".expert_feed_forward_length");
  // The layout of the experts, [E, N, K], is that of files in MXFP4.
  config["quantization_config"] = {{"quant_method", "mxfp4"}};
  if (config.contains("rope_scaling")) config["rope_scaling"]["truncate"] = false;
  config["dtype"] = "bfloat16";  // float16 could not hold its activations
}

// The keys of the families with experts.
void add_expert_keys(Json& config, const GgufReader& gguf, const std::string& arch,
                     const std::string& path) {
  const bool gpt_oss = arch == "gpt-oss";
  config[gpt_oss ? "num_local_experts" : "num_experts"] =
      gguf.require<int64_t>(arch + ".expert_count");
  config["num_experts_per_tok"] = gguf.require<int64_t>(arch + ".expert_used_count");
  if (gpt_oss) return add_gpt_oss_keys(config, gguf, arch);
  config["norm_topk_prob"] = arch == "qwen3moe";
  config["decoder_sparse_step"] = 1;
  Json dense = Json::array();
  const auto layers = config["num_hidden_layers"].get<int64_t>();
  for (int64_t i = 0; i < layers; ++i) {
    if (!gguf.contains("blk." + std::to_string(i) + ".ffn_gate_inp.weight")) dense.push_back(i);
  }
  config["mlp_only_layers"] = dense;
  for (const TensorEntry& entry : gguf.entries()) {
    if (entry.name.ends_with(".ffn_gate_exps.weight") && entry.shape.dims() == 3)
      config["moe_intermediate_size"] = entry.shape[1];
    if (entry.name.ends_with(".ffn_gate_shexp.weight") && entry.shape.dims() == 2)
      config["shared_expert_intermediate_size"] = entry.shape[0];
  }
  check(config.contains("moe_intermediate_size"), "{}: no tensor blk.<i>.ffn_gate_exps.weight",
        path);
}

Json read_config(const GgufReader& gguf, const GgufFamily& family, const std::string& path) {
  const std::string arch = family.name;
  const auto size = [&](const char* key) {
    const auto value = gguf.require<int64_t>(arch + "." + key);
    check(value > 0 && value < (int64_t{1} << 31), "{}: {}.{} is {}, out of range", path, arch, key,
          value);
    return value;
  };
  Json config;
  config["architectures"] = Json::array({family.architecture});
  config["model_type"] = arch == "gemma3" ? "gemma3_text" : arch;
  config["hidden_size"] = size("embedding_length");
  config["num_hidden_layers"] = size("block_count");
  check(size("block_count") <= 10000, "{}: {}.block_count is {}, out of range", path, arch,
        size("block_count"));
  if (arch != "gpt-oss") config["intermediate_size"] = size("feed_forward_length");
  config["num_attention_heads"] = size("attention.head_count");
  config["num_key_value_heads"] =
      gguf.get<int64_t>(arch + ".attention.head_count_kv", size("attention.head_count"));
  config["max_position_embeddings"] = size("context_length");
  config["rms_norm_eps"] = gguf.require<double>(arch + ".attention.layer_norm_rms_epsilon");
  config["rope_theta"] = gguf.get<double>(arch + ".rope.freq_base", arch == "gemma3" ? 1e6 : 1e4);

  const int64_t hidden = config["hidden_size"].get<int64_t>();
  const int64_t heads = config["num_attention_heads"].get<int64_t>();
  const int64_t head_dim = gguf.get<int64_t>(arch + ".attention.key_length", hidden / heads);
  check(head_dim > 0 && head_dim % 2 == 0 && head_dim < (1 << 20),
        "{}: {}.attention.key_length is {}", path, arch, head_dim);
  check(gguf.get<int64_t>(arch + ".attention.value_length", head_dim) == head_dim,
        "{}: {}.attention.value_length differs from key_length, which is not supported", path,
        arch);
  config["head_dim"] = head_dim;
  const int64_t rotary = gguf.get<int64_t>(arch + ".rope.dimension_count", head_dim);
  if (rotary != head_dim)
    config["partial_rotary_factor"] = static_cast<double>(rotary) / static_cast<double>(head_dim);
  const Json scaling = rope_scaling(gguf, arch, static_cast<double>(size("context_length")));
  if (!scaling.is_null()) config["rope_scaling"] = scaling;

  const std::string embedding = "token_embd.weight";
  for (const TensorEntry& entry : gguf.entries()) {
    if (entry.name == embedding && entry.shape.dims() == 2) config["vocab_size"] = entry.shape[0];
  }
  check(config.contains("vocab_size"), "{}: tensor '{}' is missing or not a matrix", path,
        embedding);
  config["tie_word_embeddings"] = !gguf.contains("output.weight");
  config["attention_bias"] = gguf.contains("blk.0.attn_q.bias");
  config["mlp_bias"] = gguf.contains("blk.0.ffn_down.bias");
  if (arch == "gemma2" || arch == "gemma3") add_gemma_keys(config, gguf, arch);
  if (arch.ends_with("moe") || arch == "gpt-oss") add_expert_keys(config, gguf, arch, path);
  return config;
}

Json read_generation_config(const GgufReader& gguf) {
  Json result = Json::object();
  const int64_t bos = gguf.get<int64_t>("tokenizer.ggml.bos_token_id", -1);
  if (bos >= 0) result["bos_token_id"] = bos;
  Json ends = Json::array();
  for (const char* key : {"eos", "eot", "eom"}) {
    const int64_t id = gguf.get<int64_t>(std::string("tokenizer.ggml.") + key + "_token_id", -1);
    if (id >= 0 && std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  }
  if (ends.size() == 1) result["eos_token_id"] = ends[0];
  if (ends.size() > 1) result["eos_token_id"] = ends;
  return result;
}

}  // namespace

GgufCheckpoint open_gguf_checkpoint(const std::string& path) {
  std::shared_ptr<const GgufReader> gguf = open_gguf(path);
  const GgufFamily& family = find_family(*gguf, path);
  GgufCheckpoint result;
  result.config = read_config(*gguf, family, path);
  result.generation_config = read_generation_config(*gguf);
  result.reader =
      std::make_unique<RenamedReader>(gguf, family, result.config["head_dim"].get<int64_t>());
  return result;
}

GgufNames::GgufNames(const std::string& architecture, int64_t head_dim) : head_dim_(head_dim) {
  // Mistral's tensors are Llama's.
  const std::string name = architecture == "MistralForCausalLM" ? "LlamaForCausalLM" : architecture;
  std::string known;
  for (const GgufFamily& family : kFamilies) {
    known += (known.empty() ? "" : ", ") + std::string(family.architecture);
    if (name != family.architecture) continue;
    architecture_ = family.name;
    permuted_ = family.permuted;
    one_plus_ = family.one_plus;
    renames_ = block_renames(family);
    return;
  }
  fail("'{}' cannot be written as GGUF; {} can", architecture, known);
}

std::string GgufNames::name_of(const std::string& parameter) const {
  if (parameter == "model.embed_tokens.weight") return "token_embd.weight";
  if (parameter == "model.norm.weight") return "output_norm.weight";
  if (parameter == "lm_head.weight") return "output.weight";
  constexpr std::string_view kLayers = "model.layers.";
  const size_t number_end = parameter.find('.', kLayers.size());
  const size_t kind = parameter.rfind('.');
  if (parameter.starts_with(kLayers) && number_end < kind) {
    const std::string middle = parameter.substr(number_end + 1, kind - number_end - 1);
    for (const auto& [file_name, name] : renames_) {
      if (name == middle) {
        return "blk." + parameter.substr(kLayers.size(), number_end - kLayers.size()) + "." +
               file_name + parameter.substr(kind);
      }
    }
  }
  fail("tensor '{}' cannot be written as GGUF: it has no name in files of '{}'", parameter,
       architecture_);
}

Tensor GgufNames::value_of(const std::string& parameter, const Tensor& value) const {
  if (permuted_ && is_rotated(parameter)) return move_rows(value, head_dim_, /*to_file=*/true);
  return one_plus_ && parameter.ends_with("norm.weight") ? plus(value, 1.0f) : value;
}

}  // namespace reft
