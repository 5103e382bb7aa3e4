#include "train/data/batch_stream.h"

#include <algorithm>
#include <exception>
#include <thread>

#include "base/log.h"

namespace reft {
namespace {

constexpr int64_t kRowsPerThread = 16;
constexpr int64_t kLoggedBadRows = 5;

int encoding_threads(int wanted) {
  if (wanted > 0) return wanted;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency() / 2));
}

// Row i's prompt with the answer of the row after it: what the model says by chance. (KTO, 2024,
// section 4.1, estimates its KL term from such pairs.)
TrainSequence mismatch(const TrainSequence& prompt_of, const TrainSequence& answer_of,
                       int64_t cutoff_len) {
  auto answer_begin = [](const TrainSequence& s) {
    return std::find(s.trained.begin(), s.trained.end(), uint8_t{1}) - s.trained.begin();
  };
  TrainSequence out;
  const auto prompt = answer_begin(prompt_of);
  out.ids.assign(prompt_of.ids.begin(), prompt_of.ids.begin() + prompt);
  out.trained.assign(out.ids.size(), 0);
  out.ids.insert(out.ids.end(), answer_of.ids.begin() + answer_begin(answer_of),
                 answer_of.ids.end());
  out.ids.resize(std::min(out.ids.size(), static_cast<size_t>(cutoff_len)));
  out.trained.resize(out.ids.size(), 1);
  return out;
}

}  // namespace

BatchStream::BatchStream(const LoaderOptions& options, const ExampleEncoder& encoder)
    : options_(options),
      encoder_(encoder),
      mixer_(options.mix),
      packer_({.stage = encoder.options().stage,
               .packing = options.packing,
               .cutoff_len = encoder.options().cutoff_len,
               .bos = encoder.bos()}),
      pool_(std::make_unique<ThreadPool>(encoding_threads(options.num_threads))) {
  check(options.batch_size >= 1, "--batch_size must be at least 1, it is {}", options.batch_size);
  const Stage stage = encoder.options().stage;
  check(!options.packing || stage == Stage::kSft || stage == Stage::kPretrain,
        "--packing is for --stage pt and sft");
  check(stage != Stage::kKto || options.batch_size > 1,
        "--stage kto needs a --batch_size of 2 or more: the KL term pairs each prompt with another "
        "row's answer");
}

void BatchStream::count(const EncodedExample& example) {
  RowCounts& counts = mixer_.datasets()[static_cast<size_t>(example.dataset)].counts();
  if (example.empty()) {
    ++counts.dropped;
  } else {
    ++counts.kept;
    counts.truncated += example.truncated ? 1 : 0;
  }
}

void BatchStream::advance() {
  struct Slot {
    Example example;
    int32_t dataset = 0;
    EncodedExample encoded;
    std::exception_ptr error;
  };
  std::vector<Slot> slots;
  const auto most = static_cast<size_t>(pool_->num_threads() * kRowsPerThread);
  while (slots.size() < most) {
    Slot slot;
    if (!mixer_.next(&slot.example, &slot.dataset)) {
      drained_ = true;
      break;
    }
    slots.push_back(std::move(slot));
  }
  pool_->parallel_for(static_cast<int64_t>(slots.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Slot& slot = slots[static_cast<size_t>(i)];
      try {
        slot.encoded = encoder_.encode(slot.example);
        slot.encoded.dataset = slot.dataset;
      } catch (...) {
        slot.error = std::current_exception();
      }
    }
  });
  for (Slot& slot : slots) {
    try {
      if (slot.error) std::rethrow_exception(slot.error);
    } catch (const RowError& e) {
      if (!options_.mix.skip_bad_rows) {
        throw Error(std::string(e.what()) + " (--skip_bad_rows passes over such rows)");
      }
      RowCounts& counts = mixer_.datasets()[static_cast<size_t>(slot.dataset)].counts();
      if (++counts.bad <= kLoggedBadRows) log_warning("data", "skipped: {}", e.what());
      continue;
    }
    count(slot.encoded);
    packer_.add(std::move(slot.encoded));
  }
  if (drained_) packer_.finish_epoch();
}

bool BatchStream::next(TrainBatch* batch) {
  batch->clear();
  std::vector<PackedUnit> units;
  while (static_cast<int64_t>(units.size()) < options_.batch_size) {
    PackedUnit unit;
    if (packer_.next(&unit)) {
      units.push_back(std::move(unit));
    } else if (drained_) {
      break;
    } else {
      advance();
    }
  }
  // One row has no other to take an answer from.
  if (encoder_.options().stage == Stage::kKto && units.size() == 1) units.clear();
  if (units.empty()) {
    if (!any_) {
      std::vector<std::pair<std::string, RowCounts>> counts;
      for (DatasetRows& set : mixer_.datasets()) counts.emplace_back(set.spec().name, set.counts());
      fail("the data sets hold nothing to train on:\n{}", describe_counts(counts));
    }
    drained_ = any_ = false;
    return false;
  }
  any_ = true;
  make_batch(std::move(units), batch);
  return true;
}

void BatchStream::make_batch(std::vector<PackedUnit> units, TrainBatch* batch) const {
  batch->num_rows = static_cast<int64_t>(units.size());
  for (const PackedUnit& unit : units) {
    for (size_t i = 0; i < unit.tokens.size(); ++i)
      batch->append(unit.tokens[i], unit.sequences[i]);
  }
  if (encoder_.options().stage != Stage::kKto) return;
  for (size_t i = 0; i < units.size(); ++i) {
    const PackedUnit& other = units[(i + 1) % units.size()];
    TrainBatch::Sequence sequence = units[i].sequences[0];
    sequence.role = TrainBatch::Role::kMismatch;
    batch->append(mismatch(units[i].tokens[0], other.tokens[0], encoder_.options().cutoff_len),
                  std::move(sequence));
  }
}

std::vector<RowCounts> BatchStream::counts() {
  std::vector<RowCounts> out;
  for (DatasetRows& set : mixer_.datasets()) out.push_back(set.counts());
  return out;
}

Json BatchStream::state() const {
  return {
      {"mixer", mixer_.state()}, {"packer", packer_.state()}, {"drained", drained_}, {"any", any_}};
}

void BatchStream::restore(const Json& state) {
  mixer_.restore(state.at("mixer"));
  packer_.restore(state.at("packer"));
  drained_ = state.at("drained").get<bool>();
  any_ = state.at("any").get<bool>();
}

}  // namespace reft
