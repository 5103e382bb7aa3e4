#include "train/data/packer.h"

#include <algorithm>

namespace reft {
namespace {

using Role = TrainBatch::Role;

Role role_of(const EncodedExample& example, size_t index) {
  if (example.kind == Example::Kind::kPair) return index == 0 ? Role::kChosen : Role::kRejected;
  if (example.kind == Example::Kind::kTagged) return Role::kTagged;
  return Role::kPlain;
}

}  // namespace

int64_t PackedUnit::num_tokens() const {
  int64_t sum = 0;
  for (const TrainSequence& t : tokens) sum += t.size();
  return sum;
}

Json PackedUnit::to_json() const {
  Json list = Json::array();
  for (size_t i = 0; i < tokens.size(); ++i) {
    const TrainBatch::Sequence& s = sequences[i];
    list.push_back({{"ids", tokens[i].ids},
                    {"trained", tokens[i].trained},
                    {"role", static_cast<int>(s.role)},
                    {"desirable", s.desirable},
                    {"dataset", s.dataset},
                    {"place", s.place}});
  }
  return list;
}

PackedUnit PackedUnit::from_json(const Json& json) {
  PackedUnit out;
  for (const Json& s : json) {
    out.tokens.push_back(
        {s.at("ids").get<std::vector<int32_t>>(), s.at("trained").get<std::vector<uint8_t>>()});
    out.sequences.push_back({static_cast<Role>(s.at("role").get<int>()),
                             s.at("desirable").get<bool>(), s.at("dataset").get<int32_t>(),
                             s.at("place").get<std::string>()});
  }
  return out;
}

void Packer::add(EncodedExample example) {
  if (options_.stage == Stage::kPretrain) return add_to_block(std::move(example));
  PackedUnit row;
  for (size_t i = 0; i < example.sequences.size(); ++i) {
    TrainBatch::Sequence sequence{role_of(example, i), example.desirable, example.dataset,
                                  example.place};
    if (options_.packing) {
      add_to_bin(std::move(example.sequences[i]), std::move(sequence));
      continue;
    }
    row.tokens.push_back(std::move(example.sequences[i]));
    row.sequences.push_back(std::move(sequence));
    // Pieces of a long text are units of their own, both sides of a preference are one.
    if (example.kind != Example::Kind::kPair) {
      ready_.push_back(std::move(row));
      row = PackedUnit();
    }
  }
  if (!row.tokens.empty()) ready_.push_back(std::move(row));
}

void Packer::add_to_block(EncodedExample example) {
  const auto size = static_cast<size_t>(options_.cutoff_len);
  for (const TrainSequence& text : example.sequences) {
    for (size_t at = 0; at < text.ids.size();) {
      if (block_.tokens.empty()) {
        TrainSequence& tokens = block_.tokens.emplace_back();
        if (options_.bos) tokens = {{*options_.bos}, {0}};
        block_.sequences.push_back({Role::kPlain, true, example.dataset, example.place});
      }
      TrainSequence& tokens = block_.tokens[0];
      const size_t n = std::min(size - tokens.ids.size(), text.ids.size() - at);
      const auto first = text.ids.begin() + static_cast<ptrdiff_t>(at);
      tokens.ids.insert(tokens.ids.end(), first, first + static_cast<ptrdiff_t>(n));
      tokens.trained.resize(tokens.ids.size(), 1);
      at += n;
      if (tokens.ids.size() == size) close_block();
    }
  }
}

void Packer::close_block() {
  // One token alone has nothing to predict.
  if (!block_.tokens.empty() && block_.tokens[0].size() > 1) ready_.push_back(std::move(block_));
  block_ = PackedUnit();
}

void Packer::add_to_bin(TrainSequence tokens, TrainBatch::Sequence sequence) {
  auto fuller = [](const PackedUnit& a, const PackedUnit& b) {
    return a.num_tokens() < b.num_tokens();
  };
  const int64_t room_needed = options_.cutoff_len - tokens.size();
  auto best = bins_.end();
  for (auto bin = bins_.begin(); bin != bins_.end(); ++bin) {
    if (bin->num_tokens() <= room_needed && (best == bins_.end() || fuller(*best, *bin)))
      best = bin;
  }
  if (best == bins_.end()) {
    if (static_cast<int64_t>(bins_.size()) == options_.open_bins) {
      const auto fullest = std::max_element(bins_.begin(), bins_.end(), fuller);
      ready_.push_back(std::move(*fullest));
      bins_.erase(fullest);
    }
    best = bins_.insert(bins_.end(), PackedUnit());
  }
  best->tokens.push_back(std::move(tokens));
  best->sequences.push_back(std::move(sequence));
  if (best->num_tokens() == options_.cutoff_len) {
    ready_.push_back(std::move(*best));
    bins_.erase(best);
  }
}

void Packer::finish_epoch() {
  close_block();
  for (PackedUnit& bin : bins_) ready_.push_back(std::move(bin));
  bins_.clear();
}

bool Packer::next(PackedUnit* unit) {
  if (ready_.empty()) return false;
  *unit = std::move(ready_.front());
  ready_.pop_front();
  return true;
}

Json Packer::state() const {
  Json bins = Json::array();
  for (const PackedUnit& bin : bins_) bins.push_back(bin.to_json());
  Json ready = Json::array();
  for (const PackedUnit& unit : ready_) ready.push_back(unit.to_json());
  return {{"block", block_.to_json()}, {"bins", std::move(bins)}, {"ready", std::move(ready)}};
}

void Packer::restore(const Json& state) {
  block_ = PackedUnit::from_json(state.at("block"));
  bins_.clear();
  for (const Json& bin : state.at("bins")) bins_.push_back(PackedUnit::from_json(bin));
  ready_.clear();
  for (const Json& unit : state.at("ready")) ready_.push_back(PackedUnit::from_json(unit));
}

}  // namespace reft
