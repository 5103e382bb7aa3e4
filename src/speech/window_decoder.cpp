#include "speech/window_decoder.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace reft {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float largest(std::span<const float> x) { return *std::max_element(x.begin(), x.end()); }

// log Σ exp(x), −inf where all are.
double log_sum(std::span<const float> x) {
  const float top = largest(x);
  if (top == kNever) return kNever;
  double sum = 0;
  for (const float v : x) sum += std::exp(v - top);
  return top + std::log(sum);
}

void forbid(std::span<float> logits) { std::fill(logits.begin(), logits.end(), kNever); }

}  // namespace

double compression_ratio(const std::string& text) {
  if (text.empty()) return 0;
  uLongf size = compressBound(static_cast<uLong>(text.size()));
  std::vector<Bytef> out(size);
  const int status = compress(out.data(), &size, reinterpret_cast<const Bytef*>(text.data()),
                              static_cast<uLong>(text.size()));
  check(status == Z_OK, "zlib failed with {}", status);
  return static_cast<double>(text.size()) / static_cast<double>(size);
}

LogitRules::LogitRules(const SpeechTokens& tokens, bool timestamps, int64_t max_initial)
    : tokens_(tokens), timestamps_(timestamps), max_initial_(max_initial) {}

void LogitRules::apply(std::span<float> logits, std::span<const int32_t> sampled) const {
  if (sampled.empty()) {
    for (const int32_t id : tokens_.suppressed_first) logits[static_cast<size_t>(id)] = kNever;
  }
  for (const int32_t id : tokens_.suppressed) logits[static_cast<size_t>(id)] = kNever;
  if (timestamps_) apply_timestamps(logits, sampled);
}

// Timestamps come in pairs (the end of a segment and the start of the next), never decrease, and
// come whenever all of them together are likelier than any text.
void LogitRules::apply_timestamps(std::span<float> logits, std::span<const int32_t> sampled) const {
  const auto begin = static_cast<size_t>(tokens_.timestamp_begin);
  const auto end_of_text = static_cast<size_t>(tokens_.end_of_text);
  logits[static_cast<size_t>(tokens_.no_timestamps)] = kNever;
  const size_t n = sampled.size();
  const bool last_is_time = n >= 1 && tokens_.is_timestamp(sampled[n - 1]);
  const bool pair_is_open = last_is_time && n >= 2 && !tokens_.is_timestamp(sampled[n - 2]);
  if (last_is_time) {
    if (pair_is_open) {
      forbid(logits.first(end_of_text));
    } else {
      forbid(logits.subspan(begin));
    }
  }
  const auto newest = std::find_if(sampled.rbegin(), sampled.rend(),
                                   [&](int32_t id) { return tokens_.is_timestamp(id); });
  if (newest != sampled.rend()) {
    // A segment has a length: only the start of the next one may repeat the end.
    const size_t from = static_cast<size_t>(*newest) + (pair_is_open ? 0 : 1);
    forbid(logits.subspan(begin, std::min(from, logits.size()) - begin));
  }
  if (sampled.empty()) {
    forbid(logits.first(begin));
    const size_t last = begin + static_cast<size_t>(max_initial_) + 1;
    if (last < logits.size()) forbid(logits.subspan(last));
  }
  if (log_sum(logits.subspan(begin)) > largest(logits.first(begin))) forbid(logits.first(begin));
}

WindowDecoder::WindowDecoder(const SpeechTokens& tokens, const TranscriptionOptions& options,
                             float temperature, std::vector<int32_t> prompt, int64_t context,
                             uint64_t seed)
    : tokens_(tokens),
      options_(options),
      temperature_(temperature),
      prompt_(std::move(prompt)),
      context_(context),
      max_tokens_(options.max_tokens > 0 ? options.max_tokens : context / 2),
      rules_(tokens, options.timestamps, std::llround(options.max_initial_timestamp / 0.02)),
      random_(seed),
      running_(1) {
  const auto it = std::find(prompt_.begin(), prompt_.end(), tokens.start);
  check(it != prompt_.end(), "a prompt without its start token");
  start_row_ = it - prompt_.begin();
}

void WindowDecoder::set_no_speech(std::span<const float> logits) {
  no_speech_prob_ = std::exp(logits[static_cast<size_t>(tokens_.no_speech)] - log_sum(logits));
}

bool WindowDecoder::out_of_room(const Hypothesis& h) const {
  const auto n = static_cast<int64_t>(h.tokens.size());
  return n >= max_tokens_ || static_cast<int64_t>(prompt_.size()) + n > context_;
}

std::vector<WindowDecoder::Next> WindowDecoder::step(std::vector<std::span<float>> logits) {
  check(logits.size() == running_.size(), "{} rows of logits for {} hypotheses", logits.size(),
        running_.size());
  for (size_t i = 0; i < logits.size(); ++i) rules_.apply(logits[i], running_[i].tokens);
  std::vector<Next> next =
      temperature_ == 0 && options_.beam_size > 1 ? search(logits) : sample(logits);
  // All running hypotheses are equally long.
  if (!next.empty() && out_of_room(running_[0])) next.clear();
  return next;
}

