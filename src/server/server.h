// The HTTP server: OpenAI's API with vLLM's extras, the web UI and Prometheus metrics over one
// Engine or SpeechEngine.
//
// Threads: `run` blocks its caller until the server stopped. Two I/O threads own the sockets (each
// connection on a strand), two more render templates, tokenise and parse. Engine callbacks only
// queue an update and wake the connection. `stop` and `port` may be called from any thread.
//
// Every refusal is a 4xx with OpenAI's error object naming the `param`; a bad request never ends
// the process. A client that closes its side (a half-closed socket too) has left: what it asked for
// is aborted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "speech/speech_engine.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace reft {

// Names as vLLM's flags where it has one.
struct ServerOptions {
  // Where to listen. Port 0 takes a free one (see Server::port). `uds` is a Unix socket's path and
  // replaces both.
  std::string host = "0.0.0.0";
  int port = 8888;
  std::string uds;
  std::string
      root_path;  // prefix that a reverse proxy leaves in front ("/llm"); paths without it work too
  int io_threads = 2;
  int worker_threads = 2;

  // Who may ask. With keys, everything but /health, /ping, /version and the UI's files needs
  // `Authorization: Bearer KEY` (or `x-api-key: KEY`).
  std::vector<std::string> api_keys;
  std::vector<std::string> allowed_origins = {"*"};
  std::vector<std::string> allowed_methods = {"*"};
  std::vector<std::string> allowed_headers = {"*"};
  bool allow_credentials = false;

  // Limits.
  int64_t max_body_bytes = int64_t{64} << 20;
  int64_t max_header_bytes = 64 << 10;
  int64_t max_headers = 256;
  int64_t max_connections = 0;          // 0: what the descriptor limit allows
  double keep_alive_seconds = 900;      // an idle connection
  double request_timeout_seconds = 30;  // from a request's first byte to the end of its head; then
                                        // without any progress of its body
  double ping_seconds = 15;             // an SSE comment when a stream was silent for that long
  int64_t max_stream_buffer_bytes =
      4 << 20;  // unsent bytes of a slow reader, beyond which it is aborted
  double shutdown_timeout_seconds =
      30;                     // how long running requests may go on after SIGTERM or stop()
  int64_t max_n = 1024;       // outputs of one request (n, best_of)
  int64_t max_logprobs = 20;  // alternatives per token; −1: the vocabulary
  bool handle_signals =
      true;  // SIGTERM, SIGINT, SIGHUP (unless ignored): drain and stop; a second one: now

  // The model's names; the first is the one in responses. Empty: "default".
  std::vector<std::string> served_model_names;
  std::string model_path;  // `root` of /v1/models
  std::string owned_by = "reft";
  bool allow_runtime_lora_updating = false;  // /v1/load_lora_adapter and unload

  // Chat. Null: the tokenizer's own template; chat is refused with a clear 400 when it has none
  // either.
  std::shared_ptr<const ChatTemplate> chat_template;
  std::string chat_template_content_format = "auto";  // auto | string | openai
  std::string default_chat_template_kwargs;           // a JSON object; a request's own keys win
  bool trust_request_chat_template = false;
  std::string response_role = "assistant";

  // Defaults of sampling: "auto" takes temperature, top_p, top_k, min_p, repetition_penalty and
  // max_new_tokens from the model's generation_config.json, "vllm" takes none.
  // `override_generation_config` is a JSON object laid over them.
  std::string generation_config = "auto";
  std::string override_generation_config;

  bool return_tokens_as_token_ids = false;
  bool enable_request_id_headers = true;  // x-request-id: echoed, or made up
  bool log_requests = false;              // a line per request with its parameters (never its text)
  bool log_access = false;                // a line per HTTP request
};

class Server {
 public:
  // `engine` must outlive the server; `tokenizer` may be null: then only token ids go in and out.
  // Binds and listens (the caller logs the address). Throws Error naming the address or the option
  // at fault.
  Server(Engine& engine, std::shared_ptr<const Tokenizer> tokenizer, ServerOptions options);
  // The same for a speech model, with the routes /v1/audio/….
  Server(SpeechEngine& engine, std::shared_ptr<const Tokenizer> tokenizer, ServerOptions options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Serves until stop() or a signal, and returns after the running requests ended or were aborted.
  void run();
  // Begins the shutdown: no new connections, running requests get shutdown_timeout_seconds. Then,
  // or at a second call, they are aborted with a 503 or an error event.
  void stop();
  // The port that is listened on; 0 with a Unix socket.
  int port() const;
  // Connections that wait for a request.
  size_t num_idle_connections() const;
  // "http://127.0.0.1:8888" or "unix:/path", for people.
  std::string address() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace reft
