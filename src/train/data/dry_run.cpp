#include "train/data/dry_run.h"

#include <algorithm>

namespace reft {
namespace {

constexpr std::string_view kGreen = "\033[32m";
constexpr std::string_view kReset = "\033[0m";

// Data must not be able to control the terminal.
void append_escaped(std::string_view text, std::string* out) {
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7F) {
      *out += fmt::format("\\x{:02x}", byte);
    } else {
      *out += c;
    }
  }
}

const char* role_name(TrainBatch::Role role) {
  switch (role) {
    case TrainBatch::Role::kPlain:
      return "";
    case TrainBatch::Role::kChosen:
      return "chosen, ";
    case TrainBatch::Role::kRejected:
      return "rejected, ";
    case TrainBatch::Role::kTagged:
      return "tagged, ";
    case TrainBatch::Role::kMismatch:
      return "mismatch, ";
  }
  return "";
}

void show_sequence(const LoaderOptions& options, const Tokenizer& tokenizer,
                   const TrainBatch& batch, size_t index, bool color, std::string* out) {
  const TrainBatch::Sequence& sequence = batch.sequences[index];
  const auto begin = static_cast<size_t>(batch.sequence_start[index]);
  const auto size = static_cast<size_t>(batch.sequence_start[index + 1]) - begin;
  const auto ids = std::span(batch.token_ids).subspan(begin, size);
  const auto labels = std::span(batch.labels).subspan(begin, size);
  int64_t trained = 0;
  for (int32_t label : labels) trained += label != kIgnored ? 1 : 0;
  *out += fmt::format("--- {}, {}: {}{}{} tokens, {} trained\n",
                      options.mix.datasets[static_cast<size_t>(sequence.dataset)].name,
                      sequence.place, role_name(sequence.role),
                      sequence.role != TrainBatch::Role::kTagged ? ""
                      : sequence.desirable                       ? "good, "
                                                                 : "bad, ",
                      size, trained);
  *out += show_tokens(tokenizer, ids, labels, color);
  if (!out->ends_with('\n')) *out += '\n';
}

}  // namespace

std::string show_tokens(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                        std::span<const int32_t> labels, bool color) {
  std::string out;
  std::string run;
  bool run_trained = false;
  auto flush = [&] {
    if (run.empty()) return;
    if (run_trained) out += color ? kGreen : "[[";
    append_escaped(run, &out);
    if (run_trained) out += color ? kReset : "]]";
    run.clear();
  };
  for (size_t i = 0; i < ids.size(); ++i) {
    // A token is learnt when it is the label of the one before it.
    const bool trained = i > 0 && labels[i - 1] != kIgnored;
    if (trained != run_trained) flush();
    run_trained = trained;
    run += tokenizer.token_bytes(ids[i]);
  }
  flush();
  return out;
}

std::string dry_run(const LoaderOptions& options, const ExampleEncoder& encoder,
                    const Tokenizer& tokenizer, int64_t num_sequences, bool color) {
  DataLoader loader(options, encoder);
  std::string out;
  EpochSize size;
  TrainBatch batch;
  while (loader.next(&batch)) {
    for (size_t s = 0; s < batch.sequences.size(); ++s) {
      // Both sides of a pair are shown, or none.
      const int64_t rejected = batch.sequences[s].role == TrainBatch::Role::kRejected ? 1 : 0;
      if (size.sequences++ - rejected >= num_sequences) continue;
      show_sequence(options, tokenizer, batch, s, color, &out);
    }
    ++size.batches;
    size.tokens += batch.num_tokens();
    size.trained_tokens += batch.num_trained;
  }
  out += "---\n" + describe_counts(loader.counts());
  out += fmt::format("\nepoch: {} batches, {} sequences, {} tokens, {} trained ({:.1f}%)\n",
                     size.batches, size.sequences, size.tokens, size.trained_tokens,
                     100.0 * static_cast<double>(size.trained_tokens) /
                         static_cast<double>(std::max<int64_t>(size.tokens, 1)));
  return out;
}

}  // namespace reft
