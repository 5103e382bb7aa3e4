#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>  // NOLINT: setenv
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error_of_test.h"
#include "base/file.h"
#include "hub/blob_file.h"
#include "hub/cache.h"
#include "hub/fake_hub_test.h"
#include "hub/model_files.h"
#include "hub/settings.h"

namespace reft {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// Bytes that differ everywhere, so that a segment in the wrong place is seen.
std::string noise(size_t size, uint32_t seed) {
  std::string out(size, '\0');
  for (char& c : out) {
    seed = seed * 1664525u + 1013904223u;
    c = static_cast<char>(seed >> 24);
  }
  return out;
}

class Hub : public testing::Test {
 protected:
  Hub() : folder_(fs::temp_directory_path() / ("reft_hub_" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    settings_.cache_dir = folder_.string();
    settings_.endpoint = hub_.address();
    settings_.quiet = true;
    settings_.retry_delay_s = 0.001;
    settings_.idle_timeout_s = 5;
    settings_.segment_bytes = 1000;
    hub_["config.json"].content = R"({"model_type":"llama"})";
    hub_["tokenizer.json"].content = "{}";
    hub_["README.md"].content = "not needed";
    hub_["pytorch_model.bin"].content = "not needed either";
    FakeFile& weights = hub_["model.safetensors"];
    weights.content = noise(10'500, 1);
    weights.large = true;
  }
  ~Hub() override { fs::remove_all(folder_); }

  FakeFile& weights() { return hub_["model.safetensors"]; }
  std::string resolve(const std::string& model = "org/model") {
    hub_.sync();
    return resolve_model(model, settings_);
  }
  std::string resolve_error(const std::string& model = "org/model") {
    const std::string error = error_of([&] { resolve(model); });
    hub_.sync();
    return error;
  }
  fs::path repo() const { return folder_ / "models--org--model"; }
  fs::path snapshot() const { return repo() / "snapshots" / hub_.commit; }
  std::string cached(const std::string& path) const {
    return read_file((snapshot() / path).string());
  }
  // What is not a finished blob.
  std::vector<std::string> leftovers(const std::string& etag = "") const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(repo() / "blobs")) {
      const std::string name = entry.path().filename().string();
      if (name.find('.') != std::string::npos && name.starts_with(etag)) names.push_back(name);
    }
    std::ranges::sort(names);
    return names;
  }
  void expect_all_there(const std::string& path) {
    EXPECT_EQ(path, snapshot().string());
    EXPECT_EQ(cached("config.json"), hub_["config.json"].content);
    EXPECT_EQ(cached("tokenizer.json"), "{}");
    EXPECT_TRUE(cached("model.safetensors") == weights().content);
    EXPECT_FALSE(fs::exists(snapshot() / "README.md"));
    EXPECT_FALSE(fs::exists(snapshot() / "pytorch_model.bin"));
    EXPECT_THAT(leftovers(), ElementsAre());
  }

