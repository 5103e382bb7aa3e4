// reft bench serve: a load client for any OpenAI-compatible server. Each concurrent stream is a
// thread with a connection of its own, so that no single event loop delays the times.
#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/progress.h"
#include "cli/bench_data.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "hub/http_client.h"

namespace reft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

struct Outcome {
  bool ok = false;
  std::string error;
  double latency = 0;  // seconds from sending to the last chunk
  double ttft = 0;
  std::vector<double> itl;  // between chunks that carry text
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  Clock::time_point start, end;
};

// Cuts a stream into server-sent events and hands on their data.
class EventReader {
 public:
  template <class F>
  void add(std::string_view bytes, F on_data) {
    buffer_ += bytes;
    size_t begin = 0;
    for (size_t end; (end = buffer_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      std::string_view line(buffer_.data() + begin, end - begin);
      if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
      if (!line.starts_with("data:")) continue;
      line.remove_prefix(5);
      if (!line.empty() && line.front() == ' ') line.remove_prefix(1);
      on_data(line);
    }
    buffer_.erase(0, begin);
  }

 private:
  std::string buffer_;
};

struct BenchServeOptions {
  static constexpr const char* kName = "bench serve";
  static constexpr const char* kSummary = "measure a running OpenAI-compatible server";
  static constexpr const char* kDescription =
      "Sends streaming requests and reports TTFT (time to first token), TPOT (time per output "
      "token after the "
      "first), ITL (time between chunks) and E2EL (end-to-end latency) with mean, median and "
      "percentiles, in vLLM's "
      "terms, and throughput. Works against any such server, so that peers are measured with the "
      "same client.";

  ModelFlags model;
  BenchData data;
  std::string base_url, host = "127.0.0.1", endpoint = "/v1/completions", served_model_name,
                        api_key;
  std::string request_rate = "inf", percentiles = "99", metrics = "ttft,tpot,itl,e2el", result_file;
  int64_t port = 8888, max_concurrency = 0, num_warmups = 1;
  double temperature = 0, burstiness = 1;
  bool ignore_eos = true, token_ids = true, quiet = false;

  void declare(ArgParser& parser) {
    parser.group("Server");
    parser.add("base_url", &base_url, "Address of the server, instead of --host and --port.");
    parser.add("host", &host, "Host of the server.");
    parser.add("port", &port, "Port of the server.");
    parser.add("endpoint", &endpoint, "/v1/completions or /v1/chat/completions.");
    parser.add("served_model_name", &served_model_name,
               "Name to ask for; empty: the first of /v1/models.");
    parser.add("api_key", &api_key, "Bearer token.");
    parser.ignored("backend", "every OpenAI-compatible server is measured alike");
    parser.group("Load");
    parser.add("dataset_name", &data.dataset, "Where prompts come from.", {"dataset"});
    parser.choices("dataset_name", {"random", "sharegpt"});
    parser.add("dataset_path", &data.dataset_path, "ShareGPT-style JSON file.");
    parser.add("num_prompts", &data.num_prompts, "Requests.");
    parser.add("input_len", &data.input_len, "Prompt length of random prompts.",
               {"random_input_len"});
    parser.add("output_len", &data.output_len, "Output length; 0 with sharegpt: that of the data.",
               {"random_output_len"});
    parser.add("random_range_ratio", &data.range_ratio, "Spread of random lengths, 0 to 1.");
    parser.add("random_prefix_len", &data.prefix_len, "Tokens that all random prompts share.");
    parser.add("request_rate", &request_rate,
               "Requests per second (Poisson arrivals); inf: all at once.");
    parser.add("burstiness", &burstiness,
               "Shape of the arrivals: 1 is Poisson, below is burstier.");
    parser.add("max_concurrency", &max_concurrency, "Requests in flight at most; 0: no limit.");
    parser.add("num_warmups", &num_warmups, "Requests before the clock starts.");
    parser.add("temperature", &temperature, "Sampling temperature; 0 is greedy.");
    parser.add("ignore_eos", &ignore_eos, "Always generate the whole output length.");
    parser.add("token_ids", &token_ids,
               "Send prompts to /v1/completions as token ids, so that lengths are exact.");
    parser.group("Report");
    parser.add("percentile_metrics", &metrics, "Which of ttft,tpot,itl,e2el get percentiles.");
    parser.add("metric_percentiles", &percentiles, "Which percentiles, comma-separated.");
    parser.add("save_result", &result_file,
               "File for the results and every request's times, as JSON.");
    parser.add("quiet", &quiet, "No progress bar.");
    model.declare_model(parser, false);
    model.declare_seed(parser);
    parser.example(
        "reft bench serve --port 8888 --num-prompts 100 --input-len 512 --output-len 128 "
        "--max-concurrency 8",
        "Eight streams at a time:");
    parser.example(
        "reft bench serve --base-url http://127.0.0.1:8000 --model Qwen/Qwen3-0.6B --request-rate "
        "4",
        "A peer's server at four requests a second (--model gives the tokenizer):");
  }

