#include "hub/model_files.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <set>

#include "base/json.h"

namespace reft {
namespace {

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr size_t kMaxListed = 40;

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

bool at_top(const std::string& name) { return name.find('/') == std::string::npos; }
bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kMaxListed); ++i)
    out += (i > 0 ? ", " : "") + names[i];
  return names.size() > kMaxListed ? out + ", ..." : out;
}

// --- GGUF ---

// All files of a split model ("x-00001-of-00003.gguf"), from the name of one; just the name when it
// is not split.
std::vector<std::string> all_splits(const std::string& name) {
  constexpr size_t kTail = std::string_view("-00001-of-00003.gguf").size();
  if (name.size() < kTail) return {name};
  std::string tail = name.substr(name.size() - kTail);
  const std::string digits = tail.substr(10, 5);
  for (char& c : tail) c = c >= '0' && c <= '9' ? '0' : c;
  if (tail != "-00000-of-00000.gguf") return {name};
  int count = 1;
  std::from_chars(digits.data(), digits.data() + digits.size(), count);
  std::vector<std::string> splits;
  for (int i = 1; i <= std::max(1, count); ++i) {
    splits.push_back(
        fmt::format("{}-{:05}-of-{}.gguf", name.substr(0, name.size() - kTail), i, digits));
  }
  return splits;
}

// Models among the names: no multimodal projectors, no importance matrices; of split ones the first
// file.
std::vector<std::string> gguf_models(const std::vector<std::string>& names) {
  std::set<std::string> models;
  for (const std::string& name : names) {
    const std::string base = lower(name.substr(name.rfind('/') + 1));
    if (!base.ends_with(".gguf") || base.starts_with("mmproj") || base.starts_with("imatrix"))
      continue;
    models.insert(all_splits(name).front());
  }
  return {models.begin(), models.end()};
}

// The quantisation stands between separators: "x-Q4_K_M.gguf", "x.q4_k_m.gguf",
// "Q4_K_M/x-00001-of-00002.gguf".
bool has_quantisation(const std::string& name, const std::string& quantisation) {
  const std::string text = lower(name);
  const std::string wanted = lower(quantisation);
  const auto separates = [](char c) {
    return std::string_view("-./ ").find(c) != std::string_view::npos;
  };
  for (size_t at = text.find(wanted); at != std::string::npos; at = text.find(wanted, at + 1)) {
    const size_t end = at + wanted.size();
    if ((at == 0 || separates(text[at - 1])) && (end == text.size() || separates(text[end])))
      return true;
  }
  return false;
}

std::string pick_gguf(const std::vector<std::string>& names, const std::vector<std::string>& models,
                      const std::string& variant) {
  if (variant.ends_with(".gguf")) {
    check(contains(names, variant), "no file '{}'; there are: {}", variant, joined(models));
    return all_splits(variant).front();
  }
  if (!variant.empty()) {
    for (const std::string& model : models) {
      if (has_quantisation(model, variant)) return model;
    }
    fail("no GGUF file of the quantisation '{}'; there are: {}", variant,
         models.empty() ? "none" : joined(models));
  }
  static constexpr std::array kPreferred = {"Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_1", "Q4_0",
                                            "Q5_K_S", "Q6_K",   "Q8_0",   "Q5_1", "Q5_0",
                                            "MXFP4",  "BF16",   "F16",    "F32"};
  for (const char* quantisation : kPreferred) {
    for (const std::string& model : models) {
      if (has_quantisation(model, quantisation)) return model;
    }
  }
  return models.front();
}

Selection select_gguf(const std::vector<std::string>& names, const std::vector<std::string>& models,
                      const std::string& variant) {
  Selection selection;
  selection.gguf = pick_gguf(names, models, variant);
  for (std::string& split : all_splits(selection.gguf)) {
    if (!contains(names, split)) selection.missing.push_back(split);
    selection.files.push_back(std::move(split));
  }
  return selection;
}

// --- safetensors ---