  fs::path folder_;
  FakeHub hub_;
  HubSettings settings_;
};

TEST_F(Hub, DownloadsIntoTheHubsOwnLayout) {
  expect_all_there(resolve());
  EXPECT_EQ(read_file((repo() / "refs/main").string()), hub_.commit);
  const fs::path link = snapshot() / "model.safetensors";
  EXPECT_EQ(fs::read_symlink(link), fs::path("../../blobs") / sha256_of(weights().content));
  EXPECT_EQ(fs::read_symlink(snapshot() / "config.json"),
            fs::path("../../blobs") / git_hash_of(hub_["config.json"].content));
}

TEST_F(Hub, ACompleteSnapshotNeedsNoHub) {
  resolve();
  const size_t requests = hub_.seen().size();
  EXPECT_EQ(resolve(), snapshot().string());
  EXPECT_EQ(hub_.seen().size(), requests);
  settings_.endpoint = "http://127.0.0.1:1";
  EXPECT_EQ(resolve(), snapshot().string());
}

TEST_F(Hub, UpdateAsksAgainAndFallsBackToTheCache) {
  resolve();
  const std::string old_path = snapshot().string();
  hub_.commit = std::string(40, 'f');
  hub_["config.json"].content = R"({"model_type":"new"})";
  EXPECT_EQ(resolve(), old_path);
  settings_.update = true;
  const size_t before = hub_.num_content_requests();
  EXPECT_EQ(resolve(), snapshot().string());
  EXPECT_EQ(cached("config.json"), R"({"model_type":"new"})");
  EXPECT_EQ(hub_.num_content_requests() - before, 1U) << "only what changed is fetched";
  settings_.endpoint = "http://127.0.0.1:1";
  settings_.retries = 1;
  EXPECT_EQ(resolve(), snapshot().string());
}

TEST_F(Hub, LargeFilesComeInParallelRanges) {
  resolve();
  std::vector<std::string> ranges;
  for (const auto& seen : hub_.seen()) {
    if (seen.storage) ranges.push_back(seen.range);
  }
  std::ranges::sort(ranges);
  ASSERT_EQ(ranges.size(), 11U);
  EXPECT_EQ(ranges[0], "bytes=0-999");
  EXPECT_EQ(ranges[2], "bytes=10000-10499");
}

TEST_F(Hub, AServerWithoutRangesIsFine) {
  weights().ranges = false;
  expect_all_there(resolve());
}

TEST_F(Hub, TheTokenIsSentToTheHubOnly) {
  hub_.token = "secret";
  settings_.token = "secret";
  resolve();
  for (const auto& seen : hub_.seen()) {
    EXPECT_EQ(seen.authorization, seen.storage ? "" : "Bearer secret") << seen.target;
  }
}

TEST_F(Hub, BrokenOffTransfersGoOn) {
  weights().break_off = 7;
  weights().break_after = 300;
  hub_["config.json"].break_off = 3;
  hub_["config.json"].break_after = 5;
  hub_["tokenizer.json"].errors = 2;
  expect_all_there(resolve());
  size_t continued = 0;
  for (const auto& seen : hub_.seen()) continued += seen.range.starts_with("bytes=300-");
  EXPECT_GE(continued, 1U) << "a broken segment goes on where it stopped";
}

TEST_F(Hub, BrokenOffTransfersWithoutRangesStartAgain) {
  weights().ranges = false;
  weights().break_off = 3;
  weights().break_after = 2500;
  expect_all_there(resolve());
}

TEST_F(Hub, RetriesAreBounded) {
  weights().break_off = 1'000'000;
  weights().break_after = 0;
  EXPECT_THAT(resolve_error(), HasSubstr("'model.safetensors': "));
  EXPECT_LT(hub_.num_content_requests(), 200U);
  weights().break_off = 0;
  weights().errors = 1'000'000;
  EXPECT_THAT(resolve_error(), HasSubstr("503"));
}

TEST_F(Hub, AnotherProcessGoesOnFromWhatIsThere) {
  settings_.retries = 2;
  settings_.connections = 1;
  weights().available = 2600;
  EXPECT_THAT(resolve_error(),
              HasSubstr("(after 2600 of 10500 bytes and 3 tries; another try goes on from there)"));
  const auto before = hub_.seen().size();
  weights().available = -1;
  // A kill leaves what was saved last; a normal end saves all.
  expect_all_there(resolve());
  const auto seen = hub_.seen();
  std::vector<std::string> ranges;
  for (size_t i = before; i < seen.size(); ++i) {
    if (seen[i].storage) ranges.push_back(seen[i].range);
  }
  ASSERT_EQ(ranges.size(), 9U);
  EXPECT_EQ(ranges[0], "bytes=2600-2999");
  EXPECT_EQ(ranges[1], "bytes=3000-3999");
}

TEST_F(Hub, ContinuesAlsoWhereTheServerHasNoRanges) {
  settings_.retries = 1;
  weights().available = 2600;
  EXPECT_NE(resolve_error(), "");
  weights().available = -1;
  weights().ranges = false;
  expect_all_there(resolve());
}

TEST_F(Hub, AForeignOrDamagedRecordIsIgnored) {
  settings_.retries = 1;
  const fs::path record = repo() / "blobs" / (sha256_of(weights().content) + ".reft-progress");
  for (const char* text :
       {"", "x", "reft-progress-1 10500\n0 1000 1000\n", "reft-progress-1 99\n0 99 99\n",
        "reft-progress-1 10500\n0 1000 -5\n1000 1000 2000\n"}) {
    weights().available = 2600;
    EXPECT_NE(resolve_error(), "");
    ASSERT_TRUE(fs::exists(record));
    std::ofstream(record) << text;
    weights().available = -1;
    expect_all_there(resolve());
    fs::remove_all(folder_);
  }
}

TEST_F(Hub, AWrongHashIsRetriedOnce) {
  weights().corrupt = 1;
  hub_["config.json"].corrupt = 1;
  expect_all_there(resolve());
  fs::remove_all(folder_);
  weights().corrupt = 1'000'000;
  const std::string error = resolve_error();
  EXPECT_THAT(error, HasSubstr("'model.safetensors' arrived damaged twice: its sha256 is"));
  EXPECT_FALSE(fs::exists(snapshot() / "model.safetensors"));
  EXPECT_THAT(leftovers(sha256_of(weights().content)), ElementsAre());
  weights().corrupt = 0;
  expect_all_there(resolve());
}

TEST_F(Hub, LiesAboutSizesAreErrors) {
  struct Case {
    int64_t promised;
    int64_t extra;
    bool ranges;
  };
  const int64_t size = 10'500;
  for (const Case& c :
       {Case{size - 200, 0, true}, Case{size + 200, 0, true}, Case{size - 200, 0, false},
        Case{size + 200, 0, false}, Case{-1, 50, true}, Case{-1, -50, true}, Case{-1, 50, false},
        Case{-1, -50, false}, Case{300, 0, false}, Case{300, 0, true}}) {
    weights().promised = c.promised;
    weights().extra = c.extra;
    weights().ranges = c.ranges;
    EXPECT_THAT(resolve_error(), HasSubstr("'model.safetensors': the hub promised"))
        << c.promised << " " << c.extra;
    EXPECT_FALSE(fs::exists(snapshot() / "model.safetensors"));
    // (The other files may be half there: the error stops their workers where they are.)
    EXPECT_THAT(leftovers(sha256_of(weights().content)), ElementsAre());
  }
  weights().promised = -1;
  weights().extra = 0;
  expect_all_there(resolve());
}

TEST_F(Hub, AnErrorOfOneFileLeavesTheOthersToGoOn) {
  settings_.idle_timeout_s = 0.1;
  settings_.retries = 1000;  // only the lie ends the download
  weights().promised = 10'300;
  hub_["config.json"].mute = true;
  EXPECT_THAT(resolve_error(), HasSubstr("'model.safetensors': the hub promised"));
  EXPECT_THAT(leftovers(sha256_of(weights().content)), ElementsAre());
  const std::string etag = git_hash_of(hub_["config.json"].content);
  EXPECT_THAT(leftovers(etag), ElementsAre(etag + ".reft-incomplete", etag + ".reft-progress"));
  weights().promised = -1;
  hub_["config.json"].mute = false;
  expect_all_there(resolve());
}

TEST_F(Hub, AnImpossibleSizeIsADiskThatIsTooSmall) {
  weights().promised = int64_t{1} << 60;
  settings_.segment_bytes = int64_t{1} << 59;
  EXPECT_THAT(resolve_error(),
              testing::AnyOf(HasSubstr("not enough space"), HasSubstr("cannot write")));
}

TEST_F(Hub, AccessErrorsSayWhatToDo) {
  hub_.token = "secret";
  EXPECT_THAT(resolve_error(),
              HasSubstr("no access to 'org/model' (HTTP status 401): it does not exist, or it is "
                        "private; set HF_TOKEN"));
  settings_.token = "wrong";
  EXPECT_THAT(resolve_error(), HasSubstr("the token that was sent is not accepted"));
  hub_.gated = true;
  EXPECT_THAT(resolve_error(), HasSubstr("use the token of an account that has access"));
  settings_.token = "";
  EXPECT_THAT(resolve_error(),
              HasSubstr("'org/model' is gated (HTTP status 403): accept its conditions at " +
                        hub_.address() + "/org/model, then set HF_TOKEN"));
  settings_.token = "secret";
  expect_all_there(resolve());
  EXPECT_THAT(resolve_error("org/other"), HasSubstr("no model 'org/other' on " + hub_.address()));
  settings_.revision = "v2";
  EXPECT_THAT(resolve_error(), HasSubstr("'org/model' has no revision 'v2'"));
  settings_.revision = "../x";
  EXPECT_THAT(resolve_error(), HasSubstr("bad revision"));
}

TEST_F(Hub, OfflineUsesTheCacheOnly) {
  settings_.offline = true;
  EXPECT_THAT(resolve_error(),
              HasSubstr("'org/model' cannot be loaded offline (HF_HUB_OFFLINE): it is not in the"));
  settings_.offline = false;
  resolve();
  settings_.offline = true;
  EXPECT_EQ(resolve(), snapshot().string());
  settings_.revision = hub_.commit;
  EXPECT_EQ(resolve(), snapshot().string());
  settings_.revision = "v2";
  EXPECT_THAT(resolve_error(), HasSubstr("it is not in the cache"));
}

TEST_F(Hub, AnUnreachableHubIsNamed) {
  settings_.endpoint = "http://127.0.0.1:1";
  settings_.retries = 2;
  EXPECT_THAT(resolve_error(),
              HasSubstr("'org/model' is no file or folder here and cannot be downloaded: cannot "
                        "connect to 127.0.0.1:1"));
}

TEST_F(Hub, AnIncompleteOrStaleSnapshotIsCompleted) {
  resolve();
  fs::remove(fs::canonical(snapshot() / "model.safetensors"));  // leaves a dangling link
  settings_.offline = true;
  EXPECT_NE(resolve_error(), "");
  settings_.offline = false;
  expect_all_there(resolve());
  fs::remove(snapshot() / "tokenizer.json");
  expect_all_there(resolve());
  std::ofstream(repo() / "refs/main") << "fedcba";  // a commit without a snapshot
  expect_all_there(resolve());
}

TEST_F(Hub, ShardsFollowTheIndex) {
  hub_["model.safetensors"].content = "";
  FakeHub hub;
  hub["config.json"].content = "{}";
  hub["tokenizer.json"].content = "{}";
  hub["model.safetensors.index.json"].content =
      R"({"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-1.safetensors"}})";
  hub["model-1.safetensors"] = {.content = noise(2000, 1), .large = true};
  hub["model-2.safetensors"] = {.content = noise(3000, 2), .large = true};
  hub["consolidated.safetensors"] = {.content = noise(5000, 3), .large = true};
  settings_.endpoint = hub.address();
  EXPECT_EQ(resolve(), snapshot().string());
  EXPECT_TRUE(cached("model-1.safetensors") == noise(2000, 1));
  EXPECT_TRUE(cached("model-2.safetensors") == noise(3000, 2));
  EXPECT_FALSE(fs::exists(snapshot() / "consolidated.safetensors"));
  fs::remove(snapshot() / "model-2.safetensors");
  settings_.offline = true;
  EXPECT_THAT(resolve_error(),
              HasSubstr("its download is not complete: 'model-2.safetensors' is missing"));
}

TEST_F(Hub, GgufRepositoriesGiveAFile) {
  FakeHub hub;
  hub["README.md"].content = "x";
  hub["config.json"].content = "{}";
  for (const char* name : {"m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf",
                           "BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"}) {
    hub[name] = {.content = noise(1500, static_cast<uint32_t>(std::string_view(name).size())),
                 .large = true};
  }
  settings_.endpoint = hub.address();
  EXPECT_EQ(resolve("org/model:q8_0"), snapshot() / "m-Q8_0.gguf");
  EXPECT_FALSE(fs::exists(snapshot() / "m-Q4_K_M.gguf"));
  EXPECT_EQ(resolve("org/model:m-Q4_K_S.gguf"), snapshot() / "m-Q4_K_S.gguf");
  EXPECT_EQ(resolve("org/model:bf16"), snapshot() / "BF16/m-BF16-00001-of-00002.gguf");
  EXPECT_TRUE(fs::exists(snapshot() / "BF16/m-BF16-00002-of-00002.gguf"));
  EXPECT_THAT(resolve_error("org/model:Q2_K"),
              HasSubstr("no GGUF file of the quantisation 'Q2_K'; there are: BF16/"));
  fs::remove_all(folder_);
  EXPECT_EQ(resolve("org/model"), snapshot() / "m-Q4_K_M.gguf");
  settings_.offline = true;
  EXPECT_EQ(resolve("org/model"), snapshot() / "m-Q4_K_M.gguf");
  EXPECT_THAT(resolve_error("org/model:Q8_0"), HasSubstr("there are: m-Q4_K_M.gguf"));
}

TEST_F(Hub, RepositoriesWithoutWeightsAreRefused) {
  FakeHub hub;
  hub["config.json"].content = "{}";
  hub["pytorch_model.bin"].content = "pickle";
  settings_.endpoint = hub.address();
  EXPECT_THAT(resolve_error(), HasSubstr("no .safetensors and no .gguf file, only pickle files"));
}

TEST_F(Hub, HostileListingsAreRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"sha":"0123","siblings":[{"rfilename":"../../../.ssh/authorized_keys"}]})",
       "bad file name"},
      {R"({"sha":"0123","siblings":[{"rfilename":"/etc/passwd"}]})", "bad file name"},
      {R"({"sha":"0123","siblings":[{"rfilename":"a/../b"}]})", "bad file name"},
      {R"({"sha":"..","siblings":[]})", "has no commit"},
      {R"({"sha":"a/b","siblings":[]})", "has no commit"},
      {R"({"siblings":[]})", "has no commit"},
      {R"({"sha":"0123"})", "has no files"},
      {R"({"sha":"0123","siblings":[1]})", "malformed"},
      {R"({"sha":1,"siblings":[]})", "'sha' has the wrong type"},
      {"<html>", "invalid JSON"},
      {"[]", "not an object"},
  };
  for (const auto& [answer, message] : cases) {
    hub_.answer = answer;
    EXPECT_THAT(resolve_error(), HasSubstr(message)) << answer;
  }
  EXPECT_FALSE(fs::exists(repo()));
}

