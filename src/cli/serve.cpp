// reft serve: the OpenAI-compatible server.
#include <chrono>
#include <csignal>
#include <cstdlib>

#include "base/log.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "server/server.h"

namespace reft {
namespace {

struct ServeOptions {
  static constexpr const char* kName = "serve";
  static constexpr const char* kSummary =
      "serve a model with an OpenAI-compatible HTTP API and a web UI";
  static constexpr const char* kDescription =
      "Loads a model and answers /v1/chat/completions, /v1/completions, /v1/models, /tokenize, "
      "/detokenize, "
      "/apply_template, /health, /metrics and more. The chat page is at /ui.html.";

  ModelFlags model;
  ServerOptions server;
  std::vector<std::string> lora;
  bool enable_lora = false;
  int64_t port = 8888;
  int64_t max_body_mb = 64;
  std::string log_level = "info";

  ServeOptions() { model.engine.max_lora_rank = 0; }

  void declare(ArgParser& parser) {
    model.declare_model(parser, true);
    model.declare_engine(parser);
    model.declare_seed(parser);
    parser.group("Adapters");
    parser.add("lora", &lora,
               "name=folder of a LoRA adapter, repeatable: requests name it as their model. Also "
               "{\"name\": ..., \"path\": ...}.",
               {"lora_modules"});
    parser.add("enable_lora", &enable_lora, "Keep room for adapters that come later.");
    parser.add("max_loras", &model.engine.max_loras,
               "Adapters that can be loaded at a time; 0: as many as --lora names.");
    parser.add("max_lora_rank", &model.engine.max_lora_rank,
               "Highest rank of an adapter; 0: 16, or the highest that --lora names.");
    parser.add("allow_runtime_lora_updating", &server.allow_runtime_lora_updating,
               "Allow /v1/load_lora_adapter and /v1/unload_lora_adapter, which read folders of "
               "this machine; VLLM_ALLOW_RUNTIME_LORA_UPDATING is read too.");
    parser.group("Server");
    parser.add("host", &server.host, "Address to listen on.");
    parser.add("port", &port, "Port to listen on; 0 takes a free one.", {"p"});
    parser.add("uds", &server.uds, "Unix socket to listen on instead.");
    parser.add("served_model_name", &server.served_model_names,
               "Names that requests may use for the model; the first is the one in responses.");
    parser.add(
        "api_key", &server.api_keys,
        "Keys, one of which every request must carry as a bearer token; VLLM_API_KEY is read too.");
    parser.add("allowed_origins", &server.allowed_origins, "CORS origins.");
    parser.add("allowed_methods", &server.allowed_methods, "CORS methods.");
    parser.add("allowed_headers", &server.allowed_headers, "CORS headers.");
    parser.add("allow_credentials", &server.allow_credentials, "CORS credentials.");
    parser.add("root_path", &server.root_path, "Path prefix of a reverse proxy.");
    parser.add("chat_template_content_format", &server.chat_template_content_format,
               "How message content reaches the template.");
    parser.choices("chat_template_content_format", {"auto", "string", "openai"});
    parser.add("default_chat_template_kwargs", &server.default_chat_template_kwargs,
               "JSON object of template variables that requests may override, e.g. "
               "'{\"enable_thinking\": false}'.");
    parser.add("trust_request_chat_template", &server.trust_request_chat_template,
               "Allow chat_template in requests.");
    parser.add("response_role", &server.response_role, "Role of the answers.");
    parser.add("generation_config", &server.generation_config,
               "Where sampling defaults come from: auto (generation_config.json) or vllm (none).");
    parser.choices("generation_config", {"auto", "vllm"});
    parser.add("override_generation_config", &server.override_generation_config,
               "JSON object of sampling defaults, laid over the model's.");
    parser.add("enable_request_id_headers", &server.enable_request_id_headers,
               "Send x-request-id.");
    parser.add("return_tokens_as_token_ids", &server.return_tokens_as_token_ids,
               "Write tokens in logprobs as token_id:N.");
    parser.add("max_logprobs", &server.max_logprobs, "Most alternatives a request may ask for.");
    parser.add("keep_alive", &server.keep_alive_seconds, "Seconds that an idle connection is kept.",
               {"timeout_keep_alive"});
    parser.add("shutdown_timeout", &server.shutdown_timeout_seconds,
               "Seconds that running requests get after SIGTERM.");
    parser.add("max_body_mb", &max_body_mb, "Largest request body in MiB.");
    parser.group("Logging");
    parser.add("log_level", &log_level, "Least important lines that are printed.",
               {"uvicorn_log_level"});
    parser.choices("log_level", {"debug", "info", "warning", "error"});
    parser.add("enable_log_requests", &server.log_requests,
               "Log a line per request, without its text.");
    parser.add("access_log", &server.log_access, "Log a line per HTTP request.");
    parser.ignored("disable_log_requests", "requests are not logged unless --enable-log-requests",
                   false);
    parser.ignored("disable_uvicorn_access_log", "requests are not logged unless --access-log",
                   false);
    parser.ignored("disable_log_stats", "throughput is only logged while there is any", false);
    parser.ignored("max_log_len", "prompts are never logged");
    parser.ignored("disable_frontend_multiprocessing", "there is one process", false);
    parser.example("reft serve",
                   "The default model on port 8888; open http://127.0.0.1:8888/ui.html");
    parser.example(
        "reft serve --model Qwen/Qwen3-0.6B --served_model_name Qwen3-0.6B --chat_template qwen3",
        "A model of the hub under its own name:");
    parser.example("reft serve --model model.Q4_K_M.gguf --max-model-len 8k --api-key secret",
                   "A GGUF file with a shorter context, behind a key:");
  }

