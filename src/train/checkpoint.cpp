#include "train/checkpoint.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <thread>

#include "base/file.h"
#include "base/log.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStateFile = "trainer_state.json";
constexpr std::string_view kPrefix = "checkpoint-";
constexpr std::string_view kTemporary = ".tmp-";

// The step of a name "checkpoint-<step>"; −1 for another.
int64_t step_of(const std::string& name) {
  int64_t step = -1;
  if (!name.starts_with(kPrefix)) return -1;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  return error == std::errc() && rest == end && step >= 0 ? step : -1;
}

void sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check(fd >= 0, "cannot open folder '{}': {}", path, std::strerror(errno));
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  // Some network file systems cannot sync folders.
  check(result == 0 || error == EINVAL || error == ENOTSUP, "cannot sync folder '{}': {}", path,
        std::strerror(error));
}

// `from` takes the place of `to`, which may exist: exchanged in one step where the file system can.
void replace_folder(const std::string& from, const std::string& to) {
  if (!fs::exists(to)) {
    check(::rename(from.c_str(), to.c_str()) == 0, "cannot rename '{}' to '{}': {}", from, to,
          std::strerror(errno));
    return;
  }
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    fs::remove_all(from);
    return;
  }
  const std::string old = from + "-old";
  check(::rename(to.c_str(), old.c_str()) == 0 && ::rename(from.c_str(), to.c_str()) == 0,
        "cannot replace '{}': {}", to, std::strerror(errno));
  fs::remove_all(old);
}

// A folder under a temporary name; gone again unless it is committed.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(std::string path)
      : path_(std::move(path)), temporary_(fmt::format("{}{}{}", path_, kTemporary, ::getpid())) {
    std::error_code error;
    fs::remove_all(temporary_, error);
    fs::create_directories(temporary_, error);
    check(!error, "cannot create folder '{}': {}", temporary_, error.message());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!committed_) fs::remove_all(temporary_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return temporary_; }
  void commit() {
    sync_folder(temporary_);
    replace_folder(temporary_, path_);
    committed_ = true;
    sync_folder(fs::absolute(path_).parent_path().string());
  }

 private:
  std::string path_;
  std::string temporary_;
  bool committed_ = false;
};

int64_t bytes_of(const NamedTensors& tensors) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += tensor.nbytes();
  return bytes;
}
int64_t bytes_of(const CheckpointContents& contents) {
  int64_t bytes = bytes_of(contents.model);
  for (const auto& [name, tensors] : contents.tensors) bytes += bytes_of(tensors);
  return bytes;
}

std::string megabytes(int64_t bytes) {
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

void check_space(const std::string& folder, int64_t bytes) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error) return;
  const auto available = static_cast<int64_t>(space.available);
  check(available >= bytes, "it needs {}, the disk of '{}' has {} left", megabytes(bytes), folder,
        megabytes(available));
}

// Earlier weights of that stem, single or in shards.
void remove_weights(const std::string& folder, const std::string& stem) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name == stem + ".safetensors" || name == stem + ".safetensors.index.json" ||
        (name.starts_with(stem + "-") && name.ends_with(".safetensors"))) {
      found.push_back(entry.path());
    }
  }
  for (const fs::path& path : found) fs::remove(path);
}

// PEFT knows no shards of an adapter.
std::vector<std::string> write_weights(const std::string& folder, const std::string& stem,
                                       const NamedTensors& tensors, int64_t max_shard_bytes) {
  const bool whole = stem == kAdapterStem;
  return write_safetensors_shards(folder, stem, tensors, whole ? INT64_MAX : max_shard_bytes);
}

Json sizes_of(const std::string& folder) {
  std::map<std::string, uint64_t> sizes;
  for (const auto& entry : fs::directory_iterator(folder)) {
    sizes[entry.path().filename().string()] = entry.file_size();
  }
  return sizes;
}

void delete_checkpoint(const std::string& path) {
  // Under another name first: what is half deleted must not look whole.
  const std::string doomed = fmt::format("{}{}{}", path, kTemporary, ::getpid());
  std::error_code error;
  fs::rename(path, doomed, error);
  if (!error) fs::remove_all(doomed, error);
  if (error) log_warning("train", "cannot delete '{}': {}", path, error.message());
}

