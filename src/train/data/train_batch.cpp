#include "train/data/train_batch.h"

#include <algorithm>

namespace reft {

void TrainBatch::append(const TrainSequence& tokens, Sequence sequence) {
  if (sequence_start.empty()) sequence_start.push_back(0);
  const size_t n = tokens.ids.size();
  for (size_t i = 0; i < n; ++i) {
    const bool learnt = i + 1 < n && tokens.trained[i + 1] != 0;
    token_ids.push_back(tokens.ids[i]);
    positions.push_back(static_cast<int32_t>(i));
    labels.push_back(learnt ? tokens.ids[i + 1] : kIgnored);
    num_trained += learnt ? 1 : 0;
  }
  sequence_start.push_back(static_cast<int32_t>(token_ids.size()));
  sequences.push_back(std::move(sequence));
  max_sequence_len = std::max(max_sequence_len, static_cast<int64_t>(n));
}

Json TrainBatch::to_json() const {
  Json list = Json::array();
  for (const Sequence& s : sequences) {
    list.push_back({static_cast<int>(s.role), s.desirable, s.dataset, s.place});
  }
  return {{"token_ids", token_ids},
          {"positions", positions},
          {"labels", labels},
          {"sequence_start", sequence_start},
          {"sequences", std::move(list)},
          {"num_trained", num_trained},
          {"max_sequence_len", max_sequence_len},
          {"num_rows", num_rows}};
}

TrainBatch TrainBatch::from_json(const Json& json) {
  TrainBatch out;
  out.token_ids = json.at("token_ids").get<std::vector<int32_t>>();
  out.positions = json.at("positions").get<std::vector<int32_t>>();
  out.labels = json.at("labels").get<std::vector<int32_t>>();
  out.sequence_start = json.at("sequence_start").get<std::vector<int32_t>>();
  for (const Json& s : json.at("sequences")) {
    out.sequences.push_back({static_cast<Role>(s.at(0).get<int>()), s.at(1).get<bool>(),
                             s.at(2).get<int32_t>(), s.at(3).get<std::string>()});
  }
  out.num_trained = json.at("num_trained").get<int64_t>();
  out.max_sequence_len = json.at("max_sequence_len").get<int64_t>();
  out.num_rows = json.at("num_rows").get<int64_t>();
  return out;
}

}  // namespace reft
