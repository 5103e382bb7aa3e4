#include "speech/speech_runner.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "ops/encoder.h"

namespace reft {
namespace {

constexpr int64_t kBlock = 16;

int64_t blocks_for(int64_t n) { return (n + kBlock - 1) / kBlock; }

}  // namespace

SpeechRunner::SpeechRunner(const LoadedSpeechModel& model, int64_t max_windows,
                           int64_t max_sequences)
    : model_(*model.model),
      device_(model.device),
      blocks_per_window_(blocks_for(model_.info().encoder_positions)),
      self_(model_.self_cache_specs(),
            max_sequences * blocks_for(model_.info().max_target_positions), kBlock,
            model.compute_dtype, device_),
      cross_(model_.cross_cache_specs(), max_windows * blocks_per_window_, kBlock,
             model.compute_dtype, device_),
      free_(static_cast<size_t>(self_.num_blocks())),
      uses_(free_.size(), 0) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

void SpeechRunner::encode(std::span<const int64_t> windows, const std::vector<float>& features) {
  const SpeechInfo& info = model_.info();
  const auto count = static_cast<int64_t>(windows.size());
  const Tensor input =
      Tensor::from_vector(features, {count * info.num_frames, info.num_mel_bins}).to(device_);
  const Tensor encoded = model_.encode(input, count);
  std::vector<int32_t> slots;
  for (const int64_t window : windows) {
    const int32_t first = window_block(window, 0) * static_cast<int32_t>(kBlock);
    for (int32_t p = 0; p < info.encoder_positions; ++p) slots.push_back(first + p);
  }
  model_.write_cross(encoded, Tensor::from_vector(slots).to(device_), cross_);
}

int32_t SpeechRunner::allocate() {
  check(!free_.empty(), "no free block of the decoder's cache");
  const int32_t block = free_.back();
  free_.pop_back();
  uses_[static_cast<size_t>(block)] = 1;
  return block;
}

void SpeechRunner::drop(int32_t block) {
  if (--uses_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

SpeechSequence SpeechRunner::fork(const SpeechSequence& sequence) {
  for (const int32_t block : sequence.blocks) ++uses_[static_cast<size_t>(block)];
  return sequence;
}

void SpeechRunner::release(SpeechSequence& sequence) {
  for (const int32_t block : sequence.blocks) drop(block);
  sequence = {};
}

void SpeechRunner::make_writable(SpeechSequence& sequence, int64_t at) {
  const auto i = static_cast<size_t>(at / kBlock);
  if (i == sequence.blocks.size()) sequence.blocks.push_back(allocate());
  int32_t& block = sequence.blocks[i];
  if (uses_[static_cast<size_t>(block)] == 1) return;
  const int32_t own = allocate();
  for (int64_t layer = 0; layer < self_.num_layers(); ++layer) {
    for (const Tensor* cache : {&self_.layer(layer).k, &self_.layer(layer).v})
      cache->rows(own, own + 1).copy_from(cache->rows(block, block + 1));
  }
  drop(block);
  block = own;
}

Tensor SpeechRunner::run(std::span<const Input> inputs, const SpeechModel::QueryTap& tap) {
  const int64_t context = model_.info().max_target_positions;
  const auto count = static_cast<int64_t>(inputs.size());
  std::vector<int32_t> ids, positions, slots, starts = {0}, lengths, rows;
  std::vector<int32_t> table, windows;
  std::vector<int32_t> encoder_lengths(inputs.size(),
                                       static_cast<int32_t>(model_.info().encoder_positions));
  SpeechBatch batch;
  AttentionBatch& self = batch.tokens.attention;
  int64_t width = 0;
  for (const Input& input : inputs) {
    SpeechSequence& sequence = *input.sequence;
    const auto n = static_cast<int64_t>(input.tokens.size());
    check(n > 0 && sequence.length + n <= context, "{} tokens after {} exceed the context of {}", n,
          sequence.length, context);
    for (const int64_t row : input.rows) rows.push_back(static_cast<int32_t>(row) + starts.back());
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = sequence.length + i;
      make_writable(sequence, at);
      ids.push_back(input.tokens[static_cast<size_t>(i)]);
      positions.push_back(static_cast<int32_t>(at));
      slots.push_back(sequence.blocks[static_cast<size_t>(at / kBlock)] *
                          static_cast<int32_t>(kBlock) +
                      static_cast<int32_t>(at % kBlock));
    }
    sequence.length += n;
    starts.push_back(static_cast<int32_t>(ids.size()));
    lengths.push_back(static_cast<int32_t>(sequence.length));
    width = std::max(width, static_cast<int64_t>(sequence.blocks.size()));
    self.max_query_len = std::max(self.max_query_len, n);
    self.max_context_len = std::max(self.max_context_len, sequence.length);
  }
  for (const Input& input : inputs) {
    const SpeechSequence& sequence = *input.sequence;
    table.insert(table.end(), sequence.blocks.begin(), sequence.blocks.end());
    table.resize(table.size() + static_cast<size_t>(width) - sequence.blocks.size(), 0);
    for (int64_t i = 0; i < blocks_per_window_; ++i)
      windows.push_back(window_block(sequence.window, i));
  }
  const auto send = [&](const std::vector<int32_t>& values) {
    return Tensor::from_vector(values).to(device_);
  };
  batch.tokens.token_ids = send(ids);
  batch.tokens.positions = send(positions);
  batch.tokens.slots = send(slots);
  batch.tokens.logit_rows = send(rows);
  self.query_start = send(starts);
  self.context_len = send(lengths);
  self.block_table = Tensor::from_vector(table, {count, width}).to(device_);
  batch.encoder = {
      .query_start = self.query_start,
      .context_len = send(encoder_lengths),
      .block_table = Tensor::from_vector(windows, {count, blocks_per_window_}).to(device_),
      .max_query_len = self.max_query_len,
      .max_context_len = model_.info().encoder_positions};
  return model_.decode(batch, self_, cross_, tap).to(kCpuDevice);
}

std::vector<std::vector<float>> SpeechRunner::align(
    int64_t window, std::span<const int32_t> tokens,
    std::span<const std::pair<int64_t, int64_t>> heads, int64_t frames, Tensor& logits) {
  SpeechSequence sequence = start(window);
  std::vector<int64_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<int32_t> blocks;
  for (int64_t i = 0; i < blocks_per_window_; ++i) blocks.push_back(window_block(window, i));
  const Tensor table = Tensor::from_vector(blocks).to(device_);
  std::vector<std::vector<float>> weights(heads.size());
  const Input input{&sequence, tokens, rows};
  logits = run({&input, 1}, [&](int64_t layer, const Tensor& q) {
    for (size_t i = 0; i < heads.size(); ++i) {
      if (heads[i].first != layer) continue;
      weights[i] = attention_weights(q, cross_.layer(layer), table, heads[i].second, frames,
                                     model_.cross_scale())
                       .to_vector<float>();
    }
  });
  release(sequence);
  return weights;
}

}  // namespace reft
