// For tests and benchmarks: a model whose next token is a hash of what it sees through the KV
// cache, so that a wrong block, position or stale entry changes the text; a byte tokenizer; and a
// collector of updates.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace reft::fake {

inline constexpr int32_t kVocab = 300;
inline constexpr int32_t kEos = 299;

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

struct ModelSettings {
  int64_t max_position = 4096;
  bool instant = false;                       // looks at nothing: for measuring the engine alone
  std::vector<int32_t> script;                // the token after position p is script[p % size]
  int32_t poison = -1;                        // a step with this token throws
  std::function<void(const Batch&)> on_step;  // called at the start of each forward
};

// Steps of the model wait here while it is closed: `settings.on_step = gate.step()`. It must
// outlive the engine. (After a minute it lets them pass, so that a failed test ends.)
class Gate {
 public:
  std::function<void(const Batch&)> step() {
    return [this](const Batch&) { pass(); };
  }
  void pass() {
    ++waiting_;
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::minutes(1), [this] { return open_; });
  }
  void open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  // Steps that came here so far.
  int num_arrived() const { return waiting_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<int> waiting_ = 0;
  bool open_ = false;
};

// Whether `condition` becomes true; a hang ends after 20 s.
template <class F>
bool becomes_true(F condition) {
  for (int i = 0; i < 20'000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

class Model : public CausalLmModel {
 public:
  explicit Model(ModelSettings settings) : settings_(std::move(settings)) {
    info_.architecture = "Fake";
    info_.vocab_size = kVocab;
    info_.max_position = settings_.max_position;
    info_.num_layers = 1;
    info_.hidden_size = 2;
  }

  const ModelInfo& info() const override { return info_; }
  std::vector<LayerCacheSpec> cache_specs() const override {
    return {{.num_kv_heads = 1, .head_dim = 2}};
  }
  Tensor forward_with_tap(const Batch& batch, KvCache& cache, const Tap&) override {
    return forward(batch, cache);
  }

  Tensor forward(const Batch& batch, KvCache& cache) override {
    if (settings_.on_step) settings_.on_step(batch);
    Tensor logits = Tensor::empty({batch.num_logit_rows(), kVocab}, DType::kF32);
    if (settings_.instant) {
      std::memset(logits.raw(), 0, static_cast<size_t>(logits.nbytes()));
      return logits;
    }
    write(batch, cache);
    const auto* rows = batch.logit_rows.data<int32_t>();
    const auto* starts = batch.attention.query_start.data<int32_t>();
    int64_t b = 0;
    for (int64_t r = 0; r < batch.num_logit_rows(); ++r) {
      while (rows[r] >= starts[b + 1]) ++b;
      fill(batch, cache, b, rows[r], logits.data<float>() + r * kVocab);
    }
    return logits;
  }

 private:
  static float* entry(KvCache& cache, int64_t slot) {
    return cache.layer(0).k.data<float>() + slot * 2;
  }

  void write(const Batch& batch, KvCache& cache) {
    for (int64_t t = 0; t < batch.num_tokens(); ++t) {
      const int32_t token = batch.token_ids.data<int32_t>()[t];
      check(token != settings_.poison, "poisoned token {}", token);
      float* e = entry(cache, batch.slots.data<int32_t>()[t]);
      e[0] = static_cast<float>(token);
      e[1] = static_cast<float>(batch.positions.data<int32_t>()[t]);
    }
  }

  void fill(const Batch& batch, KvCache& cache, int64_t b, int64_t token, float* logits) {
    const int64_t end = batch.attention.query_start.data<int32_t>()[b + 1];
    const int64_t visible = batch.attention.context_len.data<int32_t>()[b] - (end - 1 - token);
    check(visible == batch.positions.data<int32_t>()[token] + 1, "a token at {} sees {} keys",
          batch.positions.data<int32_t>()[token], visible);
    const int64_t width = batch.attention.block_table.size(1);
    const int32_t* table = batch.attention.block_table.data<int32_t>() + b * width;
    const int64_t size = cache.block_size();
    uint64_t hash = 7;
    for (int64_t p = 0; p < visible; ++p) {
      const float* e = entry(cache, table[p / size] * size + p % size);
      check(e[1] == static_cast<float>(p), "position {} holds the key of position {}", p, e[1]);
      hash = mix(hash * 31 + static_cast<uint64_t>(e[0]) + 1);
    }
    for (int32_t v = 0; v < kVocab; ++v) {
      logits[v] =
          static_cast<float>(mix(hash + static_cast<uint64_t>(v) * 0x9e3779b97f4a7c15) >> 40) *
          4e-7f;
    }
    if (!settings_.script.empty()) {
      logits[settings_.script[static_cast<size_t>(visible - 1) % settings_.script.size()]] = 100;
    }
  }

  ModelSettings settings_;
  ModelInfo info_;
};

inline LoadedModel load(ModelSettings settings = {}) {
  LoadedModel loaded;
  loaded.model = std::make_unique<Model>(std::move(settings));
  loaded.config = Json::object();
  loaded.generation_config = Json{{"eos_token_id", kEos}};
  loaded.compute_dtype = DType::kF32;
  return loaded;
}

// Ids 0 … 255 are bytes; 256 … 298 are "<256>" … ; 299 is the special "<eos>".
class ByteTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions&) const override {
    std::vector<int32_t> ids;
    for (char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string bytes;
    for (int32_t id : ids) {
      if (!(skip_special_tokens && is_special(id))) bytes += token_bytes(id);
    }
    return repaired(bytes);
  }
  int64_t vocab_size() const override { return kVocab; }
  std::optional<int32_t> token_to_id(std::string_view) const override { return std::nullopt; }
  std::string id_to_token(int32_t id) const override { return token_bytes(id); }
  std::string token_bytes(int32_t id) const override {
    if (id == kEos) return "<eos>";
    return id < 256 ? std::string(1, static_cast<char>(id)) : "<" + std::to_string(id) + ">";
  }
  bool is_special(int32_t id) const override { return id == kEos; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return kEos; }
  std::optional<int32_t> pad_id() const override { return std::nullopt; }
  const std::string& chat_template() const override { return empty_; }

 private:
  // Broken UTF-8 becomes U+FFFD, one per broken sequence.
  static std::string repaired(const std::string& bytes) {
    std::string out;
    for (size_t i = 0; i < bytes.size();) {
      const auto c = static_cast<unsigned char>(bytes[i]);
      const size_t want = c < 0x80                ? 1
                          : c >= 0xf0 && c < 0xf5 ? 4
                          : c >= 0xe0             ? 3
                          : c >= 0xc2             ? 2
                                                  : 0;
      size_t have = 1;
      while (have < want && i + have < bytes.size() &&
             (static_cast<unsigned char>(bytes[i + have]) & 0xc0) == 0x80)
        ++have;
      if (want == 0 || c >= 0xf5 || have < want) {
        out += "\xef\xbf\xbd";
      } else {
        out.append(bytes, i, want);
      }
      i += have;
    }
    return out;
  }
  std::string empty_;
};

// All that one output of a request delivered.
struct Output {
  std::string text;
  std::vector<std::string> pieces;
  std::vector<int32_t> ids;
  std::vector<TokenLogprobs> logprobs;
  std::vector<TokenLogprobs> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  std::variant<std::monostate, int32_t, std::string> stop_reason;
  std::string error;
  int64_t num_cached_tokens = 0;
  int64_t num_output_tokens = 0;
  int num_finishes = 0;
  int num_late = 0;  // updates after the end
};

// Collects the updates of one request.
class Collector {
 public:
  explicit Collector(int32_t n) : outputs_(static_cast<size_t>(n)) {}

  void add(GenerationUpdate&& u) {
    std::lock_guard lock(mutex_);
    Output& o = outputs_[static_cast<size_t>(u.index)];
    if (o.finish != FinishReason::kNone) ++o.num_late;
    o.text += u.text;
    o.pieces.push_back(u.text);
    o.ids.insert(o.ids.end(), u.token_ids.begin(), u.token_ids.end());
    for (auto& l : u.logprobs) o.logprobs.push_back(std::move(l));
    if (!u.prompt_logprobs.empty()) o.prompt_logprobs = std::move(u.prompt_logprobs);
    o.num_cached_tokens = u.num_cached_tokens;
    o.num_output_tokens = u.num_output_tokens;
    if (u.finish_reason != FinishReason::kNone) {
      o.finish = u.finish_reason;
      o.stop_reason = u.stop_reason;
      o.error = u.error;
      if (++o.num_finishes == 1) ++ended_;
    }
    changed_.notify_all();
  }
  // Waits for the end of all outputs; false after a minute.
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::minutes(1),
                             [this] { return ended_ == outputs_.size(); });
  }
  void wait_for_tokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::minutes(1),
                      [&] { return outputs_[0].ids.size() >= count || ended_ > 0; });
  }
  std::vector<Output> outputs() {
    std::lock_guard lock(mutex_);
    return outputs_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Output> outputs_;
  size_t ended_ = 0;
};
using CollectorPtr = std::shared_ptr<Collector>;

