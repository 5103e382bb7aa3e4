#include "train/data/mixer.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace reft {

Mixer::Mixer(MixOptions options) : options_(std::move(options)) {
  check(!options_.datasets.empty(), "no data set is given: pass --datasets name@path");
  check(options_.validation_fraction >= 0 && options_.validation_fraction < 1,
        "the fraction that is held out must be at least 0 and below 1, it is {}",
        options_.validation_fraction);
  std::set<std::string> names;
  for (const DatasetSpec& spec : options_.datasets) {
    check(names.insert(spec.name).second, "two data sets have the name '{}'", spec.name);
    repeats_ = repeats_ || spec.weight.has_value();
  }
  // Held-out rows are for measuring: each once.
  if (options_.validation) repeats_ = false;
  const auto seed = options_.shuffle ? std::optional(options_.seed) : std::nullopt;
  for (const DatasetSpec& spec : options_.datasets) {
    sets_.emplace_back(spec, options_.text_unit, options_.skip_bad_rows, seed);
    weights_.push_back(repeats_ ? spec.weight.value_or(1.0)
                                : static_cast<double>(std::max<int64_t>(sets_.back().bytes(), 1)));
  }
  passes_.assign(sets_.size(), 0);
}

void Mixer::begin_epoch() {
  ++epoch_;
  in_epoch_ = true;
  given_.assign(sets_.size(), 0);
  ended_.assign(sets_.size(), 0);
  random_ = split_mix(options_.seed, static_cast<uint64_t>(epoch_));
  for (size_t i = 0; i < sets_.size(); ++i) sets_[i].begin_epoch(passes_[i]++);
}

// -1 when the epoch has no more rows.
int32_t Mixer::choose() const {
  if (repeats_ && std::all_of(ended_.begin(), ended_.end(), [](char e) { return e != 0; }))
    return -1;
  int32_t best = -1;
  double least = INFINITY;
  for (size_t i = 0; i < sets_.size(); ++i) {
    if (ended_[i] != 0 && !repeats_) continue;
    const double share = static_cast<double>(given_[i] + 1) / weights_[i];
    if (share < least) {
      least = share;
      best = static_cast<int32_t>(i);
    }
  }
  return best;
}

// The next row of the split from one set; false where its pass ends.
bool Mixer::read_row(int32_t set, Example* example) {
  const double fraction = options_.validation_fraction;
  while (sets_[static_cast<size_t>(set)].next(example)) {
    const double u =
        static_cast<double>(split_mix(options_.seed, example->row_id).next() >> 11) * 0x1p-53;
    if ((fraction > 0 && u < fraction) == options_.validation) return true;
  }
  return false;
}

bool Mixer::read(Slot* slot) {
  for (int32_t set = choose(); set >= 0; set = choose()) {
    const size_t i = static_cast<size_t>(set);
    bool found = read_row(set, &slot->example);
    if (!found) {
      ended_[i] = 1;
      if (!repeats_ || choose() < 0) continue;
      sets_[i].begin_epoch(passes_[i]++);
      found = read_row(set, &slot->example);
      check(found, "the data set '{}' has no rows to train on", sets_[i].spec().name);
    }
    ++given_[i];
    slot->dataset = set;
    return true;
  }
  return false;
}

void Mixer::fill() {
  const auto most =
      static_cast<size_t>(std::max<int64_t>(options_.shuffle ? options_.shuffle_rows : 1, 1));
  while (buffer_.size() < most && (buffer_.empty() || buffer_bytes_ < options_.shuffle_bytes)) {
    Slot slot;
    if (!read(&slot)) return;
    buffer_bytes_ += slot.example.num_bytes();
    buffer_.push_back(std::move(slot));
  }
}

bool Mixer::next(Example* example, int32_t* dataset) {
  if (!in_epoch_) begin_epoch();
  fill();
  if (buffer_.empty()) {
    in_epoch_ = false;
    return false;
  }
  const size_t drawn = options_.shuffle ? random_.below(buffer_.size()) : 0;
  std::swap(buffer_[drawn], buffer_.back());
  buffer_bytes_ -= buffer_.back().example.num_bytes();
  *example = std::move(buffer_.back().example);
  *dataset = buffer_.back().dataset;
  buffer_.pop_back();
  return true;
}

Json Mixer::state() const {
  Json sets = Json::array();
  for (const DatasetRows& set : sets_) sets.push_back(set.state());
  Json rows = Json::array();
  for (const Slot& slot : buffer_) rows.push_back({slot.dataset, slot.example.to_json()});
  return {{"sets", std::move(sets)},   {"epoch", epoch_},          {"in_epoch", in_epoch_},
          {"given", given_},           {"passes", passes_},        {"ended", ended_},
          {"random", random_.state()}, {"buffer", std::move(rows)}};
}

void Mixer::restore(const Json& state) {
  check(state.at("sets").size() == sets_.size(),
        "the training state was saved with {} data sets, there are {} now", state.at("sets").size(),
        sets_.size());
  for (size_t i = 0; i < sets_.size(); ++i) sets_[i].restore(state.at("sets")[i]);
  epoch_ = state.at("epoch").get<int64_t>();
  in_epoch_ = state.at("in_epoch").get<bool>();
  given_ = state.at("given").get<std::vector<int64_t>>();
  passes_ = state.at("passes").get<std::vector<int64_t>>();
  ended_ = state.at("ended").get<std::vector<char>>();
  random_ = SplitMix(state.at("random").get<uint64_t>());
  buffer_.clear();
  buffer_bytes_ = 0;
  for (const Json& row : state.at("buffer")) {
    buffer_.push_back({Example::from_json(row.at(1)), row.at(0).get<int32_t>()});
    buffer_bytes_ += buffer_.back().example.num_bytes();
  }
}

}  // namespace reft
