#include "base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mutex>

#include "base/check.h"

namespace reft {
namespace {

using Clock = std::chrono::steady_clock;

std::string rate_text(double per_second, bool bytes) {
  const char* unit = bytes ? "B/s" : "Hz";
  const char* prefix = "";
  for (const char* next : {"k", "M", "G"}) {
    if (per_second < 1000) break;
    per_second /= 1000;
    prefix = next;
  }
  return fmt::format("{:.1f} {}{}", per_second, prefix, unit);
}

}  // namespace

struct ProgressBar::State {
  std::mutex mutex;
  int64_t total;
  int64_t done = 0;
  std::string label;
  bool bytes;
  bool quiet;
  bool terminal = ::isatty(STDERR_FILENO) == 1;
  bool finished = false;
  Clock::time_point start = Clock::now();
  Clock::time_point drawn{};

  void draw(bool last) {
    if (quiet) return;
    const auto now = Clock::now();
    if (!last && (!terminal || now - drawn < std::chrono::milliseconds(50))) return;
    drawn = now;
    const double fraction = total > 0 ? std::min(1.0, double(done) / double(total)) : 1.0;
    const double seconds = std::chrono::duration<double>(now - start).count();
    const double rate = seconds > 0 ? double(done) / seconds : 0;
    const double left = rate > 0 ? double(total - done) / rate : 0;
    constexpr int kWidth = 40;
    const int full = static_cast<int>(fraction * kWidth);
    std::string bar;
    for (int i = 0; i < kWidth; ++i) bar += i < full ? "█" : " ";
    const std::string counts =
        bytes ? fmt::format("{:.1f}/{:.1f} MB", double(done) / 1e6, double(total) / 1e6)
              : fmt::format("{:4}/{:4}", done, total);
    const std::string line =
        fmt::format(" {}▏ {:5.1f}% [{} | {} | {:.0f}s<{:.0f}s] {}", bar, fraction * 100, counts,
                    rate_text(rate, bytes), seconds, std::max(0.0, left), label);
    std::fprintf(stderr, "%s%s%s", terminal ? "\r\x1b[2K" : "", line.c_str(), last ? "\n" : "");
    std::fflush(stderr);
  }
};

ProgressBar::ProgressBar(int64_t total, std::string label, bool unit_bytes, bool quiet)
    : state_(std::make_unique<State>()) {
  state_->total = total;
  state_->label = std::move(label);
  state_->bytes = unit_bytes;
  state_->quiet = quiet;
}

ProgressBar::~ProgressBar() { finish(); }

void ProgressBar::advance(int64_t n) {
  std::lock_guard lock(state_->mutex);
  state_->done += n;
  state_->draw(false);
}

void ProgressBar::hide() {
  std::lock_guard lock(state_->mutex);
  if (state_->quiet || !state_->terminal || state_->finished) return;
  std::fputs("\r\x1b[2K", stderr);
  std::fflush(stderr);
  state_->drawn = {};
}

void ProgressBar::finish() {
  std::lock_guard lock(state_->mutex);
  if (state_->finished) return;
  state_->finished = true;
  state_->draw(true);
}

}  // namespace reft