// Greedy, or draws by the temperature. The first step branches into best_of hypotheses.
std::vector<WindowDecoder::Next> WindowDecoder::sample(std::vector<std::span<float>>& logits) {
  const bool first = running_.size() == 1 && running_[0].tokens.empty() && finished_.empty();
  const size_t draws =
      first && temperature_ > 0 ? static_cast<size_t>(std::max<int64_t>(1, options_.best_of)) : 1;
  std::vector<Hypothesis> running;
  std::vector<Next> next;
  for (size_t i = 0; i < running_.size(); ++i) {
    const std::span<const float> row = logits[i];
    const double total = log_sum(row);
    for (size_t draw = 0; draw < draws; ++draw) {
      size_t token = static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin());
      if (temperature_ > 0) {
        const float top = row[token];
        double sum = 0;
        for (const float x : row) sum += std::exp((x - top) / temperature_);
        double left = std::uniform_real_distribution<double>(0, sum)(random_);
        for (size_t t = 0; t < row.size(); ++t) {
          const double p = std::exp((row[t] - top) / temperature_);
          if (p == 0) continue;
          token = t;
          left -= p;
          if (left < 0) break;
        }
      }
      Hypothesis h = running_[i];
      h.sum += row[token] - total;
      if (static_cast<int32_t>(token) == tokens_.end_of_text) {
        finished_.push_back(std::move(h));
        continue;
      }
      h.tokens.push_back(static_cast<int32_t>(token));
      running.push_back(std::move(h));
      next.push_back({static_cast<int32_t>(token), i});
    }
  }
  running_ = std::move(running);
  return next;
}

std::vector<WindowDecoder::Next> WindowDecoder::search(std::vector<std::span<float>>& logits) {
  struct Candidate {
    double sum;
    size_t parent;
    int32_t token;
  };
  const auto beams = static_cast<size_t>(options_.beam_size);
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < running_.size(); ++i) {
    const std::span<const float> row = logits[i];
    const double total = log_sum(row);
    std::vector<int32_t> ids(row.size());
    std::iota(ids.begin(), ids.end(), 0);
    const size_t wanted = std::min(beams + 1, ids.size());
    std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(wanted), ids.end(),
                      [&](int32_t a, int32_t b) {
                        const float x = row[static_cast<size_t>(a)],
                                    y = row[static_cast<size_t>(b)];
                        return x != y ? x > y : a < b;
                      });
    for (size_t k = 0; k < wanted; ++k)
      candidates.push_back({running_[i].sum + row[static_cast<size_t>(ids[k])] - total, i, ids[k]});
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.sum > b.sum; });
  const auto most = static_cast<size_t>(
      std::max<long long>(1, std::llround(static_cast<double>(beams) * options_.patience)));
  std::vector<Hypothesis> running;
  std::vector<Next> next;
  for (const Candidate& c : candidates) {
    if (next.size() == beams) break;
    Hypothesis h = running_[c.parent];
    h.sum = c.sum;
    if (c.token == tokens_.end_of_text) {
      if (finished_.size() < most) finished_.push_back(std::move(h));
      continue;
    }
    h.tokens.push_back(c.token);
    running.push_back(std::move(h));
    next.push_back({c.token, c.parent});
  }
  running_ = std::move(running);
  if (finished_.size() >= most) next.clear();
  return next;
}

const WindowDecoder::Hypothesis& WindowDecoder::best() const {
  std::vector<const Hypothesis*> all;
  for (const Hypothesis& h : finished_) all.push_back(&h);
  // Beams that did not end fill the places that are left, the likeliest first; draws all count.
  std::vector<const Hypothesis*> open;
  for (const Hypothesis& h : running_) open.push_back(&h);
  std::stable_sort(open.begin(), open.end(),
                   [](const Hypothesis* a, const Hypothesis* b) { return a->sum > b->sum; });
  const bool searched = temperature_ == 0 && options_.beam_size > 1;
  for (const Hypothesis* h : open) {
    if (searched && all.size() >= static_cast<size_t>(options_.beam_size)) break;
    all.push_back(h);
  }
  const auto score = [&](const Hypothesis& h) {
    const double length = std::max<double>(1, static_cast<double>(h.tokens.size()));
    return h.sum / (options_.length_penalty ? std::pow((5 + length) / 6, *options_.length_penalty)
                                            : length);
  };
  return **std::max_element(all.begin(), all.end(), [&](const Hypothesis* a, const Hypothesis* b) {
    return score(*a) < score(*b);
  });
}

WindowResult WindowDecoder::finish() const {
  const Hypothesis& h = best();
  WindowResult result;
  result.tokens = h.tokens;
  result.text = tokens_.text(h.tokens);
  const size_t first = result.text.find_first_not_of(" \n\t\r");
  const size_t last = result.text.find_last_not_of(" \n\t\r");
  result.text = first == std::string::npos ? "" : result.text.substr(first, last - first + 1);
  result.avg_logprob = h.sum / static_cast<double>(h.tokens.size() + 1);
  result.no_speech_prob = no_speech_prob_;
  result.compression_ratio = compression_ratio(result.text);
  result.temperature = temperature_;
  return result;
}

}  // namespace reft
