#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "dist/group.h"

namespace reft {
namespace {

// Runs f on one thread per rank.
void on_ranks(int size, const std::function<void(Group&)>& f) {
  auto groups = make_local_groups(size);
  std::vector<std::thread> threads;
  for (auto& group : groups) threads.emplace_back([&f, &group] { f(*group); });
  for (auto& thread : threads) thread.join();
}

TEST(LocalGroup, AllReduceSumsAndMaximises) {
  for (int size : {1, 2, 5}) {
    on_ranks(size, [&](Group& group) {
      const auto r = static_cast<float>(group.rank());
      for (int repeat = 0; repeat < 50; ++repeat) {
        Tensor sum = Tensor::from_vector<float>({r, 1.0f, -r});
        group.all_reduce(sum);
        const auto n = static_cast<float>(size), total = n * (n - 1) / 2;
        EXPECT_EQ(sum.to_vector<float>(), (std::vector<float>{total, n, -total}));
        Tensor top = Tensor::from_vector<float>({r, -r}).to(DType::kBF16);
        group.all_reduce(top, Reduce::kMax);
        EXPECT_EQ(top.to(DType::kF32).to_vector<float>(), (std::vector<float>{n - 1, 0.0f}));
      }
    });
  }
}

TEST(LocalGroup, GatherScatterBroadcast) {
  on_ranks(3, [](Group& group) {
    const auto r = static_cast<int32_t>(group.rank());
    Tensor all = Tensor::empty({6}, DType::kI32);
    group.all_gather(all, Tensor::from_vector<int32_t>({r, r + 10}));
    EXPECT_EQ(all.to_vector<int32_t>(), (std::vector<int32_t>{0, 10, 1, 11, 2, 12}));
    Tensor share = Tensor::empty({1}, DType::kF32);
    group.reduce_scatter(share, Tensor::from_vector<float>({1.0f * r, 2.0f * r, 3.0f * r}));
    EXPECT_EQ(share.to_vector<float>()[0], 3.0f * static_cast<float>(r + 1));
    Tensor x = Tensor::from_vector<int32_t>({r});
    group.broadcast(x, 2);
    EXPECT_EQ(x.to_vector<int32_t>()[0], 2);
    group.barrier();
  });
}

TEST(LocalGroup, MismatchAndAbortReachEveryRank) {
  on_ranks(2, [](Group& group) {
    Tensor x = Tensor::zeros({2 + group.rank()}, DType::kF32);
    EXPECT_THROW(group.all_reduce(x), Error);
  });
  on_ranks(3, [](Group& group) {
    if (group.rank() == 0) return group.abort("rank 0 gave up");
    try {
      group.barrier();
      FAIL() << "rank 0 never came";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("rank 0 gave up"), std::string::npos);
    }
  });
  EXPECT_THROW(make_local_groups(0), Error);
}

}  // namespace
}  // namespace reft
