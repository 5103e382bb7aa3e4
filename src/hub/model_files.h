// Which files of a model repository a server needs. Pure functions over lists of names.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace reft {

// `org/name`, `name`, `org/name:variant`, with or without the hub's address in front.
struct ModelName {
  std::string repo;     // "org/name"
  std::string variant;  // "", "Q4_K_M" or a file name
};
// Throws Error when it can be neither a repository nor a path.
ModelName parse_model_name(const std::string& text);

// Neither absolute nor leading out of the folder, no control characters.
bool is_safe_path(const std::string& path);

struct Selection {
  std::vector<std::string>
      files;         // small ones first; empty when the repository has nothing that can be loaded
  std::string gguf;  // the file to open, when the model is a GGUF file
  std::vector<std::string> missing;  // that the selected ones refer to, but are not in `names`
};

// `read` returns a small file's content: the index of sharded safetensors lists the shards. Throws
// Error when `variant` matches nothing, and names what there is.
Selection select_files(const std::vector<std::string>& names, const std::string& variant,
                       const std::function<std::string(const std::string& name)>& read);

bool has_tokenizer(const std::vector<std::string>& names);

}  // namespace reft