  int execute(const ArgParser& parser) {
    const auto start = std::chrono::steady_clock::now();
    // Whoever reads the output may leave ("reft serve 2>&1 | head"): no reason to stop serving.
    std::signal(SIGPIPE, SIG_IGN);
    set_log_level(parse_log_level(log_level));
    for (const std::string& flag : parser.ignored_flags()) log_warning("Serve", "Ignored {}", flag);
    check(port >= 0 && port <= 65535, "--port must be between 0 and 65535, got {}", port);
    check(max_body_mb > 0, "--max-body-mb must be positive, got {}", max_body_mb);
    log_info("Serve", "Reft: v{}", REFT_VERSION);
    server.port = static_cast<int>(port);
    server.max_body_bytes = max_body_mb << 20;
    if (const char* key = std::getenv("VLLM_API_KEY"); key != nullptr && server.api_keys.empty()) {
      server.api_keys.emplace_back(key);
    }
    const std::string path = model.resolve_path();
    if (is_speech_model(path)) {
      ServingSpeechModel serving = model.load_speech();
      name_model(serving.path);
      SpeechEngine engine(
          std::move(serving.loaded), serving.tokenizer,
          {.max_num_seqs = parser.was_set("max_num_seqs") ? model.engine.max_num_seqs : 0,
           .max_queued_requests = model.engine.max_queued_requests});
      listen_and_serve(engine, serving.tokenizer, start);
      return 0;
    }
    ServingModel serving = model.load();
    name_model(serving.path);
    server.chat_template = serving.chat_template;
    model.engine.seed = static_cast<uint64_t>(model.seed);
    std::vector<AdapterFlag> adapters;
    for (const std::string& text : lora) adapters.push_back(parse_adapter(text));
    const char* updating = std::getenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING");
    if (updating != nullptr &&
        (std::string_view(updating) == "1" || std::string_view(updating) == "True" ||
         std::string_view(updating) == "true")) {
      server.allow_runtime_lora_updating = true;
    }
    if (!adapters.empty() || enable_lora || model.engine.max_loras > 0 ||
        server.allow_runtime_lora_updating) {
      make_room_for_adapters(adapters, &model.engine);
    }
    Engine engine(std::move(serving.loaded), serving.tokenizer, model.engine);
    for (const AdapterFlag& flag : adapters) engine.load_adapter(flag.name, flag.path);
    listen_and_serve(engine, serving.tokenizer, start);
    return 0;
  }

  void name_model(const std::string& path) {
    if (server.served_model_names.empty()) {
      server.served_model_names.push_back(model.model.empty() ||
                                                  model.model.find(".gguf") != std::string::npos
                                              ? short_model_name(path)
                                              : model.model);
    }
    server.model_path = model.model.empty() ? path : model.model;
  }

  template <class AnyEngine>
  void listen_and_serve(AnyEngine& engine, const std::shared_ptr<const Tokenizer>& tokenizer,
                        std::chrono::steady_clock::time_point start) {
    log_info("Serve", "Init engine (load model, create KV cache) took {:.2f} seconds",
             std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    log_info("Serve", "Starting API server ...");
    Server http(engine, tokenizer, server);
    log_info("Serve", "HTTP server listening on {} ...",
             server.uds.empty() ? fmt::format("{}:{}", server.host, http.port()) : server.uds);
    if (server.uds.empty()) log_info("Serve", "Web UI: http://127.0.0.1:{}/ui.html", http.port());
    http.run();
  }
};

}  // namespace

Command serve_command() { return make_command<ServeOptions>(); }

}  // namespace reft
