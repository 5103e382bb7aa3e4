#include "server/server.h"

#include <openssl/sha.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <csignal>
#include <ctime>
#include <thread>

#include "base/log.h"
#include "server/app.h"

namespace reft {

namespace asio = boost::asio;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using Acceptor = asio::basic_socket_acceptor<asio::generic::stream_protocol>;

namespace {

constexpr int kBacklog = 4096;
constexpr rlim_t kReservedDescriptors = 64;  // for files, libraries, the accept queue
constexpr std::chrono::milliseconds kDrainPoll{20};
constexpr std::chrono::milliseconds kAcceptRetry{100};

// Raises the soft limit of descriptors to the hard one and returns how many connections fit.
size_t connection_limit(int64_t wanted) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0)
    return wanted > 0 ? static_cast<size_t>(wanted) : 1000;
  if (limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) ::getrlimit(RLIMIT_NOFILE, &limit);
  }
  const rlim_t room = limit.rlim_cur > 2 * kReservedDescriptors
                          ? limit.rlim_cur - kReservedDescriptors
                          : std::max<rlim_t>(limit.rlim_cur / 2, 1);
  const size_t fits = static_cast<size_t>(std::min<rlim_t>(room, 1'000'000));
  return wanted > 0 ? std::min(fits, static_cast<size_t>(wanted)) : fits;
}

std::string fingerprint(const std::string& text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  std::string out = "fp_";
  for (int i = 0; i < 5; ++i) out += fmt::format("{:02x}", digest[i]);
  return out;
}

Json parse_option(const std::string& text, const char* flag) {
  if (text.empty()) return Json::object();
  Json value = parse_json(text, flag);
  check(value.is_object(), "{} must be a JSON object", flag);
  return value;
}

// What the context needs to know of a model.
struct ServedModel {
  int64_t vocab_size, max_model_len;
  const Json& generation_config;
  std::string identity;          // for the fingerprint
  const Engine* text = nullptr;  // which has the adapters
};

ServedModel describe(const Engine& engine) {
  const LoadedModel& model = engine.model();
  return {engine.vocab_size(), engine.max_model_len(), model.generation_config,
          fmt::format("{} {} {}", model.num_parameters, model.weight_bytes,
                      engine.options().kv_cache_dtype),
          &engine};
}

ServedModel describe(const SpeechEngine& engine) {
  static const Json none = Json::object();
  const LoadedSpeechModel& model = engine.model();
  return {model.model->info().vocab_size, model.model->info().max_target_positions, none,
          fmt::format("{} {} speech", model.num_parameters, model.weight_bytes)};
}

RequestContext make_request_context(const ServedModel& model,
                                    std::shared_ptr<const Tokenizer> tokenizer,
                                    const ServerOptions& options) {
  RequestContext out;
  out.vocab_size = model.vocab_size;
  out.max_model_len = model.max_model_len;
  out.max_n = options.max_n;
  out.max_logprobs = options.max_logprobs;
  out.model_names = options.served_model_names;
  if (out.model_names.empty()) out.model_names.push_back("default");
  if (model.text != nullptr) {
    out.is_adapter = [text = model.text](const std::string& name) {
      return text->find_adapter(name) != nullptr;
    };
    for (const ServedAdapterPtr& adapter : model.text->adapters())
      check_adapter_name(adapter->name, out);
  }
  out.chat_template = options.chat_template;
  if (out.chat_template == nullptr && tokenizer != nullptr && !tokenizer->chat_template().empty()) {
    out.chat_template = std::make_shared<const ChatTemplate>(tokenizer->chat_template());
  }
  out.tokenizer = std::move(tokenizer);
  check(options.chat_template_content_format == "auto" ||
            options.chat_template_content_format == "string" ||
            options.chat_template_content_format == "openai",
        "--chat_template_content_format must be auto, string or openai, got '{}'",
        options.chat_template_content_format);
  out.chat_template_content_format = options.chat_template_content_format;
  out.default_chat_template_kwargs =
      parse_option(options.default_chat_template_kwargs, "--default_chat_template_kwargs");
  out.trust_request_chat_template = options.trust_request_chat_template;
  out.return_tokens_as_token_ids = options.return_tokens_as_token_ids;
  out.response_role = options.response_role;
  Json generation_config = Json::object();
  if (options.generation_config == "auto") {
    if (model.generation_config.is_object()) generation_config = model.generation_config;
  } else {
    check(options.generation_config == "vllm", "--generation_config must be auto or vllm, got '{}'",
          options.generation_config);
  }
  generation_config.update(
      parse_option(options.override_generation_config, "--override_generation_config"));
  out.defaults = read_sampling_defaults(generation_config);
  return out;
}

}  // namespace