  std::string url(const std::string& path) const {
    std::string base = base_url.empty() ? fmt::format("http://{}:{}", host, port) : base_url;
    while (base.ends_with('/')) base.pop_back();
    return base + path;
  }
  HttpHeaders headers() const {
    HttpHeaders out{{"Content-Type", "application/json"}};
    if (!api_key.empty()) out.emplace_back("Authorization", "Bearer " + api_key);
    return out;
  }

  // The first of /v1/models.
  Json first_model() const {
    HttpClient client;
    const ClientResponse answer = client.send({.url = url("/v1/models"), .headers = headers()});
    check(answer.status == 200, "{} answered {}: {}", url("/v1/models"), answer.status,
          answer.body.substr(0, 200));
    const Json models = parse_json(answer.body, "/v1/models");
    check(models.contains("data") && !models["data"].empty(), "{} lists no model",
          url("/v1/models"));
    return models["data"][0];
  }

  std::string request_body(const BenchRequest& request, const std::string& name) const {
    const bool chat = endpoint.find("chat") != std::string::npos;
    Json body = {{"model", name},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}},
                 {"temperature", temperature},
                 {"max_tokens", request.output_len},
                 {"ignore_eos", ignore_eos}};
    if (chat) {
      body["messages"] = Json::array({{{"role", "user"}, {"content", request.text}}});
    } else if (token_ids) {
      body["prompt"] = request.ids;
    } else {
      body["prompt"] = request.text;
    }
    return body.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  Outcome send(HttpClient& client, const BenchRequest& request, const std::string& name) const {
    Outcome out;
    EventReader events;
    Clock::time_point last;
    int64_t chunks = 0;
    std::string plain;
    const auto on_data = [&](std::string_view text) {
      if (text == "[DONE]") return;
      const Json chunk = parse_json(text, "event");
      if (chunk.contains("error")) fail("{}", chunk["error"].dump());
      if (chunk.contains("usage") && chunk["usage"].is_object()) {
        out.prompt_tokens = json_get<int64_t>(chunk["usage"], "prompt_tokens", 0);
        out.output_tokens = json_get<int64_t>(chunk["usage"], "completion_tokens", 0);
      }
      if (!chunk.contains("choices") || chunk["choices"].empty()) return;
      const Json& choice = chunk["choices"][0];
      std::string piece;
      if (choice.contains("text")) {
        piece = json_get<std::string>(choice, "text", "");
      } else if (choice.contains("delta")) {
        piece = json_get<std::string>(choice["delta"], "content", "") +
                json_get<std::string>(choice["delta"], "reasoning_content", "");
        if (choice["delta"].contains("role") && piece.empty()) return;
      }
      const auto now = Clock::now();
      if (chunks++ == 0) {
        out.ttft = seconds_between(out.start, now);
      } else {
        out.itl.push_back(seconds_between(last, now));
      }
      last = now;
    };
    ClientRequest http{.method = "POST",
                       .url = url(endpoint),
                       .headers = headers(),
                       .body = request_body(request, name),
                       .repeatable = true};
    http.idle_timeout_s = 3600;
    int status = 0;
    http.on_head = [&](const ClientResponse& head) { status = head.status; };
    http.on_body = [&](std::string_view bytes) {
      if (status == 200) {
        events.add(bytes, on_data);
      } else {
        plain += bytes;
      }
    };
    out.start = Clock::now();
    try {
      client.send(http);
      out.end = Clock::now();
      out.ok = status == 200 && chunks > 0;
      if (!out.ok)
        out.error =
            status == 200 ? "no text came" : fmt::format("{}: {}", status, plain.substr(0, 300));
      out.latency = seconds_between(out.start, chunks > 0 ? last : out.end);
    } catch (const std::exception& e) {
      out.end = Clock::now();
      out.error = e.what();
    }
    return out;
  }