void apply_limit(const std::string& folder, int64_t limit) {
  if (limit <= 0) return;
  const std::vector<std::string> paths = find_checkpoints(folder);
  const auto count = static_cast<int64_t>(paths.size());
  for (int64_t i = 0; i + limit < count; ++i) delete_checkpoint(paths[static_cast<size_t>(i)]);
}

void write_checkpoint(const CheckpointContents& contents, const CheckpointOptions& options) {
  const std::string name = fmt::format("{}{}", kPrefix, contents.state.step);
  try {
    check_space(options.folder, bytes_of(contents));
    TemporaryFolder folder(options.folder + "/" + name);
    write_weights(folder.path(), contents.model_stem, contents.model, options.max_shard_bytes);
    for (const auto& [file, content] : contents.files) {
      write_file_atomic(folder.path() + "/" + file, content);
    }
    for (const auto& [stem, tensors] : contents.tensors) {
      write_safetensors(folder.path() + "/" + stem + ".safetensors", tensors);
    }
    Json state = contents.state.to_json();
    state["files"] = sizes_of(folder.path());
    write_file_atomic(folder.path() + "/" + kStateFile, state.dump() + "\n");
    folder.commit();
  } catch (const std::exception& e) {
    const auto latest = latest_checkpoint(options.folder);
    fail("{} was not written: {}; {}", name, e.what(),
         latest ? fmt::format("the latest checkpoint is '{}'", *latest)
                : std::string("there is no earlier checkpoint"));
  }
  apply_limit(options.folder, options.save_total_limit);
}

Tensor host_copy(const Tensor& tensor) {
  const Tensor packed = tensor.contiguous();
  Tensor copy = Tensor::empty(packed.shape(), packed.dtype());
  if (packed.numel() > 0) copy.copy_from(packed);
  return copy;
}
void snapshot(NamedTensors& tensors) {
  for (auto& [name, tensor] : tensors) tensor = host_copy(tensor);
}

bool is_alive(int64_t process) {
  if (process <= 0 || process == ::getpid()) return false;
  return ::kill(static_cast<pid_t>(process), 0) == 0 || errno == EPERM;
}

}  // namespace

Json TrainState::to_json() const {
  return {{"step", step},
          {"epoch", epoch},
          {"optimizer", optimizer},
          {"schedule", schedule},
          {"rng", rng},
          {"data", data},
          {"log", log}};
}

TrainState TrainState::from_json(const Json& json) {
  check(json.is_object() && json.contains("step"), "trainer_state.json has no 'step'");
  TrainState state;
  state.step = json_get<int64_t>(json, "step", 0);
  state.epoch = json_get<double>(json, "epoch", 0);
  state.optimizer = json.value("optimizer", Json());
  state.schedule = json.value("schedule", Json());
  state.rng = json.value("rng", Json());
  state.data = json.value("data", Json());
  state.log = json.value("log", Json());
  return state;
}

ModelFiles read_model_files(const std::string& folder) {
  static constexpr const char* kNames[] = {"config.json",       "generation_config.json",
                                           "tokenizer.json",    "tokenizer_config.json",
                                           "tokenizer.model",   "special_tokens_map.json",
                                           "added_tokens.json", "vocab.json",
                                           "vocab.txt",         "merges.txt",
                                           "spiece.model",      "chat_template.jinja",
                                           "chat_template.json"};
  ModelFiles files;
  for (const char* name : kNames) {
    const std::string path = folder + "/" + name;
    if (fs::is_regular_file(path)) files[name] = read_file(path);
  }
  return files;
}

std::string config_for_dtype(const std::string& config_json, DType dtype) {
  Json config = parse_json(config_json, "config.json");
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (config.contains(key)) config[key] = dtype_name(dtype);
  }
  if (!config.contains("dtype") && !config.contains("torch_dtype")) {
    config["dtype"] = dtype_name(dtype);
  }
  config.erase("quantization_config");
  return config.dump(2) + "\n";
}