struct Server::State {
  State(Engine* text, SpeechEngine* speech, const ServedModel& model,
        std::shared_ptr<const Tokenizer> tokenizer, ServerOptions options)
      : context{.text = text, .speech = speech, .options = std::move(options)},
        app(context, workers),
        pool(app, context.options, connection_limit(context.options.max_connections)),
        workers(static_cast<size_t>(std::max(1, context.options.worker_threads))),
        acceptor(asio::make_strand(io)),
        signals(io),
        drain_timer(acceptor.get_executor()),
        accept_timer(acceptor.get_executor()) {
    context.created = std::time(nullptr);
    context.request = make_request_context(model, std::move(tokenizer), context.options);
    context.system_fingerprint = fingerprint(
        fmt::format("{} {} {}", REFT_VERSION, context.request.model_names.front(), model.identity));
  }

  // In this order, because handlers that io or the workers still hold end in the pool and the
  // context.
  ServeContext context;
  App app;
  ConnectionPool pool;
  asio::io_context io;
  asio::thread_pool workers;
  Acceptor acceptor;
  asio::signal_set signals;
  asio::steady_timer drain_timer, accept_timer;
  int port = 0;
  std::string address;
  std::atomic<int> stop_calls = 0;
  Clock::time_point drain_deadline;

  void listen();
  void listen_unix(const std::string& path);
  void accept();
  void wait_signal();
  void on_stop();
  void poll_drain();
  void finish();
};

void Server::State::listen_unix(const std::string& path) {
  const asio::local::stream_protocol::endpoint endpoint(path);
  // A socket file that a killed server left behind; never anything else.
  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode)) {
    asio::io_context probe_io;
    asio::local::stream_protocol::socket probe(probe_io);
    error_code ec;
    probe.connect(endpoint, ec);
    check(bool(ec), "--uds {}: another server listens there", path);
    ::unlink(path.c_str());
  }
  acceptor.open(asio::generic::stream_protocol(AF_UNIX, 0));
  error_code ec;
  acceptor.bind(endpoint, ec);
  check(!ec, "--uds {}: cannot bind: {}", path, ec.message());
  acceptor.listen(kBacklog, ec);
  check(!ec, "--uds {}: cannot listen: {}", path, ec.message());
  address = "unix:" + path;
}

void Server::State::listen() {
  const ServerOptions& options = context.options;
  if (!options.uds.empty()) return listen_unix(options.uds);
  check(options.port >= 0 && options.port <= 65535, "--port must be between 0 and 65535, got {}",
        options.port);
  error_code ec;
  asio::ip::tcp::resolver resolver(io);
  const auto results = resolver.resolve(options.host, std::to_string(options.port),
                                        asio::ip::tcp::resolver::passive, ec);
  check(!ec && !results.empty(), "--host {}: cannot resolve: {}", options.host, ec.message());
  const asio::ip::tcp::endpoint endpoint = results.begin()->endpoint();
  acceptor.open(asio::generic::stream_protocol(endpoint.protocol()), ec);
  check(!ec, "--host {}: cannot open a socket: {}", options.host, ec.message());
  acceptor.set_option(asio::socket_base::reuse_address(true));
  acceptor.bind(endpoint, ec);
  check(!ec, "--host {} --port {}: cannot bind: {}", options.host, options.port, ec.message());
  acceptor.listen(kBacklog, ec);
  check(!ec, "--host {} --port {}: cannot listen: {}", options.host, options.port, ec.message());
  asio::ip::tcp::endpoint bound;
  const auto local = acceptor.local_endpoint();
  std::memcpy(bound.data(), local.data(), std::min(local.size(), bound.capacity()));
  port = bound.port();
  std::string shown = options.host;
  if (endpoint.address().is_unspecified()) shown = "127.0.0.1";
  if (shown.find(':') != std::string::npos) shown = "[" + shown + "]";
  address = fmt::format("http://{}:{}", shown, port);
}

