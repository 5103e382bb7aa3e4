// Means in the making of what a run tells beside its loss, under the names they are logged by.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace reft {

class Metrics {
 public:
  void add(const std::string& name, double value) { add(name, value, 1); }
  void add(const Metrics& other) {
    for (const auto& [name, sum] : other.sums_) add(name, sum.value, sum.count);
  }

  // In alphabetical order. Where chosen and rejected rows came apart, "rewards/margins" is the
  // difference of their means.
  std::vector<std::pair<std::string, double>> means() const;

  Json to_json() const;
  static Metrics from_json(const Json& json);

 private:
  struct Sum {
    double value = 0;
    int64_t count = 0;
  };
  void add(const std::string& name, double value, int64_t count) {
    Sum& sum = sums_[name];
    sum.value += value;
    sum.count += count;
  }

  std::map<std::string, Sum> sums_;
};

}  // namespace reft
