#include "tensor/safetensors_writer.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <unordered_set>

#include "base/file.h"
#include "base/json.h"
#include "base/temporary_file.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

// What the reference implementation accepts at most.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kAlignment = 64;

using Order = std::vector<const std::pair<std::string, Tensor>*>;

// Length of the header, the header, padding up to the data.
std::string header_of(const std::string& path, const Order& order,
                      const SafetensorsMetadata& metadata) {
  Json start = Json::object();
  if (!metadata.empty()) start["__metadata__"] = metadata;
  std::string text = start.dump();
  text.pop_back();
  int64_t position = 0;
  for (const auto* item : order) {
    const auto& [name, tensor] = *item;
    const int64_t end = position + tensor.nbytes();
    Json entry;
    entry["dtype"] = safetensors_dtype(tensor.dtype());
    entry["shape"] =
        std::vector<int64_t>(tensor.shape().sizes().begin(), tensor.shape().sizes().end());
    entry["data_offsets"] = {position, end};
    text += (text.size() > 1 ? "," : "") + Json(name).dump() + ":" + entry.dump();
    position = end;
  }
  text += "}";
  constexpr size_t kLength = sizeof(uint64_t);
  text.append((kAlignment - (kLength + text.size()) % kAlignment) % kAlignment, ' ');
  const uint64_t bytes = text.size();
  check(bytes <= kMaxHeaderBytes, "{}: a header of {} bytes is too long", path, bytes);
  std::string length(kLength, '\0');
  std::memcpy(length.data(), &bytes, kLength);
  return length + text;
}

void check_tensors(const std::string& path, const NamedTensors& tensors) {
  std::unordered_set<std::string> names = {"__metadata__"};
  for (const auto& [name, tensor] : tensors) {
    check(tensor.defined(), "{}: tensor '{}' is undefined", path, name);
    check(names.insert(name).second, "{}: the name '{}' is taken", path, name);
    check(safetensors_dtype(tensor.dtype()) != nullptr,
          "tensor '{}' is {}, which safetensors cannot hold", name, dtype_name(tensor.dtype()));
  }
}

}  // namespace

void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       const SafetensorsMetadata& metadata) {
  check_tensors(path, tensors);
  Order order;
  order.reserve(tensors.size());
  for (const auto& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return dtype_info(a->second.dtype()).block_bytes > dtype_info(b->second.dtype()).block_bytes;
  });
  const std::string header = header_of(path, order, metadata);
  TemporaryFile file(path);
  file.write(header.data(), header.size());
  for (const auto* item : order) {
    const Tensor packed = item->second.to(kCpuDevice).contiguous();
    file.write(packed.raw(), static_cast<size_t>(packed.nbytes()));
  }
  file.commit();
}

std::vector<std::string> write_safetensors_shards(const std::string& folder,
                                                  const std::string& stem,
                                                  const NamedTensors& tensors,
                                                  int64_t max_shard_bytes,
                                                  const SafetensorsMetadata& metadata) {
  check(max_shard_bytes > 0, "--max_shard_size must be above 0, got {}", max_shard_bytes);
  check_tensors(folder + "/" + stem, tensors);
  std::vector<NamedTensors> shards(1);
  int64_t total = 0, filled = 0;
  for (const auto& item : tensors) {
    const int64_t bytes = item.second.nbytes();
    if (filled + bytes > max_shard_bytes && !shards.back().empty()) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(item);
    filled += bytes;
    total += bytes;
  }
  if (shards.size() == 1) {
    const std::string name = stem + ".safetensors";
    write_safetensors(folder + "/" + name, tensors, metadata);
    return {name};
  }
  std::vector<std::string> written;
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    written.push_back(fmt::format("{}-{:05}-of-{:05}.safetensors", stem, i + 1, shards.size()));
    write_safetensors(folder + "/" + written.back(), shards[i], metadata);
    for (const auto& item : shards[i]) map[item.first] = written.back();
  }
  Json index;
  index["metadata"]["total_size"] = total;
  index["weight_map"] = std::move(map);
  written.push_back(stem + ".safetensors.index.json");
  write_file_atomic(folder + "/" + written.back(), index.dump(2) + "\n");
  return written;
}

int64_t parse_byte_size(std::string_view text, std::string_view flag) {
  double number = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(rest, text.data() + text.size());
  std::erase(unit, ' ');
  for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  constexpr std::pair<const char*, double> kUnits[] = {
      {"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
      {"TB", 1e12}, {"KIB", 0x1p10}, {"MIB", 0x1p20}, {"GIB", 0x1p30}, {"TIB", 0x1p40}};
  for (const auto& [name, factor] : kUnits) {
    if (error == std::errc() && unit == name && number > 0 && number * factor < 0x1p62) {
      return static_cast<int64_t>(number * factor);
    }
  }
  fail("--{} must be a size such as 5GB, 500MB or 2GiB, not '{}'", flag, text);
}

}  // namespace reft
