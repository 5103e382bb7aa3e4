#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdlib>

#include "base/check.h"

namespace reft {
namespace {

spdlog::logger& sink() {
  static spdlog::logger* logger = [] {
    auto* l = new spdlog::logger("reft", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    l->set_pattern("[%Y-%m-%d %H:%M:%S.%e] %v");
    l->set_level(spdlog::level::trace);
    return l;
  }();
  return *logger;
}

LogLevel initial_level() {
  const char* name = std::getenv("REFT_LOG_LEVEL");
  if (name == nullptr) return LogLevel::kInfo;
  try {
    return parse_log_level(name);
  } catch (const Error&) {
    return LogLevel::kInfo;
  }
}

std::atomic<LogLevel>& current_level() {
  static std::atomic<LogLevel> level{initial_level()};
  return level;
}

const char* level_name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
    case LogLevel::kOff:
      return "off";
  }
  return "?";
}

std::string escape_control(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

void set_log_level(LogLevel level) { current_level() = level; }
LogLevel log_level() { return current_level(); }

LogLevel parse_log_level(std::string_view name) {
  for (LogLevel level :
       {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError, LogLevel::kOff}) {
    if (name == level_name(level)) return level;
  }
  fail("unknown log level '{}': expected debug, info, warning, error or off", name);
}

void write_log(LogLevel level, std::string_view component, std::string_view message) {
  sink().log(spdlog::level::info, "[{}] [{}] {}", component, level_name(level),
             escape_control(message));
}

}  // namespace reft
