// Log lines: `[2025-11-11 07:02:50.007] [component] [info] message`, on stderr. Thread-safe.
// Control characters in messages are escaped, so that user text cannot forge lines.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <utility>

namespace reft {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// Lines below `level` are dropped. The default is kInfo, or REFT_LOG_LEVEL
// (debug|info|warning|error|off).
void set_log_level(LogLevel level);
LogLevel log_level();
// Throws Error on an unknown name.
LogLevel parse_log_level(std::string_view name);

void write_log(LogLevel level, std::string_view component, std::string_view message);

template <class... Args>
void log(LogLevel level, std::string_view component, fmt::format_string<Args...> format,
         Args&&... args) {
  if (level >= log_level())
    write_log(level, component, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_debug(std::string_view component, fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kDebug, component, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_info(std::string_view component, fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kInfo, component, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_warning(std::string_view component, fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kWarning, component, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_error(std::string_view component, fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kError, component, format, std::forward<Args>(args)...);
}

}  // namespace reft