std::vector<std::string> select_weights(
    const std::vector<std::string>& names,
    const std::function<std::string(const std::string&)>& read) {
  if (contains(names, "model.safetensors")) return {"model.safetensors"};
  if (contains(names, kIndex)) {
    std::set<std::string> shards;
    const Json index = parse_json(read(kIndex), kIndex);
    const auto map = index.find("weight_map");
    check(index.is_object() && map != index.end() && map->is_object(), "{} has no weight_map",
          kIndex);
    for (const Json& shard : *map) {
      check(shard.is_string() && is_safe_path(shard.get<std::string>()), "{} names a bad file",
            kIndex);
      shards.insert(shard.get<std::string>());
    }
    return {shards.begin(), shards.end()};
  }
  std::vector<std::string> weights;
  for (const std::string& name : names) {
    // consolidated.safetensors repeats the other files in the layout of another library.
    if (at_top(name) && name.ends_with(".safetensors") && !name.starts_with("consolidated"))
      weights.push_back(name);
  }
  if (weights.empty() && contains(names, "consolidated.safetensors"))
    weights = {"consolidated.safetensors"};
  return weights;
}

// Organisation or name.
bool is_repo_part(std::string_view text) {
  const auto is_word = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  return !text.empty() && text.size() <= 96 && is_word(text.front()) &&
         std::ranges::all_of(text, [&](char c) { return is_word(c) || c == '.' || c == '-'; });
}

bool is_small_file_we_need(const std::string& name) {
  if (name.starts_with("additional_chat_templates/")) return name.ends_with(".jinja");
  if (!at_top(name) || name == "training_args.json") return false;
  for (const char* ending : {".json", ".jinja", ".model", ".tiktoken", ".txt", ".jsonl"}) {
    if (name.ends_with(ending)) return !name.ends_with("pytorch_model.bin.index.json");
  }
  return false;
}

}  // namespace

bool is_safe_path(const std::string& path) {
  if (path.empty() || path.size() > 1024 || path.front() == '/') return false;
  size_t begin = 0;
  while (begin <= path.size()) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part(path.data() + begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return false;
    begin = end + 1;
  }
  return std::ranges::all_of(
      path, [](char c) { return static_cast<unsigned char>(c) >= ' ' && c != 0x7f && c != '\\'; });
}

ModelName parse_model_name(const std::string& text) {
  std::string rest = text;
  for (const char* prefix :
       {"https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/", "hf://"}) {
    if (rest.starts_with(prefix)) rest.erase(0, std::string_view(prefix).size());
  }
  ModelName name;
  const size_t colon = rest.find(':');
  if (colon != std::string::npos) {
    name.variant = rest.substr(colon + 1);
    rest.resize(colon);
    check(is_safe_path(name.variant),
          "bad model name '{}': what follows ':' is a quantisation or a file", text);
  }
  while (rest.ends_with('/')) rest.pop_back();
  name.repo = rest;
  const std::string_view whole = rest;
  const size_t slash = whole.find('/');
  const bool parts = slash == std::string_view::npos ? is_repo_part(whole)
                                                     : is_repo_part(whole.substr(0, slash)) &&
                                                           is_repo_part(whole.substr(slash + 1));
  const bool good =
      parts && rest.find("--") == std::string::npos && rest.find("..") == std::string::npos;
  check(good,
        "no model '{}': there is no such file or folder, and it is not a name of the form org/name",
        text);
  return name;
}

Selection select_files(const std::vector<std::string>& names, const std::string& variant,
                       const std::function<std::string(const std::string&)>& read) {
  const std::vector<std::string> models = gguf_models(names);
  if (!variant.empty()) return select_gguf(names, models, variant);
  const std::vector<std::string> weights = select_weights(names, read);
  if (weights.empty()) return models.empty() ? Selection{} : select_gguf(names, models, variant);

  Selection selection;
  for (const std::string& name : names) {
    if (is_small_file_we_need(name)) selection.files.push_back(name);
  }
  for (const std::string& name : weights) {
    if (!contains(names, name)) selection.missing.push_back(name);
    selection.files.push_back(name);
  }
  return selection;
}

bool has_tokenizer(const std::vector<std::string>& names) {
  return std::ranges::any_of(names, [](const std::string& name) {
    return name == "tokenizer.json" || name == "vocab.json" || name.ends_with(".tiktoken") ||
           (at_top(name) && name.ends_with(".model")) || name == "tekken.json";
  });
}

}  // namespace reft
