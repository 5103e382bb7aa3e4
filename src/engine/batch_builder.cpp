#include "engine/batch_builder.h"

#include <algorithm>

#include "engine/lora_slots.h"
#include "engine/packed_batch.h"

namespace reft {
namespace {

// Keeps [begin, end) of each array at `to`, and moves `to` on.
void keep(std::vector<int32_t>& values, int64_t begin, int64_t end, int64_t to) {
  if (begin != to) std::copy(values.begin() + begin, values.begin() + end, values.begin() + to);
}

// Takes the dropped sequences out of the arrays.
void compact(StepPlan& plan) {
  int64_t kept = 0;
  int64_t tokens = 0;
  int64_t rows = 0;
  int64_t row = 0;
  plan.max_query_len = plan.max_context_len = 0;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const PlannedSequence& s = plan.sequences[i];
    const int64_t num_rows = s.num_scored + s.samples;
    if (!s.dropped) {
      const int64_t begin = plan.query_start[i];
      const int64_t end = begin + s.num_tokens;
      keep(plan.token_ids, begin, end, tokens);
      keep(plan.positions, begin, end, tokens);
      keep(plan.slots, begin, end, tokens);
      keep(plan.adapters, begin, end, tokens);
      const auto b = static_cast<int64_t>(i);
      keep(plan.context_len, b, b + 1, kept);
      keep(plan.block_table, b * plan.table_width, (b + 1) * plan.table_width,
           kept * plan.table_width);
      for (int64_t r = 0; r < num_rows; ++r) {
        plan.logit_rows[static_cast<size_t>(rows + r)] =
            static_cast<int32_t>(plan.logit_rows[static_cast<size_t>(row + r)] - begin + tokens);
      }
      plan.query_start[static_cast<size_t>(kept)] = static_cast<int32_t>(tokens);
      plan.max_query_len = std::max(plan.max_query_len, s.num_tokens);
      plan.max_context_len =
          std::max<int64_t>(plan.max_context_len, plan.context_len[static_cast<size_t>(kept)]);
      tokens += s.num_tokens;
      rows += num_rows;
      ++kept;
    }
    row += num_rows;
  }
  plan.query_start[static_cast<size_t>(kept)] = static_cast<int32_t>(tokens);
  plan.token_ids.resize(static_cast<size_t>(tokens));
  plan.positions.resize(static_cast<size_t>(tokens));
  plan.slots.resize(static_cast<size_t>(tokens));
  plan.adapters.resize(static_cast<size_t>(tokens));
  plan.query_start.resize(static_cast<size_t>(kept + 1));
  plan.context_len.resize(static_cast<size_t>(kept));
  plan.block_table.resize(static_cast<size_t>(kept * plan.table_width));
  plan.logit_rows.resize(static_cast<size_t>(rows));
  plan.num_tokens = tokens;
}

Tensor wrap(std::vector<int32_t>& values, Shape shape) {
  return Tensor::borrow(values.data(), shape, DType::kI32);
}

}  // namespace

void StepPlan::clear() {
  sequences.clear();
  num_tokens = 0;
  failed = cancelled = false;
  error.clear();
}

void build_batch(StepPlan& plan, int64_t block_size) {
  const size_t num_sequences = plan.sequences.size();
  plan.token_ids.resize(static_cast<size_t>(plan.num_tokens));
  plan.positions.resize(plan.token_ids.size());
  plan.slots.resize(plan.token_ids.size());
  plan.adapters.assign(plan.token_ids.size(), -1);
  plan.query_start.assign(1, 0);
  plan.context_len.clear();
  plan.logit_rows.clear();
  plan.table_width = 1;
  for (const PlannedSequence& s : plan.sequences) {
    plan.table_width =
        std::max(plan.table_width, (s.first + s.num_tokens + block_size - 1) / block_size);
  }
  plan.block_table.assign(num_sequences * static_cast<size_t>(plan.table_width), 0);
  plan.max_query_len = plan.max_context_len = 0;
  int64_t t = 0;
  int32_t* table = plan.block_table.data();
  for (const PlannedSequence& s : plan.sequences) {
    const Sequence& sequence = *s.sequence;
    const int64_t begin = t;
    for (int64_t position = s.first; position < s.first + s.num_tokens; ++position, ++t) {
      const bool known = position < static_cast<int64_t>(sequence.tokens.size());
      plan.token_ids[static_cast<size_t>(t)] =
          known ? sequence.tokens[static_cast<size_t>(position)] : 0;
      plan.positions[static_cast<size_t>(t)] = static_cast<int32_t>(position);
      const int64_t block = sequence.blocks[static_cast<size_t>(position / block_size)];
      plan.slots[static_cast<size_t>(t)] =
          static_cast<int32_t>(block * block_size + position % block_size);
    }
    if (const auto& adapter = sequence.request->adapter; adapter != nullptr)
      std::fill_n(plan.adapters.begin() + begin, s.num_tokens, adapter->slot);
    const int64_t context = s.first + s.num_tokens;
    std::copy_n(sequence.blocks.begin(), (context + block_size - 1) / block_size, table);
    table += plan.table_width;
    plan.query_start.push_back(static_cast<int32_t>(t));
    plan.context_len.push_back(static_cast<int32_t>(context));
    for (int64_t i = 0; i < s.num_scored; ++i)
      plan.logit_rows.push_back(static_cast<int32_t>(begin + i));
    if (s.samples) plan.logit_rows.push_back(static_cast<int32_t>(t - 1));
    plan.max_query_len = std::max(plan.max_query_len, s.num_tokens);
    plan.max_context_len = std::max(plan.max_context_len, context);
  }
}

void resolve_batch(StepPlan& plan) {
  bool dropped = false;
  plan.feeds = false;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    PlannedSequence& s = plan.sequences[i];
    if (!s.from_previous) continue;
    const SamplingState& sampling = s.sequence->sampling;
    int32_t& id = plan.token_ids[static_cast<size_t>(plan.query_start[i + 1] - 1)];
    if (sampling.has_pending()) {
      id = -1 - sampling.pending_row();
      plan.feeds = true;
    } else if (sampling.ended()) {
      s.dropped = dropped = true;
    } else {
      id = sampling.last_token();
    }
  }
  if (dropped) compact(plan);
}

Batch make_batch(StepPlan& plan, Device device) {
  const int64_t num_tokens = plan.num_tokens;
  const auto num_sequences = static_cast<int64_t>(plan.context_len.size());
  Batch batch;
  batch.token_ids = wrap(plan.token_ids, {num_tokens});
  batch.positions = wrap(plan.positions, {num_tokens});
  batch.slots = wrap(plan.slots, {num_tokens});
  batch.attention.query_start = wrap(plan.query_start, {num_sequences + 1});
  batch.attention.context_len = wrap(plan.context_len, {num_sequences});
  batch.attention.block_table = wrap(plan.block_table, {num_sequences, plan.table_width});
  batch.attention.max_query_len = plan.max_query_len;
  batch.attention.max_context_len = plan.max_context_len;
  batch.logit_rows = wrap(plan.logit_rows, {static_cast<int64_t>(plan.logit_rows.size())});
  if (std::ranges::any_of(plan.adapters, [](int32_t slot) { return slot >= 0; }))
    batch.adapters = wrap(plan.adapters, {num_tokens});
  return device == kCpuDevice ? batch : move_packed(batch, device);
}

}  // namespace reft
