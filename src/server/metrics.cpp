// Prometheus text of the engine's counters, under vLLM's names so that its dashboards work, and of
// HTTP.
#include <fmt/format.h>

#include <unistd.h>

#include "base/file.h"
#include "server/serve_context.h"

namespace reft {
namespace {

constexpr double kDurationBounds[] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                      2.5,   5,    10,    30,   60,  120,  300};

std::string escape_label(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

class Printer {
 public:
  Printer(std::string& out, std::string labels) : out_(out), labels_(std::move(labels)) {}

  void gauge(std::string_view name, std::string_view help, double value) {
    head(name, help, "gauge");
    line(name, "", value);
  }
  // As Prometheus' own clients name counters: the family with "_total", as its sample.
  void counter(std::string_view name, std::string_view help, uint64_t value) {
    head(name, help, "counter");
    line(name, "", static_cast<double>(value));
  }
  void head(std::string_view name, std::string_view help, std::string_view type) {
    fmt::format_to(std::back_inserter(out_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name,
                   type);
  }
  void line(std::string_view name, std::string_view more_labels, double value) {
    fmt::format_to(std::back_inserter(out_), "{}{{{}{}{}}} {}\n", name, labels_,
                   more_labels.empty() || labels_.empty() ? "" : ",", more_labels, value);
  }
  void histogram(std::string_view name, std::string_view help, const Histogram& histogram) {
    head(name, help, "histogram");
    buckets(name, "", histogram);
  }
  void buckets(std::string_view name, const std::string& more_labels, const Histogram& histogram) {
    const std::string bucket = std::string(name) + "_bucket";
    const std::string comma = more_labels.empty() ? "" : more_labels + ",";
    uint64_t cumulative = 0;
    for (size_t i = 0; i < histogram.bounds.size(); ++i) {
      cumulative += histogram.counts[i];
      line(bucket, fmt::format("{}le=\"{}\"", comma, histogram.bounds[i]),
           static_cast<double>(cumulative));
    }
    line(bucket, comma + "le=\"+Inf\"", static_cast<double>(histogram.total));
    line(std::string(name) + "_sum", more_labels, histogram.sum);
    line(std::string(name) + "_count", more_labels, static_cast<double>(histogram.total));
  }

 private:
  std::string& out_;
  std::string labels_;
};

void print_engine(Printer& print, const EngineStats& stats) {
  print.gauge("vllm:num_requests_running", "Requests in the current steps.",
              static_cast<double>(stats.num_requests_running));
  print.gauge("vllm:num_requests_waiting", "Requests that wait to be scheduled.",
              static_cast<double>(stats.num_requests_waiting));
  print.gauge("vllm:kv_cache_usage_perc", "Used share of the KV cache, 1 is all.",
              stats.kv_cache_usage);
  print.gauge("vllm:gpu_cache_usage_perc", "Used share of the KV cache (old name).",
              stats.kv_cache_usage);
  print.counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
                stats.prefix_cache_queries);
  print.counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
                stats.prefix_cache_hits);
  print.counter("vllm:num_preemptions_total", "Preempted requests.", stats.num_preemptions);
  print.counter("vllm:prompt_tokens_total", "Prompt tokens computed.", stats.prompt_tokens);
  print.counter("vllm:generation_tokens_total", "Tokens generated.", stats.generation_tokens);
  print.head("vllm:request_success_total", "Finished requests by reason.", "counter");
  for (const FinishReason reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kAbort, FinishReason::kError}) {
    print.line("vllm:request_success_total",
               fmt::format("finished_reason=\"{}\"", finish_reason_name(reason)),
               static_cast<double>(stats.finished[static_cast<size_t>(reason)]));
  }
  print.histogram("vllm:time_to_first_token_seconds", "Time to the first token.",
                  stats.time_to_first_token);
  print.histogram("vllm:inter_token_latency_seconds", "Time between two tokens.",
                  stats.inter_token_latency);
  print.histogram("vllm:time_per_output_token_seconds", "Time between two tokens (old name).",
                  stats.inter_token_latency);
  print.histogram("vllm:e2e_request_latency_seconds", "Time from arrival to the last token.",
                  stats.e2e_latency);
  print.histogram("vllm:request_queue_time_seconds", "Time in the queue.", stats.queue_time);
  print.histogram("vllm:request_inference_time_seconds", "Time from first schedule to the end.",
                  stats.inference_time);
  print.histogram("vllm:request_prefill_time_seconds", "Time from first schedule to first token.",
                  stats.prefill_time);
  print.histogram("vllm:request_decode_time_seconds", "Time from first to last token.",
                  stats.decode_time);
  print.histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.",
                  stats.request_prompt_tokens);
  print.histogram("vllm:request_generation_tokens", "Generated tokens of a request.",
                  stats.request_generation_tokens);
  print.histogram("vllm:request_params_n", "The parameter n.", stats.request_params_n);
  print.histogram("vllm:request_params_max_tokens", "The parameter max_tokens.",
                  stats.request_params_max_tokens);
  print.histogram("vllm:iteration_tokens_total", "Tokens of an engine step.",
                  stats.iteration_tokens);
}

