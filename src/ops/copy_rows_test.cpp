#include "ops/copy_rows.h"

#include "ops/op_cases.h"

namespace reft {
namespace {

const bool covered = cover_ops({"copy_rows"});

using Ids = std::vector<int32_t>;

TEST(CopyRows, FillsPadsAndReplaces) {
  for (const Device device : test_devices()) {
    const auto make = [&](const Ids& ids, Shape shape) {
      return Tensor::from_vector(ids, shape).to(device);
    };
    const Tensor table = make({9, 9, 9, 9, 9, 9, 9, 9, 9}, {3, 3});
    const Tensor slots = make({8, 8, 8, 8}, {4});
    const Tensor tokens = make({7, -1, -3, 0}, {4});
    const Tensor values = make({50, 51, 52}, {3});
    const RowsCopy copies[] = {{.to = table, .from = make({1, 2, 3, 4}, {2, 2})},
                               {.to = slots, .from = make({5, 6}, {2}), .fill = -1},
                               {.to = tokens, .from = tokens, .values = values}};
    copy_rows(copies);
    EXPECT_EQ(table.to_vector<int32_t>(), (Ids{1, 2, 9, 3, 4, 9, 0, 0, 9}));
    EXPECT_EQ(slots.to_vector<int32_t>(), (Ids{5, 6, -1, -1}));
    EXPECT_EQ(tokens.to_vector<int32_t>(), (Ids{7, 50, 52, 0}));

    Ids many(100'000);
    for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int32_t>(i);
    const Tensor large = make(Ids(120'000), {100, 1200});
    const RowsCopy one{.to = large, .from = make(many, {100, 1000})};
    copy_rows({&one, 1});
    const Ids got = large.to_vector<int32_t>();
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t row = i / 1200, column = i % 1200;
      ASSERT_EQ(got[i], column < 1000 ? static_cast<int32_t>(row * 1000 + column) : 0);
    }
  }
}

TEST(CopyRows, RefusesWhatDoesNotFit) {
  const auto zeros = [](Shape shape) { return Tensor::zeros(shape, DType::kI32); };
  const auto copy = [](const Tensor& to, const Tensor& from) {
    const RowsCopy one{.to = to, .from = from};
    copy_rows({&one, 1});
  };
  EXPECT_THROW(copy(zeros({2}), zeros({3})), Error);
  EXPECT_THROW(copy(zeros({2, 2}), zeros({2, 3})), Error);
  EXPECT_THROW(copy(zeros({2}), Tensor::zeros({2}, DType::kF32)), Error);
  EXPECT_THROW(copy_rows(std::vector<RowsCopy>(17, {.to = zeros({1}), .from = zeros({1})})), Error);
}

}  // namespace
}  // namespace reft
