#include "train/memory_estimate.h"

#include <algorithm>

#include "train/flops.h"

namespace reft {
namespace {

std::string gigabytes(int64_t bytes) {
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9);
}
std::string millions(int64_t count) {
  return fmt::format("{:.4g} M", static_cast<double>(count) / 1e6);
}

int64_t state_bytes(const MemoryModel& m, const MemoryOptions& o) {
  const int64_t trained = m.trainable_parameters;
  const int64_t adam = o.state_dtype == DType::kBF16 ? 4 : 8;
  switch (o.optimizer) {
    case OptimizerKind::kAdamW:
      return adam * trained;
    case OptimizerKind::kAdamW8bit:
      return 2 * trained + 2 * 4 * (trained / kAdam8Block);
    case OptimizerKind::kMuon: {
      const int64_t embeddings = o.lora ? 0 : std::min(m.embedding_parameters, trained);
      return 4 * (trained - embeddings) + adam * embeddings;
    }
    case OptimizerKind::kSgd:
      return 4 * trained;
  }
  return 0;
}

// Values that a block keeps per token.
int64_t kept_values(const MemoryModel& m, Recompute recompute) {
  const int64_t qkv_and_output = (2 * m.heads + 2 * m.kv_heads) * m.head_dim;
  switch (recompute) {
    case Recompute::kNone:
      return 4 * m.hidden + qkv_and_output + 3 * m.intermediate +
             (m.qk_norm ? (m.heads + m.kv_heads) * m.head_dim : 0);
    case Recompute::kFull:
      return m.hidden;
  }
  return 0;
}

const char* recompute_name(Recompute recompute) {
  return recompute == Recompute::kNone ? "none" : "full";
}

void as_lora(MemoryModel& model, MemoryOptions& options) {
  options.lora = true;
  options.trainable_dtype = DType::kF32;
  model.trainable_parameters = model.lora_parameters;
}

}  // namespace

Recompute parse_recompute(std::string_view name) {
  for (const Recompute r : {Recompute::kNone, Recompute::kFull}) {
    if (name == recompute_name(r)) return r;
  }
  fail("--activation_checkpointing must be none or full, not '{}'", name);
}

MemoryModel memory_model_of(const DecoderConfig& c, bool qk_norm, int64_t lora_rank) {
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  const int64_t norms = 2 * c.hidden_size + (qk_norm ? 2 * c.head_dim : 0);
  // in + out of q, k and v, o, gate, up and down
  const int64_t edges = 2 * (c.hidden_size + q) + 2 * (c.hidden_size + kv) +
                        3 * (c.hidden_size + c.intermediate_size);
  MemoryModel m{.hidden = c.hidden_size,
                .intermediate = c.intermediate_size,
                .layers = c.num_layers,
                .heads = c.num_heads,
                .kv_heads = c.num_kv_heads,
                .head_dim = c.head_dim,
                .vocab = c.vocab_size,
                .qk_norm = qk_norm};
  m.embedding_parameters = c.vocab_size * c.hidden_size * (c.tied ? 1 : 2);
  m.parameters =
      m.embedding_parameters + c.num_layers * (block_matrix_elements(c) + norms) + c.hidden_size;
  m.trainable_parameters = m.parameters;
  m.lora_parameters = c.num_layers * lora_rank * edges;
  m.weight_bytes = row_bytes(c.dtype, m.parameters);
  return m;
}

std::vector<MemoryRow> estimate_memory(const MemoryModel& m, const MemoryOptions& o) {
  const int64_t trained = m.trainable_parameters, tokens = o.batch_size * o.cutoff_len;
  const int64_t b = o.activation_bytes;
  std::vector<MemoryRow> rows;
  rows.push_back({"weights", m.weight_bytes, millions(m.parameters) + " parameters"});
  if (m.reference_bytes > 0) rows.push_back({"reference model", m.reference_bytes, "frozen"});
  if (o.lora) {
    const int64_t bytes = row_bytes(o.trainable_dtype, trained);
    rows.push_back({"adapter", bytes, millions(trained) + " parameters"});
  }
  if (o.master_weights && o.trainable_dtype == DType::kBF16) {
    rows.push_back({"master weights", 4 * trained, "4 B x " + millions(trained)});
  }
  rows.push_back({"gradients", 4 * trained, "4 B x " + millions(trained)});
  rows.push_back({"optimizer states", state_bytes(m, o), optimizer_name(o.optimizer)});
  const int64_t kept = kept_values(m, o.recompute);
  int64_t activations = b * tokens * m.layers * kept;
  if (o.recompute == Recompute::kFull) {
    activations += b * tokens * kept_values(m, Recompute::kNone);
  }
  rows.push_back({"activations", activations,
                  fmt::format("{} B x {} tokens x {} layers x {}, checkpointing {}", b, tokens,
                              m.layers, kept, recompute_name(o.recompute))});
  rows.push_back({"their gradients", b * tokens * (2 * m.hidden + 4 * m.intermediate),
                  fmt::format("{} tokens", tokens)});
  const int64_t fitting = o.loss_chunk_bytes / 4 / std::max<int64_t>(m.vocab, 1);
  const int64_t chunk = std::min(tokens, std::max<int64_t>(fitting, 1));
  rows.push_back(
      {"logits", 4 * chunk * m.vocab, fmt::format("4 B x {} tokens x {}", chunk, m.vocab)});
  return rows;
}

