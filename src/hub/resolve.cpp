#include "hub/resolve.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "base/file.h"
#include "base/log.h"
#include "hub/cache.h"
#include "hub/download.h"
#include "hub/hub_api.h"
#include "hub/model_files.h"
#include "hub/settings.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

// What the cache has of a model.
struct LocalModel {
  std::string path;       // empty: nothing that could be loaded
  bool complete = false;  // nothing is left to ask the hub for
  std::string problem = "it is not in the cache";
};

std::string path_of(const RepoCache& cache, const std::string& commit, const Selection& selection) {
  const fs::path snapshot = cache.snapshot(commit);
  return (selection.gguf.empty() ? snapshot : snapshot / selection.gguf).string();
}

LocalModel find_local(const RepoCache& cache, const std::string& revision,
                      const std::string& variant) {
  LocalModel local;
  const auto commit = cache.find_commit(revision);
  if (!commit) return local;
  const std::vector<std::string> names = cache.files(*commit);
  Selection selection;
  try {
    selection = select_files(names, variant, [&](const std::string& name) {
      return read_file((cache.snapshot(*commit) / name).string());
    });
  } catch (const Error& e) {
    local.problem = e.what();
    return local;
  }
  if (!selection.missing.empty()) {
    local.problem =
        fmt::format("its download is not complete: '{}' is missing", selection.missing.front());
  } else if (!selection.files.empty()) {
    local.path = path_of(cache, *commit, selection);
    const auto has = [&](const char* name) {
      return std::ranges::find(names, name) != names.end();
    };
    const auto weights = std::ranges::count_if(
        selection.files, [](const std::string& name) { return name.ends_with(".safetensors"); });
    // Without an index nobody knows whether another weight file belongs to it.
    const bool all_weights = weights == 1 || has("model.safetensors.index.json");
    local.complete =
        !selection.gguf.empty() || (all_weights && has("config.json") && has_tokenizer(names));
  }
  return local;
}

std::string download(const HubSettings& settings, const RepoCache& cache, const ModelName& name) {
  const HubApi api(settings, name.repo);
  HttpClient client(true);
  const RepoListing listing = api.list(client);
  Selection selection;
  try {
    selection = select_files(listing.files, name.variant, [&](const std::string& index) {
      HubSettings no_bar = settings;
      no_bar.quiet = true;
      download_files(no_bar, api, cache, listing.commit, {index});
      return read_file((cache.snapshot(listing.commit) / index).string());
    });
  } catch (const HttpError&) {
    throw;
  } catch (const Error& e) {
    fail("'{}': {}", name.repo, e.what());
  }
  check(selection.missing.empty(), "'{}' has no file '{}', which its index or its split names",
        name.repo, selection.missing.empty() ? "" : selection.missing.front());
  if (selection.files.empty()) {
    const bool pickle = std::ranges::any_of(listing.files, [](const std::string& file) {
      return file.ends_with(".bin") || file.ends_with(".pt") || file.ends_with(".pth");
    });
    fail("'{}' has no .safetensors and no .gguf file{}", name.repo,
         pickle ? ", only pickle files, which can run code and are not read" : "");
  }
  if (!settings.quiet)
    log_info("Hub", "Fetching {} files of {} into {}", selection.files.size(), name.repo,
             cache.folder().string());
  download_files(settings, api, cache, listing.commit, selection.files);
  cache.write_ref(settings.revision, listing.commit);
  return path_of(cache, listing.commit, selection);
}

}  // namespace

std::string resolve_model(const std::string& model, const HubSettings& settings) {
  std::error_code ignored;
  check(!model.empty(), "the model's name is empty");
  if (fs::exists(model, ignored)) return model;
  const ModelName name = parse_model_name(model);
  check(is_safe_path(settings.revision), "bad revision '{}'", settings.revision);
  const RepoCache cache(settings.cache_dir, name.repo);
  const LocalModel local = find_local(cache, settings.revision, name.variant);
  if (settings.offline) {
    check(!local.path.empty(), "'{}' cannot be loaded offline (HF_HUB_OFFLINE): {} ('{}')", model,
          local.problem, cache.folder().string());
    return local.path;
  }
  if (local.complete && !settings.update) return local.path;
  try {
    return download(settings, cache, name);
  } catch (const HttpError& e) {
    if (local.path.empty())
      fail("'{}' is no file or folder here and cannot be downloaded: {}", model, e.what());
    log_warning("Hub", "Using the cached '{}', as the hub cannot be asked: {}", model, e.what());
    return local.path;
  }
}

std::string resolve_model(const std::string& model, const HubOptions& options) {
  return resolve_model(model, hub_settings(options));
}

}  // namespace reft
