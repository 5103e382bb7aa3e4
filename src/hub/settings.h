// HubOptions with the environment filled in, and the knobs that only tests turn.
#pragma once

#include <cstdint>
#include <string>

#include "hub/resolve.h"

namespace reft {

struct HubSettings {
  std::string revision = "main";
  std::string token;
  std::string cache_dir;
  std::string endpoint;  // without a slash at the end
  bool offline = false;
  bool update = false;
  bool quiet = false;
  int connections = 8;

  int retries = 5;             // in a row without a byte of progress
  double retry_delay_s = 0.5;  // doubled each time
  double idle_timeout_s = 30;
  int64_t segment_bytes = int64_t{32} << 20;  // of a file that is fetched in parallel
};

// Reads HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE where
// `options` is silent.
HubSettings hub_settings(const HubOptions& options);
std::string resolve_model(const std::string& model, const HubSettings& settings);

}  // namespace reft