TEST_F(Hub, FilesOfEveryKind) {
  hub_["merges.txt"].content = "";  // empty
  hub_["chat_template.jinja"].content = "same";
  hub_["vocab.json"].content = "same";  // the same blob twice
  hub_["special tokens ü+%.json"].content = "odd name";
  // (The fake hub compares encoded names.)
  hub_["special%20tokens%20%C3%BC%2B%25.json"].content = "odd name";
  hub_.answer = fmt::format(
      R"({{"sha":"{}","siblings":[{{"rfilename":"config.json"}},{{"rfilename":"tokenizer.json"}},
      {{"rfilename":"merges.txt"}},{{"rfilename":"chat_template.jinja"}},{{"rfilename":"vocab.json"}},
      {{"rfilename":"special tokens ü+%.json"}},{{"rfilename":"model.safetensors"}}]}})",
      hub_.commit);
  expect_all_there(resolve());
  EXPECT_EQ(cached("merges.txt"), "");
  EXPECT_EQ(cached("chat_template.jinja"), "same");
  EXPECT_EQ(cached("vocab.json"), "same");
  EXPECT_EQ(cached("special tokens ü+%.json"), "odd name");
}

TEST_F(Hub, TwoProcessesDoNotClash) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "TSan has no threads in a child of a process that had some";
#endif
  weights().content = noise(300'000, 7);
  settings_.segment_bytes = 5000;
  std::vector<pid_t> children;
  // The server's threads do not survive a fork, so the children only use the network. They wait
  // until all are there: a fork while a thread of the server works would copy the locks it holds.
  int gate[2];
  ASSERT_EQ(::pipe(gate), 0);
  for (int i = 0; i < 3; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(gate[1]);
      char end = 0;
      if (::read(gate[0], &end, 1) != 0) ::_exit(2);
      ::_exit(error_of([&] { resolve(); }).empty() ? 0 : 1);
    }
    children.push_back(child);
  }
  ::close(gate[0]);
  ::close(gate[1]);
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  expect_all_there(snapshot().string());
  size_t bytes = 0;
  for (const auto& seen : hub_.seen()) bytes += seen.storage ? 5000 : 0;
  EXPECT_EQ(bytes, 300'000U) << "each part is fetched once";
}