  // When each request is sent, in seconds from the start.
  std::vector<double> arrivals(size_t count) const {
    std::vector<double> at(count, 0.0);
    if (request_rate == "inf") return at;
    double rate = 0;
    try {
      rate = std::stod(request_rate);
    } catch (const std::exception&) {
    }
    check(rate > 0 && std::isfinite(rate),
          "--request-rate: '{}' is neither a positive number nor inf", request_rate);
    std::mt19937_64 random(data.seed);
    std::gamma_distribution<double> gap(burstiness, 1.0 / (rate * burstiness));
    double time = 0;
    for (double& t : at) {
      t = time;
      time += gap(random);
    }
    return at;
  }

  std::vector<Outcome> run(const std::vector<BenchRequest>& requests, const std::string& name,
                           double* duration) const {
    std::vector<Outcome> outcomes(requests.size());
    const std::vector<double> at = arrivals(requests.size());
    ProgressBar bar(static_cast<int64_t>(requests.size()), "requests", false, quiet);
    std::atomic<size_t> next{0};
    const auto start = Clock::now();
    const auto work = [&] {
      HttpClient client;
      for (size_t i; (i = next.fetch_add(1)) < requests.size();) {
        std::this_thread::sleep_until(start + std::chrono::duration_cast<Clock::duration>(
                                                  std::chrono::duration<double>(at[i])));
        outcomes[i] = send(client, requests[i], name);
        bar.advance();
      }
    };
    const size_t limit =
        max_concurrency > 0 ? static_cast<size_t>(max_concurrency) : requests.size();
    std::vector<std::thread> threads;
    for (size_t i = 0; i < std::min(limit, requests.size()); ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
    *duration = seconds_between(start, Clock::now());
    return outcomes;
  }

  static std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts;
    size_t begin = 0;
    while (begin <= text.size()) {
      const size_t end = std::min(text.find(',', begin), text.size());
      if (end > begin) parts.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    return parts;
  }

  void report_metric(Json& result, const char* key, const char* title,
                     const std::vector<double>& seconds) const {
    const Summary s = summarize(seconds);
    std::printf("%s\n", fmt::format("{:-^50}", title).c_str());
    const std::string upper = [&] {
      std::string out = key;
      std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::toupper(c); });
      return out;
    }();
    const auto line = [&](const std::string& what, double value) {
      std::printf("%-40s %-10.2f\n", (what + " " + upper + " (ms):").c_str(), value * 1e3);
      std::string name = what;
      std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
      result[name + "_" + key + "_ms"] = value * 1e3;
    };
    line("Mean", s.mean);
    line("Median", s.median);
    const std::vector<std::string> wanted = split(metrics);
    if (std::ranges::find(wanted, key) == wanted.end()) return;
    for (const std::string& p : split(percentiles))
      line("P" + p, s.percentile(parse_percentile(p)));
  }

  static double parse_percentile(const std::string& text) {
    double value = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    check(error == std::errc() && end == text.data() + text.size() && value >= 0 && value <= 100,
          "--metric-percentiles: '{}' is not a number between 0 and 100", text);
    return value;
  }

  // What would otherwise be noticed after the load.
  void check_report_options() const {
    for (const std::string& p : split(percentiles)) parse_percentile(p);
    for (const std::string& metric : split(metrics)) {
      check(metric == "ttft" || metric == "tpot" || metric == "itl" || metric == "e2el",
            "--percentile-metrics: '{}' is not one of ttft, tpot, itl, e2el", metric);
    }
  }

  static double peak_concurrency(const std::vector<Outcome>& outcomes) {
    std::vector<std::pair<Clock::time_point, int>> events;
    for (const Outcome& o : outcomes) {
      events.emplace_back(o.start, 1);
      events.emplace_back(o.end, -1);
    }
    std::ranges::sort(events);
    int now = 0, peak = 0;
    for (const auto& event : events) peak = std::max(peak, now += event.second);
    return peak;
  }

  void report(const std::vector<Outcome>& outcomes, double duration) const {
    std::vector<double> ttft, tpot, itl, e2el;
    double in = 0, out = 0;
    int64_t completed = 0;
    std::string first_error;
    for (const Outcome& o : outcomes) {
      if (!o.ok) {
        if (first_error.empty()) first_error = o.error;
        continue;
      }
      ++completed;
      in += static_cast<double>(o.prompt_tokens);
      out += static_cast<double>(o.output_tokens);
      ttft.push_back(o.ttft);
      e2el.push_back(o.latency);
      if (o.output_tokens > 1)
        tpot.push_back((o.latency - o.ttft) / static_cast<double>(o.output_tokens - 1));
      itl.insert(itl.end(), o.itl.begin(), o.itl.end());
    }
    Json result;
    std::printf("%s\n", fmt::format("{:=^50}", " Serving Benchmark Result ").c_str());
    const auto line = [&](const char* key, const char* what, double value, int digits) {
      std::printf("%-40s %-10.*f\n", what, digits, value);
      result[key] = value;
    };
    line("completed", "Successful requests:", static_cast<double>(completed), 0);
    line("failed",
         "Failed requests:", static_cast<double>(outcomes.size()) - static_cast<double>(completed),
         0);
    if (max_concurrency > 0)
      line("max_concurrency", "Maximum request concurrency:", static_cast<double>(max_concurrency),
           0);
    line("duration", "Benchmark duration (s):", duration, 2);
    line("total_input_tokens", "Total input tokens:", in, 0);
    line("total_output_tokens", "Total generated tokens:", out, 0);
    line("request_throughput",
         "Request throughput (req/s):", static_cast<double>(completed) / duration, 2);
    line("output_throughput", "Output token throughput (tok/s):", out / duration, 2);
    line("total_token_throughput", "Total token throughput (tok/s):", (in + out) / duration, 2);
    line("peak_concurrency", "Peak concurrent requests:", peak_concurrency(outcomes), 0);
    report_metric(result, "ttft", "Time to First Token", ttft);
    report_metric(result, "tpot", "Time per Output Token (excl. 1st token)", tpot);
    report_metric(result, "itl", "Inter-token Latency", itl);
    report_metric(result, "e2el", "End-to-end Latency", e2el);
    std::printf("%s\n", std::string(50, '=').c_str());
    if (!first_error.empty()) std::fprintf(stderr, "first error: %s\n", first_error.c_str());
    if (result_file.empty()) return;
    result["requests"] = Json::array();
    for (const Outcome& o : outcomes) {
      result["requests"].push_back({{"ok", o.ok},
                                    {"ttft", o.ttft},
                                    {"latency", o.latency},
                                    {"prompt_tokens", o.prompt_tokens},
                                    {"output_tokens", o.output_tokens},
                                    {"itl", o.itl},
                                    {"error", o.error}});
    }
    write_file_atomic(result_file,
                      result.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  int execute(const ArgParser&) {
    set_log_level(LogLevel::kWarning);
    model.quiet = true;
    check(max_concurrency >= 0 && num_warmups >= 0,
          "--max-concurrency and --num-warmups must not be negative");
    check(burstiness > 0, "--burstiness must be positive, got {}", burstiness);
    check_report_options();
    std::string name = served_model_name;
    int64_t max_len = int64_t{1} << 40;
    if (name.empty()) {
      const Json server_model = first_model();
      name = json_get<std::string>(server_model, "id", "");
      max_len = json_get<int64_t>(server_model, "max_model_len", max_len);
    }
    const auto tokenizer = model.load_tokenizer_for(model.resolve_path());
    data.seed = static_cast<uint64_t>(model.seed);
    const auto requests =
        make_bench_requests(data, tokenizer.get(), tokenizer->vocab_size(), max_len);
    HttpClient client;
    for (int64_t i = 0; i < num_warmups; ++i) {
      const Outcome warm = send(client, requests[0], name);
      check(warm.ok, "the server does not answer: {}", warm.error);
    }
    double duration = 0;
    const std::vector<Outcome> outcomes = run(requests, name, &duration);
    report(outcomes, duration);
    return std::ranges::any_of(outcomes, [](const Outcome& o) { return o.ok; }) ? 0 : 1;
  }
};

}  // namespace

Command bench_serve_command() { return make_command<BenchServeOptions>(); }

}  // namespace reft
