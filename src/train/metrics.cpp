#include "train/metrics.h"

namespace reft {

std::vector<std::pair<std::string, double>> Metrics::means() const {
  std::map<std::string, double> means;
  for (const auto& [name, sum] : sums_) means[name] = sum.value / static_cast<double>(sum.count);
  const auto chosen = means.find("rewards/chosen"), rejected = means.find("rewards/rejected");
  if (chosen != means.end() && rejected != means.end()) {
    means.try_emplace("rewards/margins", chosen->second - rejected->second);
  }
  return {means.begin(), means.end()};
}

Json Metrics::to_json() const {
  Json json = Json::object();
  for (const auto& [name, sum] : sums_) json[name] = {sum.value, sum.count};
  return json;
}

Metrics Metrics::from_json(const Json& json) {
  Metrics metrics;
  for (const auto& [name, sum] : json.items()) {
    metrics.sums_[name] = {sum.at(0).get<double>(), sum.at(1).get<int64_t>()};
  }
  return metrics;
}

}  // namespace reft