void Server::State::accept() {
  acceptor.async_accept(asio::make_strand(io), [this](error_code ec, StreamSocket socket) {
    if (ec == asio::error::operation_aborted || !acceptor.is_open()) return;
    if (!ec) {
      pool.serve(std::move(socket));
      return accept();
    }
    // Out of descriptors or memory: make room and try again; the clients wait in the backlog.
    pool.evict_idle();
    accept_timer.expires_after(kAcceptRetry);
    accept_timer.async_wait([this](error_code error) {
      if (!error && acceptor.is_open()) accept();
    });
  });
}

void Server::State::wait_signal() {
  signals.async_wait([this](error_code ec, int number) {
    if (ec) return;
    log_info("Serve", "SIG{} received: shutting down{}", ::sigabbrev_np(number),
             stop_calls > 0 ? " now" : "");
    ++stop_calls;
    asio::post(acceptor.get_executor(), [this] { on_stop(); });
    wait_signal();
  });
}

// On the acceptor's strand.
void Server::State::on_stop() {
  const double grace = stop_calls > 1 ? 0 : context.options.shutdown_timeout_seconds;
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(grace));
  if (acceptor.is_open()) {
    error_code ec;
    acceptor.close(ec);
    accept_timer.cancel();
    drain_deadline = deadline;
    pool.drain();
    poll_drain();
  } else {
    drain_deadline = std::min(drain_deadline, deadline);
  }
}

void Server::State::poll_drain() {
  if (pool.size() == 0 && context.generations.count() == 0) return finish();
  if (Clock::now() >= drain_deadline) {
    if (!context.aborting.exchange(true)) {
      log_info("Serve", "aborting {} generations on {} connections", context.generations.count(),
               pool.size());
      drain_deadline = Clock::now() + std::chrono::seconds(3);
      pool.abort();
    } else {
      return finish();
    }
  }
  drain_timer.expires_after(kDrainPoll);
  drain_timer.async_wait([this](error_code ec) {
    if (!ec) poll_drain();
  });
}

void Server::State::finish() {
  signals.cancel();
  io.stop();
}

Server::Server(Engine& engine, std::shared_ptr<const Tokenizer> tokenizer, ServerOptions options)
    : state_(std::make_unique<State>(&engine, nullptr, describe(engine), std::move(tokenizer),
                                     std::move(options))) {
  state_->listen();
}

Server::Server(SpeechEngine& engine, std::shared_ptr<const Tokenizer> tokenizer,
               ServerOptions options)
    : state_(std::make_unique<State>(nullptr, &engine, describe(engine), std::move(tokenizer),
                                     std::move(options))) {
  state_->listen();
}

Server::~Server() {
  if (state_ != nullptr && !state_->context.options.uds.empty() && !state_->address.empty()) {
    ::unlink(state_->context.options.uds.c_str());
  }
}

void Server::run() {
  State& state = *state_;
  std::signal(SIGPIPE, SIG_IGN);
  if (state.context.options.handle_signals) {
    state.signals.add(SIGINT);
    state.signals.add(SIGTERM);
    // nohup has it ignored: then the terminal may close.
    if (std::signal(SIGHUP, SIG_IGN) != SIG_IGN) state.signals.add(SIGHUP);
    state.wait_signal();
  }
  state.accept();
  if (state.stop_calls > 0) asio::post(state.acceptor.get_executor(), [&] { state.on_stop(); });
  const auto serve = [&state] {
    for (;;) {
      try {
        state.io.run();
        return;
      } catch (const std::exception& e) {
        log_error("Serve", "a connection failed: {}", e.what());
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < state.context.options.io_threads; ++i) threads.emplace_back(serve);
  serve();
  for (std::thread& thread : threads) thread.join();
  state.workers.stop();
  state.workers.join();
  if (!state.context.generations.wait_for_none(10'000)) {
    log_error("Serve", "{} generations did not end", state.context.generations.count());
  }
  log_info("Serve", "HTTP server stopped");
}

void Server::stop() {
  ++state_->stop_calls;
  asio::post(state_->acceptor.get_executor(), [state = state_.get()] { state->on_stop(); });
}

int Server::port() const { return state_->port; }
size_t Server::num_idle_connections() const { return state_->pool.num_idle(); }
std::string Server::address() const { return state_->address; }

}  // namespace reft
