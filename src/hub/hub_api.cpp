#include "hub/hub_api.h"

#include <algorithm>
#include <charconv>
#include <thread>

#include "base/json.h"
#include "hub/model_files.h"

namespace reft {
namespace {

// The header without quotes and without the mark of a weak one.
std::string etag_of(std::string_view value) {
  if (value.starts_with("W/")) value.remove_prefix(2);
  if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
    value = value.substr(1, value.size() - 2);
  return std::string(value);
}

int64_t parse_size(std::string_view text) {
  int64_t size = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), size);
  return error == std::errc() && end == text.data() + text.size() && size >= 0 ? size : -1;
}

}  // namespace

void wait_before_retry(const HubSettings& settings, int attempt) {
  const double seconds =
      std::min(settings.retry_delay_s * static_cast<double>(1 << std::min(attempt - 1, 10)), 30.0);
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

ClientRequest HubApi::content_request(const std::string& commit, const std::string& path) const {
  ClientRequest request;
  request.url = fmt::format("{}/{}/resolve/{}/{}", settings_.endpoint, repo_,
                            encode_url_path(commit), encode_url_path(path));
  if (!settings_.token.empty()) request.headers = {{"Authorization", "Bearer " + settings_.token}};
  request.idle_timeout_s = settings_.idle_timeout_s;
  request.connect_timeout_s = settings_.idle_timeout_s;
  return request;
}

void HubApi::check_status(const ClientResponse& response, const std::string& path) const {
  const int status = response.status;
  if (status >= 200 && status < 300) return;
  const std::string code(response.header("X-Error-Code"));
  const std::string place =
      path.empty() ? "'" + repo_ + "'" : fmt::format("'{}' of '{}'", path, repo_);
  const bool with_token = !settings_.token.empty();
  // Storage on another host refuses addresses that have expired.
  const bool expired = status == 403 && !response.url.same_origin(parse_url(settings_.endpoint));
  if (expired || status == 408 || status == 429 || status >= 500) {
    throw HttpError(
        fmt::format("{}: {} answers with HTTP status {}", place, settings_.endpoint, status), true);
  }
  if (code == "GatedRepo" || status == 403) {
    fail("'{}' is gated (HTTP status {}): accept its conditions at {}/{}, then {}", repo_, status,
         settings_.endpoint, repo_,
         with_token ? "use the token of an account that has access: the one that was sent has none"
                    : "set HF_TOKEN (or --hf_token) to a token of your account");
  }
  if (code == "RevisionNotFound") fail("'{}' has no revision '{}'", repo_, settings_.revision);
  if (status == 401) {
    fail("no access to '{}' (HTTP status 401): it does not exist, or it is private; {}", repo_,
         with_token ? "the token that was sent is not accepted"
                    : "set HF_TOKEN (or --hf_token) if it is private");
  }
  if (status == 404) {
    if (!path.empty()) fail("{} has no file '{}' (HTTP status 404)", repo_, path);
    fail("no model '{}' on {} (HTTP status 404): check the name{}", repo_, settings_.endpoint,
         settings_.revision == "main" ? "" : " and the revision '" + settings_.revision + "'");
  }
  fail("{}: {} answers with HTTP status {}", place, settings_.endpoint, status);
}

ClientResponse HubApi::send(HttpClient& client, const ClientRequest& request,
                            const std::string& path) const {
  for (int attempt = 1;; ++attempt) {
    try {
      ClientResponse response = client.send(request);
      // Of a HEAD, a redirect to where the content lies is the answer.
      if (response.status < 300 || response.status >= 400 || request.method != "HEAD")
        check_status(response, path);
      return response;
    } catch (const HttpError& e) {
      if (!e.retryable() || attempt >= settings_.retries) throw;
    }
    wait_before_retry(settings_, attempt);
  }
}

RepoListing HubApi::list(HttpClient& client) const {
  ClientRequest request = content_request("", "");
  request.url = fmt::format("{}/api/models/{}/revision/{}", settings_.endpoint, repo_,
                            // One path segment: refs/pr/1 is a revision.
                            [&] {
                              std::string text = encode_url_path(settings_.revision);
                              for (size_t at; (at = text.find('/')) != std::string::npos;)
                                text.replace(at, 1, "%2F");
                              return text;
                            }());
  const ClientResponse response = send(client, request, "");
  const std::string what =
      fmt::format("the list of files of '{}' from {}", repo_, settings_.endpoint);
  const Json json = parse_json(response.body, what);
  check(json.is_object(), "{} is not an object", what);
  RepoListing listing;
  listing.commit = json_get<std::string>(json, "sha", "");
  check(is_safe_path(listing.commit) && listing.commit.find('/') == std::string::npos,
        "{} has no commit", what);
  const auto siblings = json.find("siblings");
  check(siblings != json.end() && siblings->is_array(), "{} has no files", what);
  for (const Json& file : *siblings) {
    check(file.is_object(), "{} is malformed", what);
    std::string name = json_get<std::string>(file, "rfilename", "");
    check(is_safe_path(name), "{}: bad file name '{}'", what, name);
    listing.files.push_back(std::move(name));
  }
  std::ranges::sort(listing.files);
  return listing;
}

RemoteFile HubApi::head(HttpClient& client, const std::string& commit,
                        const std::string& path) const {
  ClientRequest request = content_request(commit, path);
  request.method = "HEAD";
  // The storage behind a redirect to another host does not know the etag.
  request.redirects = Redirects::kSameHost;
  const ClientResponse response = send(client, request, path);
  RemoteFile file;
  file.path = path;
  const std::string_view linked = response.header("X-Linked-Etag");
  file.etag = etag_of(linked.empty() ? response.header("ETag") : linked);
  const bool good = is_safe_path(file.etag) && file.etag.find('/') == std::string::npos &&
                    file.etag.size() <= 200;
  check(good, "{} sends no usable etag for '{}' of '{}'", settings_.endpoint, path, repo_);
  const std::string_view linked_size = response.header("X-Linked-Size");
  const bool redirect = response.status >= 300;
  file.size = parse_size(!linked_size.empty() ? linked_size
                         : redirect           ? ""
                                              : response.header("Content-Length"));
  const std::string_view answered = response.header("X-Repo-Commit");
  check(answered.empty() || answered == commit, "'{}' of '{}': asked for commit {}, got {}", path,
        repo_, commit, answered);
  return file;
}

}  // namespace reft