void print_text(Printer& print, const Engine& engine) {
  const EngineOptions& options = engine.options();
  print_engine(print, engine.stats());
  print.head("vllm:cache_config_info", "The KV cache's configuration.", "gauge");
  print.line("vllm:cache_config_info",
             fmt::format("block_size=\"{}\",num_gpu_blocks=\"{}\",enable_prefix_caching=\"{}\","
                         "cache_dtype=\"{}\",gpu_memory_utilization=\"{}\"",
                         options.block_size, engine.num_kv_blocks(),
                         options.enable_prefix_caching ? "True" : "False",
                         escape_label(options.kv_cache_dtype), options.gpu_memory_utilization),
             1);
  if (options.max_loras > 0) {
    std::string running;
    for (const ServedAdapterPtr& adapter : engine.adapters()) {
      // The list and this copy hold it: more are requests.
      if (adapter.use_count() > 2) running += (running.empty() ? "" : ",") + adapter->name;
    }
    print.head("vllm:lora_requests_info", "Adapters that requests use.", "gauge");
    print.line(
        "vllm:lora_requests_info",
        fmt::format("running_lora_adapters=\"{}\",waiting_lora_adapters=\"\",max_lora=\"{}\"",
                    escape_label(running), options.max_loras),
        1);
  }
}

void print_speech(Printer& print, const SpeechStats& stats) {
  print.gauge("vllm:num_requests_running", "Recordings that are written down.",
              static_cast<double>(stats.num_requests_running));
  print.gauge("vllm:num_requests_waiting", "Recordings that wait.",
              static_cast<double>(stats.num_requests_waiting));
  print.head("vllm:request_success_total", "Finished requests by reason.", "counter");
  for (const auto& [reason, count] :
       {std::pair("stop", stats.finished), {"abort", stats.aborted}, {"error", stats.failed}}) {
    print.line("vllm:request_success_total", fmt::format("finished_reason=\"{}\"", reason),
               static_cast<double>(count));
  }
  print.counter("vllm:generation_tokens_total", "Tokens generated.", stats.tokens);
  print.head("reft:audio_seconds_total", "Seconds of sound in finished requests.", "counter");
  print.line("reft:audio_seconds_total", "", stats.audio_seconds);
  print.counter("reft:audio_windows_total", "Windows of sound encoded.", stats.windows);
  print.counter("reft:audio_fallbacks_total", "Windows tried again at a higher temperature.",
                stats.fallbacks);
  print.histogram("vllm:e2e_request_latency_seconds", "Time from arrival to the end.",
                  stats.e2e_latency);
  print.histogram("vllm:request_queue_time_seconds", "Time in the queue.", stats.queue_time);
  print.histogram("reft:audio_encode_seconds", "Time of one batch of windows in the encoder.",
                  stats.encode_time);
}

int64_t resident_bytes() {
  try {
    long long pages = 0, resident = 0;
    const std::string text = read_file("/proc/self/statm");
    if (std::sscanf(text.c_str(), "%lld %lld", &pages, &resident) == 2) {
      return resident * sysconf(_SC_PAGESIZE);
    }
  } catch (const Error&) {
    return 0;  // no /proc: the metric is informative only
  }
  return 0;
}

}  // namespace

void HttpMetrics::observe(const std::string& handler, const std::string& method, int status,
                          double seconds) {
  const std::string status_class = fmt::format("{}xx", status / 100);
  const std::lock_guard lock(mutex_);
  ++requests_[{handler, method, status_class}];
  auto it = durations_.find(handler);
  if (it == durations_.end()) {
    it = durations_
             .emplace(handler, Histogram(std::vector<double>(std::begin(kDurationBounds),
                                                             std::end(kDurationBounds))))
             .first;
  }
  it->second.observe(seconds);
}

void HttpMetrics::print(std::string& out) const {
  Printer print(out, "");
  const std::lock_guard lock(mutex_);
  print.head("http_requests_total", "Answered HTTP requests.", "counter");
  for (const auto& [key, count] : requests_) {
    const auto& [handler, method, status] = key;
    print.line("http_requests_total",
               fmt::format("handler=\"{}\",method=\"{}\",status=\"{}\"", handler, method, status),
               static_cast<double>(count));
  }
  print.head("http_request_duration_seconds", "Time from a request's first byte to its last.",
             "histogram");
  for (const auto& [handler, histogram] : durations_) {
    print.buckets("http_request_duration_seconds", fmt::format("handler=\"{}\"", handler),
                  histogram);
  }
}

std::string prometheus_text(const ServeContext& context) {
  std::string out;
  const std::string model = escape_label(context.request.model_names.front());
  Printer print(out, fmt::format("model_name=\"{}\",engine=\"0\"", model));
  if (context.speech != nullptr) print_speech(print, context.speech->stats());
  if (context.text != nullptr) print_text(print, *context.text);
  context.http_metrics.print(out);
  Printer process(out, "");
  process.gauge("process_resident_memory_bytes", "Resident memory.",
                static_cast<double>(resident_bytes()));
  process.gauge("process_start_time_seconds", "Start of the server, Unix time.",
                static_cast<double>(context.created));
  return out;
}

void LiveCount::add() {
  const std::lock_guard lock(mutex_);
  ++count_;
}

void LiveCount::remove() {
  const std::lock_guard lock(mutex_);
  if (--count_ == 0) none_.notify_all();
}

int64_t LiveCount::count() const {
  const std::lock_guard lock(mutex_);
  return count_;
}

bool LiveCount::wait_for_none(int64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  return none_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return count_ == 0; });
}

}  // namespace reft
