// The Hugging Face hub's cache on disk, in its own layout, so that other programs find what we
// download:
//   models--org--name/refs/<revision>            a commit
//   models--org--name/snapshots/<commit>/<path>  a relative symlink to
//   models--org--name/blobs/<etag>               the content
//   .locks/models--org--name/<etag>.lock         flock'ed while a blob is being downloaded
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace reft {

class RepoCache {
 public:
  // Touches no disk.
  RepoCache(const std::string& cache_dir, const std::string& repo);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path blob(const std::string& etag) const { return folder_ / "blobs" / etag; }
  std::filesystem::path snapshot(const std::string& commit) const {
    return folder_ / "snapshots" / commit;
  }
  std::filesystem::path lock_file(const std::string& etag) const {
    return locks_ / (etag + ".lock");
  }

  // The commit that `revision` (a branch, a tag, a commit) stood for when it was last downloaded,
  // if its snapshot is there. Stale references give nothing.
  std::optional<std::string> find_commit(const std::string& revision) const;
  // Files of a snapshot that really exist (no dangling links), sorted; names relative to it.
  std::vector<std::string> files(const std::string& commit) const;

  // Throw Error naming the path (read-only, disk full).
  void write_ref(const std::string& revision, const std::string& commit) const;
  void link(const std::string& commit, const std::string& path, const std::string& etag) const;

 private:
  std::filesystem::path folder_;
  std::filesystem::path locks_;
};

// Creates the folder and its parents. Throws Error naming it and the way to choose another cache.
void make_cache_folder(const std::filesystem::path& folder);

// Holds an exclusive lock on a file, across processes, until it goes out of scope.
class FileLock {
 public:
  // Waits for the lock; says so in the log after a while.
  explicit FileLock(const std::filesystem::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace reft
