#include "engine/warm_up.h"

#include <algorithm>
#include <vector>

#include "ops/sampling.h"
#include "tensor/allocator.h"

namespace reft {
namespace {

// `sequences` prompts of `length` tokens that all look at block 0 and write nothing.
Batch idle_batch(int64_t sequences, int64_t length, int64_t block_size, Device device) {
  const int64_t tokens = sequences * length;
  const auto move = [&](const std::vector<int32_t>& values, Shape shape) {
    return Tensor::from_vector(values, shape).to(device);
  };
  std::vector<int32_t> positions(static_cast<size_t>(tokens)), starts, rows;
  for (int64_t t = 0; t < tokens; ++t)
    positions[static_cast<size_t>(t)] = static_cast<int32_t>(t % length);
  for (int64_t b = 0; b <= sequences; ++b) starts.push_back(static_cast<int32_t>(b * length));
  for (int64_t b = 1; b <= sequences; ++b) rows.push_back(static_cast<int32_t>(b * length - 1));
  Batch batch;
  batch.token_ids = Tensor::zeros({tokens}, DType::kI32, device);
  batch.positions = move(positions, {tokens});
  batch.slots = move(std::vector<int32_t>(static_cast<size_t>(tokens), -1), {tokens});
  batch.attention.query_start = move(starts, {sequences + 1});
  batch.attention.context_len =
      move(std::vector<int32_t>(static_cast<size_t>(sequences), static_cast<int32_t>(length)),
           {sequences});
  batch.attention.block_table =
      Tensor::zeros({sequences, (length + block_size - 1) / block_size}, DType::kI32, device);
  batch.attention.max_query_len = batch.attention.max_context_len = length;
  batch.logit_rows = move(rows, {sequences});
  return batch;
}

}  // namespace

int64_t warm_up(CausalLmModel& model, Device device, const EngineOptions& options, DType kv_dtype,
                int64_t model_len) {
  Allocator& allocator = allocator_for(device);
  allocator.trim();  // what loading the weights left
  const int64_t before = allocator.device_memory().free;
  KvCache cache(model.cache_specs(), 1, options.block_size, kv_dtype, device);
  const int64_t longest = model_len > 0 ? model_len : options.max_num_batched_tokens;
  const int64_t length = std::min(options.max_num_batched_tokens, longest);
  const int64_t sequences = std::min(options.max_num_seqs, options.max_num_batched_tokens);
  const auto run = [&](int64_t n, int64_t each) {
    Tensor logits = model.forward(idle_batch(n, each, options.block_size, device), cache);
    // Filters and penalties need the most.
    const std::vector<int32_t> ids = {0};
    const SampleRow row{
        .top_p = 0.9f, .frequency_penalty = 0.1f, .output_ids = &ids, .num_logprobs = 20};
    sample(logits, std::vector<SampleRow>(static_cast<size_t>(n), row));
  };
  run(1, length);
  run(sequences,
      std::max<int64_t>(1, std::min(longest, options.max_num_batched_tokens / sequences)));
  return std::max<int64_t>(0, before - allocator.device_memory().free);
}

}  // namespace reft
