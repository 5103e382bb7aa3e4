// What all handlers share while the server runs.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "engine/engine.h"
#include "engine/metrics.h"
#include "server/request_context.h"
#include "server/server.h"
#include "speech/speech_engine.h"

namespace reft {

// Counts of HTTP answers by handler, method and status class. Thread-safe. The handler is a route's
// path, never the client's text, so the number of series is bounded.
class HttpMetrics {
 public:
  void observe(const std::string& handler, const std::string& method, int status, double seconds);
  // Appends Prometheus text.
  void print(std::string& out) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::tuple<std::string, std::string, std::string>, uint64_t> requests_;
  std::map<std::string, Histogram> durations_;
};

// Generations that the engine still calls back. The server must not go away before they end.
class LiveCount {
 public:
  void add();
  void remove();
  int64_t count() const;
  // False when some were left after `timeout_ms`.
  bool wait_for_none(int64_t timeout_ms);

 private:
  mutable std::mutex mutex_;
  std::condition_variable none_;
  int64_t count_ = 0;
};

struct ServeContext {
  // One of the two is served.
  Engine* text = nullptr;
  SpeechEngine* speech = nullptr;
  ServerOptions options;
  RequestContext request;
  std::string system_fingerprint;
  int64_t created = 0;  // Unix time of the start
  HttpMetrics http_metrics;
  LiveCount generations;
  std::atomic<bool> aborting = false;  // shutting down without grace

  // Throws RequestError 400 where a speech model is served.
  Engine& engine() const {
    if (text == nullptr) {
      throw RequestError(
          "this server's model is one of speech: use /v1/audio/transcriptions or "
          "/v1/audio/translations",
          "model", 400, "model_not_supported");
    }
    return *text;
  }
};

// The text of /metrics: the engine's counters under vLLM's names, then HTTP.
std::string prometheus_text(const ServeContext& context);

// "chatcmpl-" + 32 hex digits and the like.
std::string random_hex(size_t digits);

}  // namespace reft
