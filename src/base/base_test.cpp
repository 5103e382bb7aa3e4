#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t n : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
      pool.parallel_for(n, 3, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) seen[static_cast<size_t>(i)]++;
      });
      for (auto& count : seen) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, RunReachesEveryWorkerAndNestsInline) {
  ThreadPool pool(3);
  std::vector<std::atomic<int>> seen(3);
  pool.run([&](int worker, int workers) {
    EXPECT_EQ(workers, 3);
    seen[static_cast<size_t>(worker)]++;
    pool.parallel_for(10, 1, [&](int64_t begin, int64_t end) { EXPECT_EQ(end - begin, 10); });
  });
  for (auto& count : seen) EXPECT_EQ(count, 1);
}

TEST(ThreadPool, RethrowsAndSurvives) {
  ThreadPool pool(2);
  EXPECT_THROW(pool.run([](int worker, int) {
    if (worker == 1) fail("worker {} failed", worker);
  }),
               Error);
  std::atomic<int> calls{0};
  pool.run([&](int, int) { calls++; });
  EXPECT_EQ(calls, 2);
}

TEST(Json, ErrorsNameTheSource) {
  try {
    parse_json("{\"a\": }", "config.json");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("config.json"), std::string::npos) << e.what();
  }
  EXPECT_THROW(parse_json("{} x", "body"), Error);
  EXPECT_THROW(parse_json(std::string(100000, '['), "body"), Error);
  EXPECT_THROW(parse_json("\"\xff\"", "body"), Error);
  const Json j = parse_json("{\"b\": 1, \"a\": null}", "x");
  EXPECT_EQ(j.dump(), "{\"b\":1,\"a\":null}");
  EXPECT_EQ(json_get<int>(j, "a", 7), 7);
  EXPECT_THROW(json_get<std::string>(j, "b", ""), Error);
}

TEST(File, AtomicWriteReplacesAndErrorsNamePaths) {
  const std::string path = testing::TempDir() + "/reft_file_test";
  write_file_atomic(path, "one");
  write_file_atomic(path, "two");
  EXPECT_EQ(read_file(path), "two");
  std::filesystem::remove(path);
  try {
    read_file(path);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(path), std::string::npos);
  }
  EXPECT_THROW(MappedFile("/"), Error);
}

}  // namespace
}  // namespace reft