void write_model_folder(const std::string& folder, const std::string& model_stem,
                        const NamedTensors& model, const ModelFiles& files,
                        int64_t max_shard_bytes) {
  try {
    const TemporaryFolder temporary(folder + "/model");
    check_space(temporary.path(), bytes_of(model));
    for (const auto& [name, content] : files) {
      write_file_atomic(temporary.path() + "/" + name, content);
    }
    const std::vector<std::string> weights =
        write_weights(temporary.path(), model_stem, model, max_shard_bytes);
    remove_weights(folder, model_stem);
    const fs::path from = temporary.path(), to = folder;
    for (const auto& [name, content] : files) fs::rename(from / name, to / name);
    for (const std::string& name : weights) fs::rename(from / name, to / name);
    sync_folder(folder);
  } catch (const std::exception& e) {
    fail("the model was not written to '{}': {}", folder, e.what());
  }
}

struct CheckpointWriter::Job {
  CheckpointContents contents;
  std::exception_ptr error;
  std::thread thread;
};

CheckpointWriter::CheckpointWriter(CheckpointOptions options) : options_(std::move(options)) {
  check(options_.save_total_limit >= 0, "--save_total_limit must not be negative, got {}",
        options_.save_total_limit);
  std::error_code error;
  fs::create_directories(options_.folder, error);
  check(!error, "cannot create folder '{}': {}", options_.folder, error.message());
  const int removed = remove_unfinished_checkpoints(options_.folder);
  if (removed > 0) {
    log_info("train", "removed {} half-written checkpoint(s) from '{}'", removed, options_.folder);
  }
}

CheckpointWriter::~CheckpointWriter() {
  try {
    wait();
  } catch (const std::exception& e) {
    log_error("train", "{}", e.what());
  }
}

void CheckpointWriter::save(const CheckpointContents& contents) {
  wait();
  if (!options_.background) return write_checkpoint(contents, options_);
  job_ = std::make_unique<Job>();
  job_->contents = contents;
  snapshot(job_->contents.model);
  for (auto& [stem, tensors] : job_->contents.tensors) snapshot(tensors);
  job_->thread = std::thread([job = job_.get(), options = options_] {
    try {
      write_checkpoint(job->contents, options);
    } catch (...) {
      job->error = std::current_exception();
    }
    job->contents = {};  // the snapshot's memory
  });
}

void CheckpointWriter::wait() {
  if (job_ == nullptr) return;
  const std::unique_ptr<Job> job = std::move(job_);
  job->thread.join();
  if (job->error) std::rethrow_exception(job->error);
}

std::string checkpoint_fault(const std::string& path) {
  try {
    const Json state = read_json_file(path + "/" + kStateFile);
    TrainState::from_json(state);
    check(state.contains("files") && state["files"].is_object(), "{} lists no files", kStateFile);
    for (const auto& [name, size] : state["files"].items()) {
      std::error_code error;
      const auto bytes = fs::file_size(fs::path(path) / name, error);
      check(!error, "'{}' is missing", name);
      check(size == bytes, "'{}' has {} bytes, not {}", name, bytes, size.dump());
    }
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

std::vector<std::string> find_checkpoints(const std::string& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const int64_t step = step_of(entry.path().filename().string());
    if (step < 0 || !entry.is_directory()) continue;
    const std::string fault = checkpoint_fault(entry.path().string());
    if (fault.empty()) {
      found.emplace_back(step, entry.path().string());
    } else {
      log_warning("train", "'{}' is not a whole checkpoint: {}", entry.path().string(), fault);
    }
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  paths.reserve(found.size());
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

std::optional<std::string> latest_checkpoint(const std::string& folder) {
  const std::vector<std::string> paths = find_checkpoints(folder);
  if (paths.empty()) return std::nullopt;
  return paths.back();
}

TrainState read_train_state(const std::string& path) {
  return TrainState::from_json(read_json_file(path + "/" + kStateFile));
}

int remove_unfinished_checkpoints(const std::string& folder) {
  int removed = 0;
  std::error_code error;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder, error)) paths.push_back(entry.path());
  for (const fs::path& path : paths) {
    const std::string name = path.filename().string();
    const size_t at = name.find(kTemporary);
    if (at == std::string::npos || step_of(name.substr(0, at)) < 0) continue;
    int64_t process = 0;
    const char* digits = name.data() + at + kTemporary.size();
    std::from_chars(digits, name.data() + name.size(), process);
    if (is_alive(process)) continue;
    fs::remove_all(path, error);
    if (!error) ++removed;
  }
  return removed;
}

}  // namespace reft