TEST_F(Hub, AReadOnlyCacheIsNamed) {
  if (::geteuid() == 0) {
    settings_.cache_dir = "/proc/reft";  // not even root can write here
  } else {
    fs::create_directories(folder_);
    fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  }
  EXPECT_THAT(resolve_error(), HasSubstr("cannot create the folder '" + settings_.cache_dir));
  if (fs::exists(folder_)) fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(Hub, ExistingPathsAreTakenAsTheyAre) {
  EXPECT_EQ(resolve(fs::temp_directory_path().string()), fs::temp_directory_path().string());
  EXPECT_THAT(resolve_error("./no/such/model"), HasSubstr("there is no such file or folder"));
  EXPECT_THAT(resolve_error("/no/such.gguf"), HasSubstr("there is no such file or folder"));
  EXPECT_THAT(resolve_error("a/b/c"), HasSubstr("not a name of the form org/name"));
  EXPECT_TRUE(hub_.seen().empty());
}

TEST(BlobFile, AFullDiskIsNamed) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const fs::path folder = fs::temp_directory_path() / ("reft_blob_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  {
    BlobFile blob(folder / "x", 100, 50);
    // What the descriptor points to is exchanged below it.
    for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      if (fs::read_symlink(entry, error).string() != (folder / "x.reft-incomplete").string())
        continue;
      const int full = ::open("/dev/full", O_RDWR);
      ::dup2(full, std::stoi(entry.path().filename()));
      ::close(full);
      break;
    }
    EXPECT_THAT(error_of([&] { blob.append(0, "data"); }), HasSubstr("No space left on device"));
  }
  fs::remove_all(folder);
}

