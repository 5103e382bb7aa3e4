#include "hub/download.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/log.h"
#include "base/progress.h"
#include "hub/blob_file.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

// Runs f(worker's client) on up to `count` threads and rethrows the first exception.
template <class F>
void run_workers(int count, F f) {
  std::exception_ptr first;
  std::mutex mutex;
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&] {
      try {
        HttpClient client(true);
        f(client);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

// Thrown inside a worker when another one has failed.
struct Stopped : std::exception {};

// A blob to fetch. `kProbing`: its first request is under way and will show whether the server
// sends ranges.
struct Job {
  enum State { kNew, kProbing, kOpen, kChecking, kFinished };

  RemoteFile file;
  std::vector<std::string> paths;  // all files of the snapshot with this content
  std::unique_ptr<BlobFile> blob;
  State state = kNew;
  std::vector<size_t> pending;  // segments that no worker has taken, last first
  size_t active = 0;            // workers on it
  int bad_hashes = 0;
};

class Downloader {
 public:
  Downloader(const HubSettings& settings, const HubApi& api, const RepoCache& cache,
             const std::string& commit)
      : settings_(settings), api_(api), cache_(cache), commit_(commit) {}

  void run(const std::vector<std::string>& paths) {
    std::vector<std::string> wanted;
    for (const std::string& path : paths) {
      std::error_code dangling;
      // A commit never changes: what is linked is right.
      if (!fs::is_regular_file(cache_.snapshot(commit_) / path, dangling)) wanted.push_back(path);
    }
    if (wanted.empty()) return;
    make_cache_folder(cache_.folder() / "blobs");
    make_jobs(wanted);
    if (jobs_.empty()) return;
    int64_t total = 0;
    int64_t done = 0;
    for (Job& job : jobs_) {
      start(job);
      total += std::max<int64_t>(job.file.size, 0);
      done += job.blob->done();
    }
    check_space(total - done);
    ProgressBar progress(total, "Downloading", true, settings_.quiet);
    progress_ = &progress;
    progress.advance(done);
    run_workers(settings_.connections, [this](HttpClient& client) { work(client); });
  }

 private:
  // Asks for the etags, links what is there and leaves the rest in jobs_. The locks of all that is
  // missing are taken in one order, so that two processes cannot wait for each other.
  void make_jobs(const std::vector<std::string>& paths) {
    std::vector<RemoteFile> files(paths.size());
    std::atomic<size_t> next = 0;
    const int count = static_cast<int>(
        std::min<size_t>(paths.size(), static_cast<size_t>(settings_.connections)));
    run_workers(count, [&](HttpClient& client) {
      for (size_t i; (i = next++) < paths.size();) {
        try {
          files[i] = api_.head(client, commit_, paths[i]);
        } catch (...) {
          next = paths.size();
          throw;
        }
      }
    });
    std::map<std::string, Job> by_etag;
    for (RemoteFile& file : files) {
      Job& job = by_etag[file.etag];
      job.paths.push_back(file.path);
      job.file = std::move(file);
    }
    std::map<std::string, Job> missing;
    for (auto& [etag, job] : by_etag) {
      if (!in_cache(job.file)) {
        auto lock = std::make_unique<FileLock>(cache_.lock_file(etag));
        if (!in_cache(job.file)) {  // still: nobody fetched it while we waited
          locks_.push_back(std::move(lock));
          missing.emplace(job.paths.front(), std::move(job));
          continue;
        }
      }
      link(job);
    }
    // In the order of `paths`.
    for (const std::string& path : paths) {
      const auto it = missing.find(path);
      if (it != missing.end()) jobs_.push_back(std::move(it->second));
    }
  }

  bool in_cache(const RemoteFile& file) const {
    std::error_code error;
    const auto size = fs::file_size(cache_.blob(file.etag), error);
    return !error && (file.size < 0 || static_cast<int64_t>(size) == file.size);
  }

  void link(const Job& job) const {
    for (const std::string& path : job.paths) cache_.link(commit_, path, job.file.etag);
  }

  void check_space(int64_t needed) const {
    struct statvfs space {};
    if (::statvfs(cache_.folder().c_str(), &space) != 0) return;
    const auto free = static_cast<int64_t>(space.f_bavail) * static_cast<int64_t>(space.f_frsize);
    check(needed <= free,
          "not enough space in '{}': the download needs {:.1f} MB, {:.1f} MB are free",
          cache_.folder().string(), static_cast<double>(needed) / 1e6,
          static_cast<double>(free) / 1e6);
  }

  // --- Scheduling; mutex_ is held or no worker runs yet ---

  void start(Job& job) {
    job.blob = std::make_unique<BlobFile>(cache_.blob(job.file.etag), job.file.size,
                                          settings_.segment_bytes);
    job.state = Job::kNew;
    job.pending.clear();
    for (size_t i = job.blob->num_segments(); i-- > 0;) {
      if (!job.blob->segment(i).complete() || job.blob->open_ended()) job.pending.push_back(i);
    }
  }

  // A job with something to do, or null when all is finished. Waits while only probing will tell.
  Job* take(std::unique_lock<std::mutex>& lock) {
    for (;;) {
      if (stop_) throw Stopped();
      bool unfinished = false;
      for (Job& job : jobs_) {
        unfinished |= job.state != Job::kFinished;
        const bool ready =
            job.state == Job::kNew || (job.state == Job::kOpen && !job.pending.empty());
        if (!ready) continue;
        if (job.state == Job::kNew) job.state = Job::kProbing;
        ++job.active;
        return &job;
      }
      if (!unfinished) return nullptr;
      changed_.wait(lock);
    }
  }

  void work(HttpClient& client) {
    std::unique_lock lock(mutex_);
    try {
      while (Job* job = take(lock)) {
        std::optional<size_t> segment;
        if (!job->pending.empty()) {
          segment = job->pending.back();
          job->pending.pop_back();
        }
        lock.unlock();
        if (segment) fetch(client, *job, *segment);
        lock.lock();
        --job->active;
        if (job->state == Job::kProbing) job->state = Job::kOpen;
        if (job->active == 0 && job->pending.empty()) {
          job->state = Job::kChecking;
          lock.unlock();
          const bool good = finish(*job);
          lock.lock();
          job->state = Job::kFinished;
          if (!good) start(*job);
        }
        changed_.notify_all();
      }
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      const bool first = !stop_;
      stop_ = true;
      changed_.notify_all();
      if (first) throw;  // the others only follow
    }
  }

  // Checks and files a complete blob. False: its hash is wrong, and it must start anew.
  bool finish(Job& job) {
    const std::string problem = job.blob->verify(job.file.etag);
    if (problem.empty()) {
      job.blob->commit();
      job.blob.reset();
      link(job);
      return true;
    }
    job.blob->discard();
    progress_->advance(-job.blob->done());
    check(++job.bad_hashes < 2, "'{}' arrived damaged twice: {}; it was removed", job.file.path,
          problem);
    log_warning("Hub", "'{}' arrived damaged: {}; downloading it again", job.file.path, problem);
    return false;
  }

  // --- One segment ---

  void fetch(HttpClient& client, Job& job, size_t index) {
    int without_progress = 0;
    for (int failures = 0; job.blob->open_ended() ? true : !job.blob->segment(index).complete();) {
      const int64_t before = job.blob->segment(index).done;
      std::string problem;
      try {
        if (request(client, job, index)) return;
        problem = "the connection ended early";
      } catch (const HttpError& e) {
        if (!e.retryable()) throw;
        problem = e.what();
      }
      if (job.blob->open_ended()) restart(job);
      without_progress = job.blob->segment(index).done > before ? 0 : without_progress + 1;
      ++failures;
      if (without_progress >= settings_.retries || failures >= 20 * settings_.retries) {
        fail("'{}': {} (after {} of {} bytes and {} tries; another try goes on from there)",
             job.file.path, problem, job.blob->done(), job.file.size, failures);
      }
      log_debug("Hub", "'{}': {}; trying again", job.file.path, problem);
      wait_before_retry(settings_, without_progress + 1);
      if (stop_) throw Stopped();
    }
  }

  // One request for what the segment lacks. True: it is complete. Without ranges, `index` becomes
  // the only one.
  bool request(HttpClient& client, Job& job, size_t& index) {
    const Segment segment = job.blob->segment(index);
    const int64_t begin = segment.begin + segment.done;
    const int64_t end = segment.begin + segment.size;
    ClientRequest request = api_.content_request(commit_, job.file.path);
    const bool whole = job.blob->open_ended() || (begin == 0 && end == job.file.size);
    if (!whole) request.headers.emplace_back("Range", fmt::format("bytes={}-{}", begin, end - 1));
    bool taking = false;
    request.on_head = [&](const ClientResponse& head) {
      taking = head.status == 200 || head.status == 206;
      if (head.status == 206) {
        check_range(job, head, begin);
      } else if (head.status == 200) {
        check_length(job, head);
        if (!whole) no_ranges(job, index);
      } else if (head.status == 416) {
        lie(job, "fewer");
      }
      if (head.status == 206) open(job);
    };
    request.on_body = [&](std::string_view data) {
      if (stop_) throw Stopped();
      if (!taking) return;
      const Segment now = job.blob->segment(index);
      if (!job.blob->open_ended() && static_cast<int64_t>(data.size()) > now.size - now.done)
        lie(job, "more");
      job.blob->append(index, data);
      progress_->advance(static_cast<int64_t>(data.size()));
    };
    const ClientResponse answer = client.send(request);
    api_.check_status(answer, job.file.path);
    return job.blob->open_ended() || job.blob->segment(index).complete();
  }

  // The server sends ranges: other workers may join.
  void open(Job& job) {
    std::lock_guard lock(mutex_);
    if (job.state == Job::kProbing) job.state = Job::kOpen;
    changed_.notify_all();
  }

  // The server sends everything, whatever is asked: this worker takes it all.
  void no_ranges(Job& job, size_t& index) {
    std::lock_guard lock(mutex_);
    check(job.active == 1, "'{}': the server sends ranges only at times", job.file.path);
    job.state = Job::kProbing;
    job.pending.clear();
    restart(job);
    index = 0;
  }
  void restart(Job& job) {
    progress_->advance(-job.blob->done());
    job.blob->restart();
  }

  [[noreturn]] void lie(Job& job, std::string_view how_many) {
    job.blob->discard();
    fail("'{}': the hub promised {} bytes, but the server sends {}", job.file.path, job.file.size,
         how_many);
  }

  void check_length(Job& job, const ClientResponse& head) {
    const std::string_view length = head.header("Content-Length");
    if (!length.empty() && job.file.size >= 0 && length != std::to_string(job.file.size))
      lie(job, length);
  }

  // "bytes 5-9/10"
  void check_range(Job& job, const ClientResponse& head, int64_t begin) {
    const std::string_view range = head.header("Content-Range");
    check(range.starts_with(fmt::format("bytes {}-", begin)), "'{}': asked for byte {}, got '{}'",
          job.file.path, begin, range);
    const std::string_view total = range.substr(std::min(range.find('/'), range.size() - 1) + 1);
    if (total != "*" && total != std::to_string(job.file.size)) lie(job, total);
  }

  const HubSettings& settings_;
  const HubApi& api_;
  const RepoCache& cache_;
  const std::string& commit_;
  ProgressBar* progress_ = nullptr;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Before the jobs, because it must outlive them: a blob saves its progress when it goes.
  std::vector<std::unique_ptr<FileLock>> locks_;
  std::vector<Job> jobs_;
  std::atomic<bool> stop_ = false;
};

}  // namespace

void download_files(const HubSettings& settings, const HubApi& api, const RepoCache& cache,
                    const std::string& commit, const std::vector<std::string>& paths) {
  Downloader(settings, api, cache, commit).run(paths);
}

}  // namespace reft
