#include "hub/cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "hub/model_files.h"

namespace reft {

namespace fs = std::filesystem;

RepoCache::RepoCache(const std::string& cache_dir, const std::string& repo) {
  std::string name = "models--" + repo;
  const size_t slash = name.find('/');
  if (slash != std::string::npos) name.replace(slash, 1, "--");
  folder_ = fs::path(cache_dir) / name;
  locks_ = fs::path(cache_dir) / ".locks" / name;
}

std::optional<std::string> RepoCache::find_commit(const std::string& revision) const {
  if (!is_safe_path(revision)) return std::nullopt;
  std::error_code error;
  const fs::path ref = folder_ / "refs" / revision;
  std::string commit = revision;
  if (fs::is_regular_file(ref, error)) {
    commit = read_file(ref.string());
    commit.erase(commit.find_last_not_of(" \r\n") + 1);
  }
  const bool usable = is_safe_path(commit) && commit.find('/') == std::string::npos;
  if (!usable || !fs::is_directory(snapshot(commit), error)) return std::nullopt;
  return commit;
}

std::vector<std::string> RepoCache::files(const std::string& commit) const {
  std::vector<std::string> names;
  const fs::path root = snapshot(commit);
  std::error_code error;
  for (fs::recursive_directory_iterator it(root, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code dangling;
    if (fs::is_regular_file(it->path(), dangling))
      names.push_back(it->path().lexically_relative(root).string());
  }
  std::ranges::sort(names);
  return names;
}

void RepoCache::write_ref(const std::string& revision, const std::string& commit) const {
  if (revision == commit) return;
  const fs::path ref = folder_ / "refs" / revision;
  make_cache_folder(ref.parent_path());
  write_file_atomic(ref.string(), commit);
}

void RepoCache::link(const std::string& commit, const std::string& path,
                     const std::string& etag) const {
  const fs::path at = snapshot(commit) / path;
  make_cache_folder(at.parent_path());
  const fs::path target = blob(etag).lexically_relative(at.parent_path());
  std::error_code error;
  if (fs::read_symlink(at, error) == target) return;
  const fs::path temporary = at.string() + fmt::format(".tmp-{}", ::getpid());
  fs::remove(temporary, error);
  fs::create_symlink(target, temporary, error);
  // Some file systems have no symlinks.
  if (error) fs::copy_file(blob(etag), temporary, fs::copy_options::overwrite_existing, error);
  if (!error) fs::rename(temporary, at, error);
  check(!error, "cannot create '{}': {}", at.string(), error.message());
}

void make_cache_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  check(!error,
        "cannot create the folder '{}': {} (HF_HUB_CACHE or --download_dir chooses another cache)",
        folder.string(), error.message());
}

FileLock::FileLock(const fs::path& path) {
  make_cache_folder(path.parent_path());
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  check(fd_ >= 0, "cannot open '{}': {}", path.string(), std::strerror(errno));
  using std::chrono::milliseconds;
  for (milliseconds waited{0};; waited += milliseconds(100)) {
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
    if (errno != EWOULDBLOCK && errno != EINTR) {
      const int error = errno;
      ::close(fd_);
      fail("cannot lock '{}': {}", path.string(), std::strerror(error));
    }
    if (waited == milliseconds(2000))
      log_info("Hub", "Waiting for another process that downloads the same file");
    std::this_thread::sleep_for(milliseconds(100));
  }
}

FileLock::~FileLock() { ::close(fd_); }

}  // namespace reft