struct Call {
  std::vector<int32_t> prompt;
  SamplingParams params;
  std::string salt = {};
  int64_t priority = 0;
  std::string id = {};       // empty: a fresh one
  std::string adapter = {};  // empty: none
};

inline CollectorPtr start(Engine& engine, const Call& call) {
  static std::atomic<int64_t> counter{0};
  auto collector = std::make_shared<Collector>(call.params.n);
  GenerationRequest request;
  request.id = call.id.empty() ? "request-" + std::to_string(counter++) : call.id;
  request.prompt = call.prompt;
  request.params = call.params;
  request.cache_salt = call.salt;
  request.adapter = call.adapter;
  request.priority = call.priority;
  request.on_update = [collector](GenerationUpdate&& update) { collector->add(std::move(update)); };
  engine.submit(std::move(request));
  return collector;
}

// Runs all calls at once; the outputs of each. `started` is called when the engine has them all.
inline std::vector<std::vector<Output>> run_all(Engine& engine, const std::vector<Call>& calls,
                                                const std::function<void()>& started = nullptr) {
  std::vector<CollectorPtr> collectors;
  for (const Call& call : calls) collectors.push_back(start(engine, call));
  if (started) started();
  std::vector<std::vector<Output>> outputs;
  for (const CollectorPtr& c : collectors) {
    check(c->wait(), "a request did not end within a minute");
    outputs.push_back(c->outputs());
  }
  return outputs;
}

inline Output run_one(Engine& engine, const Call& call) { return run_all(engine, {call})[0][0]; }

inline SamplingParams greedy(int64_t max_tokens) {
  SamplingParams p;
  p.temperature = 0;
  p.max_tokens = max_tokens;
  return p;
}

}  // namespace reft::fake
