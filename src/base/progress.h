// A progress bar on stderr: ` ████████▏ 100.0% [ 199/ 199 | 476.2 Hz | 0s<0s] label`. Drawn in
// place on a terminal; elsewhere only the finished bar is printed. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace reft {

class ProgressBar {
 public:
  // `total` counts items, or bytes with `unit_bytes` (rates then read MB/s). `quiet` prints
  // nothing.
  ProgressBar(int64_t total, std::string label, bool unit_bytes = false, bool quiet = false);
  ~ProgressBar();  // finishes the bar
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void advance(int64_t n = 1);
  // Takes the bar off the terminal until it is drawn next, so that a line can be printed.
  void hide();
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace reft
