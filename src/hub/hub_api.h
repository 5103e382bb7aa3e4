// The few requests of the Hugging Face hub that a download needs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "hub/http_client.h"
#include "hub/settings.h"

namespace reft {

struct RepoListing {
  std::string commit;
  std::vector<std::string> files;
};

struct RemoteFile {
  std::string path;
  std::string etag;   // sha256 of files in large-file storage, git's blob sha1 of others
  int64_t size = -1;  // -1: the server does not say
};

// Thread-safe: every call brings its own client.
class HubApi {
 public:
  HubApi(const HubSettings& settings, std::string repo)
      : settings_(settings), repo_(std::move(repo)) {}

  // Both retry what may be a passing fault. Throw Error that says what to do otherwise.
  RepoListing list(HttpClient& client) const;
  RemoteFile head(HttpClient& client, const std::string& commit, const std::string& path) const;

  // The request for the content of a file.
  ClientRequest content_request(const std::string& commit, const std::string& path) const;
  // Throws Error unless the answer is 2xx: HttpError that may be retried for 408, 429 and 5xx.
  void check_status(const ClientResponse& response, const std::string& path) const;

 private:
  ClientResponse send(HttpClient& client, const ClientRequest& request,
                      const std::string& path) const;

  const HubSettings& settings_;
  std::string repo_;
};

// Sleeps before try number `attempt` (from 1), longer each time.
void wait_before_retry(const HubSettings& settings, int attempt);

}  // namespace reft
