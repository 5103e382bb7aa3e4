#include "tensor/checkpoint_reader.h"

#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "tensor/gguf.h"
#include "tensor/gguf_split.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> names_ending(const fs::path& folder, std::string_view ending) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name.ends_with(ending)) names.push_back(std::move(name));
  }
  check(!error, "cannot list '{}': {}", folder.string(), error.message());
  std::sort(names.begin(), names.end());
  return names;
}

std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

// The models among .gguf files: of a split one its first file, and no multimodal projectors.
std::vector<std::string> gguf_models(const fs::path& folder) {
  std::vector<std::string> names = names_ending(folder, ".gguf");
  std::erase_if(names, [](const std::string& name) {
    const auto split = parse_gguf_split_name(name);
    return split && split->number != 1;
  });
  if (names.size() > 1)
    std::erase_if(names, [](const std::string& name) { return name.starts_with("mmproj"); });
  return names;
}

std::unique_ptr<CheckpointReader> open_folder(const fs::path& folder) {
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    if (fs::exists(folder / name)) return open_safetensors((folder / name).string());
  }
  for (const char* ending : {".safetensors.index.json", ".safetensors"}) {
    const std::vector<std::string> names = names_ending(folder, ending);
    check(names.size() <= 1,
          "'{}' holds several checkpoints ({}) and no model.safetensors.index.json: name one file",
          folder.string(), joined(names));
    if (names.size() == 1) return open_safetensors((folder / names.front()).string());
  }
  const std::vector<std::string> models = gguf_models(folder);
  check(models.size() <= 1, "'{}' holds several GGUF models: name one of {}", folder.string(),
        joined(models));
  if (models.size() == 1) return open_gguf((folder / models.front()).string());

  for (const char* ending : {".bin", ".pt", ".pth"}) {
    const std::vector<std::string> names = names_ending(folder, ending);
    check(names.empty(),
          "'{}' holds only pickle files ({}), which can run code and are not read: convert them to "
          "safetensors",
          folder.string(), joined(names));
  }
  fail("'{}' holds no .safetensors and no .gguf file", folder.string());
}

}  // namespace

std::unique_ptr<CheckpointReader> open_checkpoint(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  check(fs::exists(status), "checkpoint '{}': {}", path,
        error ? error.message() : "no such file or folder");
  if (fs::is_directory(status)) return open_folder(path);
  if (path.ends_with(".safetensors") || path.ends_with(".json")) return open_safetensors(path);
  // Files that a cache named by their hash have no extension.
  if (path.ends_with(".gguf") || MappedFile(path).text().starts_with("GGUF"))
    return open_gguf(path);
  fail(
      "'{}': a checkpoint is a .safetensors, .safetensors.index.json or .gguf file or a folder "
      "with one",
      path);
}

}  // namespace reft