TEST(BlobFile, NothingComesBackAfterDiscard) {
  const fs::path folder = fs::temp_directory_path() / ("reft_blob_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  const int64_t part = int64_t{8} << 20;  // enough to save the record each time
  const std::string data(static_cast<size_t>(part), 'x');
  for (int delay_ms = 0; delay_ms < 10; ++delay_ms) {  // some falls between two of its steps
    BlobFile blob(folder / "x", 1000 * part, part);
    std::atomic<bool> discarded = false;
    std::thread worker([&] {
      size_t i = 0;
      while (!discarded) blob.append(i++, data);
      blob.append(i, data);
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
    blob.discard();
    discarded = true;
    worker.join();
    EXPECT_TRUE(fs::is_empty(folder));
  }
  EXPECT_TRUE(fs::is_empty(folder));
  fs::remove_all(folder);
}

TEST(ModelName, Parses) {
  EXPECT_EQ(parse_model_name("org/na.me-1_b").repo, "org/na.me-1_b");
  EXPECT_EQ(parse_model_name("gpt2").repo, "gpt2");
  EXPECT_EQ(parse_model_name("org/name:Q4_K_M").variant, "Q4_K_M");
  EXPECT_EQ(parse_model_name("org/name:sub/x.gguf").variant, "sub/x.gguf");
  EXPECT_EQ(parse_model_name("https://huggingface.co/org/name").repo, "org/name");
  EXPECT_EQ(parse_model_name("hf.co/org/name:Q8_0").repo, "org/name");
  for (const char* bad : {"", "/a", "a/", "a/b/c", "../b", "a/..", "a--b/c", "a b/c",
                          "a/b:", "a/b:../x", "ä/b", "-a/b", "a/b\n"}) {
    if (std::string_view(bad) == "a/") continue;  // a slash at the end is dropped
    EXPECT_NE(error_of([&] { parse_model_name(bad); }), "") << bad;
  }
}

TEST(ModelFiles, MatchesWholeQuantisationNames) {
  const std::vector<std::string> names = {"m-IQ4_XS.gguf", "m-Q4_K.gguf", "m.Q4_0.gguf",
                                          "m-UD-Q4_K_XL.gguf"};
  const auto pick = [&](const std::string& variant) {
    return select_files(names, variant, [](const std::string&) { return std::string(); }).gguf;
  };
  EXPECT_EQ(pick("q4_k"), "m-Q4_K.gguf");
  EXPECT_EQ(pick("Q4_0"), "m.Q4_0.gguf");
  EXPECT_EQ(pick("Q4_K_XL"), "m-UD-Q4_K_XL.gguf");
  EXPECT_EQ(pick("UD-Q4_K_XL"), "m-UD-Q4_K_XL.gguf");
  EXPECT_EQ(pick(""), "m.Q4_0.gguf");
  EXPECT_THROW(pick("Q4"), Error);
}

class Environment : public testing::Test {
 protected:
  static constexpr const char* kNames[] = {"HF_TOKEN",
                                           "HF_TOKEN_PATH",
                                           "HF_HOME",
                                           "HF_HUB_CACHE",
                                           "HF_ENDPOINT",
                                           "HF_HUB_OFFLINE",
                                           "XDG_CACHE_HOME",
                                           "HUGGINGFACE_HUB_CACHE",
                                           "HUGGING_FACE_HUB_TOKEN",
                                           "TRANSFORMERS_OFFLINE"};
  Environment() {
    for (const char* name : kNames) {
      if (const char* value = ::getenv(name)) saved_[name] = value;
      ::unsetenv(name);
    }
  }
  ~Environment() override {
    for (const char* name : kNames) ::unsetenv(name);
    for (const auto& [name, value] : saved_) ::setenv(name.c_str(), value.c_str(), 1);
  }
  std::map<std::string, std::string> saved_;
};

TEST_F(Environment, FillsInTheSettings) {
  HubSettings settings = hub_settings({});
  EXPECT_EQ(settings.cache_dir, std::string(::getenv("HOME")) + "/.cache/huggingface/hub");
  EXPECT_EQ(settings.endpoint, "https://huggingface.co");
  EXPECT_EQ(settings.revision, "main");
  EXPECT_FALSE(settings.offline);
  ::setenv("XDG_CACHE_HOME", "/xdg", 1);
  EXPECT_EQ(hub_settings({}).cache_dir, "/xdg/huggingface/hub");
  ::setenv("HF_HOME", "~/hf", 1);
  EXPECT_EQ(hub_settings({}).cache_dir, std::string(::getenv("HOME")) + "/hf/hub");
  ::setenv("HF_HUB_CACHE", "/cache", 1);
  EXPECT_EQ(hub_settings({}).cache_dir, "/cache");
  EXPECT_EQ(hub_settings({.cache_dir = "/mine"}).cache_dir, "/mine");
  ::setenv("HF_ENDPOINT", "https://mirror.test/", 1);
  EXPECT_EQ(hub_settings({}).endpoint, "https://mirror.test");
  ::setenv("HF_HUB_OFFLINE", "True", 1);
  EXPECT_TRUE(hub_settings({}).offline);
  ::setenv("HF_HUB_OFFLINE", "0", 1);
  EXPECT_FALSE(hub_settings({}).offline);
  const fs::path file = fs::temp_directory_path() / ("reft_token_" + std::to_string(::getpid()));
  std::ofstream(file) << " from_file\n";
  ::setenv("HF_TOKEN_PATH", file.c_str(), 1);
  EXPECT_EQ(hub_settings({}).token, "from_file");
  ::setenv("HF_TOKEN", "from_variable\n", 1);
  EXPECT_EQ(hub_settings({}).token, "from_variable");
  EXPECT_EQ(hub_settings({.token = "given"}).token, "given");
  fs::remove(file);
  ::setenv("HF_ENDPOINT", "mirror", 1);
  EXPECT_THROW(hub_settings({}), Error);
}

}  // namespace
}  // namespace reft
