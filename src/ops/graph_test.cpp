#include "ops/graph.h"

#include "ops/norm.h"
#include "ops/op_cases.h"

namespace reft {
namespace {

const bool covered = cover_ops({"record_graph"});

TEST(OpGraph, ReplaysWithNewInputs) {
  for (const Device device : test_devices()) {
    if (!has_op_graphs(device)) {
      EXPECT_THROW(record_graph(device, [] {}), Error);
      continue;
    }
    Tensor x = random_values({5, 64}, 1).to(device);
    const Tensor weight = random_values({64}, 2).to(device);
    Tensor y;
    const auto body = [&] { y = rms_norm(rms_norm(x, weight, 1e-6f), weight, 1e-6f); };
    body();  // first use: lazy set-up is not recorded
    const auto graph = record_graph(device, body);
    for (uint32_t seed : {3u, 4u}) {
      const Tensor input = random_values({5, 64}, seed);
      x.copy_from(input.to(device));
      graph->replay();
      const Tensor fresh = input.to(device);
      const Tensor expected = rms_norm(rms_norm(fresh, weight, 1e-6f), weight, 1e-6f);
      EXPECT_EQ(y.to_vector<float>(), expected.to_vector<float>());
    }
  }
}

}  // namespace
}  // namespace reft