int64_t total_bytes(const std::vector<MemoryRow>& rows) {
  int64_t total = 0;
  for (const MemoryRow& row : rows) total += row.bytes;
  return total;
}

std::vector<MemoryChoice> fitting_choices(const MemoryModel& model, const MemoryOptions& options,
                                          int64_t available) {
  std::vector<MemoryChoice> choices;
  const auto offer = [&](const std::string& flags, const MemoryModel& m, const MemoryOptions& o) {
    const int64_t bytes = total_bytes(estimate_memory(m, o));
    if (bytes <= available) choices.push_back({flags, bytes});
    return bytes <= available;
  };
  // The largest micro-batch that fits, its accumulation told so that the batch stays the same.
  const auto offer_batches = [&](const std::string& flags, const MemoryModel& m, MemoryOptions o) {
    for (int64_t parts = 2; parts <= options.batch_size; ++parts) {
      if (options.batch_size % parts != 0) continue;
      o.batch_size = options.batch_size / parts;
      if (offer(fmt::format("{}--batch_size {} and {} times the accumulation steps", flags,
                            o.batch_size, parts),
                m, o)) {
        return;
      }
    }
  };
  MemoryOptions full = options;
  full.recompute = Recompute::kFull;
  const std::string recompute = "--activation_checkpointing full";
  if (options.recompute != Recompute::kFull) offer(recompute, model, full);
  offer_batches("", model, options);
  offer_batches(recompute + " ", model, full);
  const bool large_states = options.optimizer != OptimizerKind::kAdamW8bit && !options.lora;
  if (large_states) {
    MemoryOptions small = options;
    small.optimizer = OptimizerKind::kAdamW8bit;
    offer("--optimizer adamw_8bit", model, small);
    small.recompute = Recompute::kFull;
    offer("--optimizer adamw_8bit " + recompute, model, small);
    small.master_weights = false;
    small.batch_size = 1;
    if (options.master_weights && options.trainable_dtype == DType::kBF16) {
      offer("--optimizer adamw_8bit --no-master_weights --batch_size 1 " + recompute, model, small);
    }
  }
  if (!options.lora && model.lora_parameters > 0) {
    MemoryModel adapted = model;
    MemoryOptions lora = options;
    as_lora(adapted, lora);
    if (!offer("--fine_tuning_type lora", adapted, lora)) {
      lora.recompute = Recompute::kFull;
      lora.batch_size = 1;
      offer("--fine_tuning_type lora --batch_size 1 " + recompute, adapted, lora);
    }
  }
  return choices;
}

std::string memory_report(const MemoryModel& model, const MemoryOptions& options,
                          int64_t available) {
  const std::vector<MemoryRow> rows = estimate_memory(model, options);
  std::string out = "Memory plan:\n";
  for (const MemoryRow& row : rows) {
    out += fmt::format("  {:<18} {:>11}   {}\n", row.name, gigabytes(row.bytes), row.how);
  }
  const int64_t total = total_bytes(rows);
  out += fmt::format("  {:<18} {:>11}   of {} free: {}\n", "total", gigabytes(total),
                     gigabytes(available), total <= available ? "fits" : "does not fit");
  if (total <= available) return out;
  const std::vector<MemoryChoice> choices = fitting_choices(model, options, available);
  out += choices.empty() ? "  No change of batch, checkpointing, optimizer or LoRA makes it fit.\n"
                         : "  It would fit with one of:\n";
  for (const MemoryChoice& choice : choices) {
    out += fmt::format("    {} ({})\n", choice.flags, gigabytes(choice.bytes));
  }
  return out;
}

}  // namespace reft
