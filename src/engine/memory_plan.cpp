#include "engine/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>

#include "base/log.h"
#include "tensor/allocator.h"

namespace reft {
namespace {

constexpr int64_t kDefaultLen = 4096;  // when neither flag nor model tells
constexpr int64_t kAutomaticLimit = int64_t{4} << 30;

std::string size_text(int64_t bytes) {
  if (bytes >= int64_t{1} << 30)
    return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
  return fmt::format("{:.2f} MiB", static_cast<double>(bytes) / (1 << 20));
}

// The first number in a file; −1 when there is none ("max").
int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What else helps when a GPU lacks room for a KV cache of `wanted` bytes, or at least `least`.
std::string utilization_advice(const KvFacts& facts, int64_t wanted, int64_t least) {
  if (!facts.dedicated) return "";
  const auto share_for = [&](int64_t bytes) {
    return std::ceil(100.0 * static_cast<double>(facts.used_bytes + bytes) /
                     static_cast<double>(std::max<int64_t>(1, facts.total_bytes))) /
           100;
  };
  const std::string used =
      fmt::format(" (of the GPU's {}, weights, steps and other processes take {})",
                  size_text(facts.total_bytes), size_text(facts.used_bytes));
  if (share_for(wanted) <= 1)
    return fmt::format(", or --gpu_memory_utilization {:.2f}{}", share_for(wanted), used);
  if (share_for(least) <= 1) {
    return fmt::format(", or --gpu_memory_utilization {:.2f} with a smaller --max_model_len{}",
                       share_for(least), used);
  }
  return "; this GPU has too little memory left for it" + used;
}

}  // namespace

int64_t available_memory() {
  int64_t available = 0;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  while (meminfo >> key) {
    int64_t kib = 0;
    if (key == "MemAvailable:" && meminfo >> kib) available = kib * 1024;
    meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) available = std::min(available, std::max<int64_t>(0, limit - used));
  return available;
}

void measure_device(Device device, const EngineOptions& options, int64_t reserve, KvFacts& facts) {
  check(options.gpu_memory_utilization > 0 && options.gpu_memory_utilization <= 1,
        "--gpu_memory_utilization must be in (0, 1], got {}", options.gpu_memory_utilization);
  const DeviceMemory memory = allocator_for(device).device_memory();
  const auto share =
      static_cast<int64_t>(static_cast<double>(memory.total) * options.gpu_memory_utilization);
  log_info("Engine", "GPU Mem Info(free={:.1f} GB, total={:.1f} GB)",
           static_cast<double>(memory.free) / 1e9, static_cast<double>(memory.total) / 1e9);
  facts.dedicated = true;
  facts.total_bytes = memory.total;
  facts.used_bytes = memory.total - memory.free + reserve;
  facts.available_bytes = std::max<int64_t>(0, share - facts.used_bytes);
}

void check_options(const EngineOptions& o) {
  const auto range = [](const char* flag, int64_t value, int64_t low, int64_t high) {
    check(value >= low && value <= high, "--{} must be between {} and {}, got {}", flag, low, high,
          value);
  };
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max() - 1;
  range("max_model_len", o.max_model_len, 0, kMax);
  range("max_num_seqs", o.max_num_seqs, 1, 1 << 20);
  range("max_num_batched_tokens", o.max_num_batched_tokens, 1, kMax);
  range("block_size", o.block_size, 1, 1 << 16);
  range("num_gpu_blocks_override", o.num_gpu_blocks_override, 0, kMax / o.block_size);
  range("kv_cache_memory_bytes", o.kv_cache_memory_bytes, 0, std::numeric_limits<int64_t>::max());
  range("max_queued_requests", o.max_queued_requests, 0, std::numeric_limits<int64_t>::max());
  check(o.scheduling_policy == "fcfs" || o.scheduling_policy == "priority",
        "--scheduling_policy must be fcfs or priority, got '{}'", o.scheduling_policy);
}

KvPlan plan_kv_cache(const EngineOptions& options, const KvFacts& facts) {
  check(facts.block_bytes > 0, "the model keeps nothing per token: a KV cache of {} bytes a block",
        facts.block_bytes);
  const int64_t model_len =
      facts.model_len > 0 ? facts.model_len : std::max(kDefaultLen, options.max_model_len);
  check(options.max_model_len <= model_len,
        "--max_model_len {} is longer than the {} tokens that the model knows",
        options.max_model_len, model_len);
  const int64_t wanted = options.max_model_len > 0 ? options.max_model_len : model_len;
  const int64_t per_sequence = divide_up(wanted, options.block_size);
  const int64_t most_blocks =
      (std::numeric_limits<int32_t>::max() - 1) / options.block_size;  // slots are int32

  KvPlan plan{0, wanted};
  int64_t budget = 0;
  if (options.num_gpu_blocks_override > 0) {
    plan.num_blocks = options.num_gpu_blocks_override;
  } else if (options.kv_cache_memory_bytes > 0) {
    budget = options.kv_cache_memory_bytes;
    plan.num_blocks = budget / facts.block_bytes;
  } else {
    budget = facts.dedicated ? facts.available_bytes
                             : std::min(kAutomaticLimit, facts.available_bytes / 4);
    plan.num_blocks = std::min(budget / facts.block_bytes, per_sequence * options.max_num_seqs);
  }
  plan.num_blocks = std::min(plan.num_blocks, most_blocks);
  if (plan.num_blocks >= per_sequence) return plan;

  const int64_t fits = plan.num_blocks * options.block_size;
  if (options.num_gpu_blocks_override > 0) {
    plan.max_model_len = fits;
    log_warning("Engine",
                "max_model_len is {} instead of {}: --num_gpu_blocks_override {} holds no more",
                fits, wanted, plan.num_blocks);
  } else if (options.max_model_len == 0 && fits > 0) {
    plan.max_model_len = fits;
    log_info("Engine",
             "max_model_len is {} instead of the model's {}: one such sequence needs {} of KV "
             "cache, {} are available",
             fits, wanted, size_text(per_sequence * facts.block_bytes), size_text(budget));
  } else if (fits > 0) {
    fail(
        "--max_model_len {} needs {} of KV cache, but {} are available: use --max_model_len {} or "
        "less, or "
        "--kv_cache_memory_bytes {}{}",
        wanted, size_text(per_sequence * facts.block_bytes), size_text(budget), fits,
        per_sequence * facts.block_bytes,
        utilization_advice(facts, per_sequence * facts.block_bytes, facts.block_bytes));
  } else {
    fail(
        "a KV block of {} tokens takes {}, but {} are available for the KV cache: use "
        "--kv_cache_memory_bytes {} or "
        "more, or a smaller --block_size{}",
        options.block_size, size_text(facts.block_bytes), size_text(budget), facts.block_bytes,
        utilization_advice(facts, per_sequence * facts.block_bytes, facts.block_bytes));
  }
  return plan;
}

}  // namespace reft
