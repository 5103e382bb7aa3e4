#include "server/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <ctime>

#include "base/log.h"

namespace reft {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

namespace {

constexpr size_t kPipelineBytes = 64 << 10;  // read ahead while an answer is being made
constexpr size_t kDiscardableBody =
    1 << 20;  // a refused request's body that is worth reading for keep-alive
constexpr double kSlowestBytesPerSecond = 16 << 10;  // a body may take so long
constexpr std::chrono::milliseconds kLingerTime{3000};
constexpr std::chrono::milliseconds kLingerTimeDraining{300};
constexpr std::chrono::seconds kWriteStallTime{120};

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

std::string http_date() {
  char text[40];
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return text;
}

}  // namespace

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(StreamSocket socket, HttpApp& app, ConnectionPool& pool, const ServerOptions& options)
      : socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        app_(app),
        pool_(pool),
        options_(options) {}
  ~Connection() { pool_.remove(this); }

  void start();
  void refuse_overload();
  // Any thread.
  void close_if_idle();
  void drain();
  void abort();

 private:
  friend class ConnectionExchange;
  enum class State { kIdle, kReading, kAnswering, kLingering, kClosed };

  void watch();
  void on_readable(error_code ec);
  void enter_idle();
  bool request_begins();
  void read_head();
  void on_head(error_code ec);
  void on_head_complete();
  void read_body();
  void on_body(error_code ec, size_t bytes);
  void dispatch();
  void on_read_error(error_code ec);
  HttpRequest take_head();

  void send(const HttpResponse& response);
  void begin_stream();
  void write_events(std::string_view events);
  void end_stream();
  void flush();
  void write_some();
  void on_written(error_code ec, size_t bytes);
  void finish_answer();
  void linger();
  void on_client_gone();
  void close();

  void set_deadline(Clock::time_point when);
  void arm_timer();
  void on_timer();
  void time_out_request();
  void update_answer_deadline();
  std::string response_head(int status, std::string_view content_type, const std::string& extra,
                            std::optional<size_t> length) const;

  StreamSocket socket_;
  asio::steady_timer timer_;
  HttpApp& app_;
  ConnectionPool& pool_;
  const ServerOptions& options_;
  State state_ = State::kIdle;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  HttpRequest request_;
  std::optional<HttpResponse> refusal_;
  std::weak_ptr<class ConnectionExchange> exchange_;  // owned by whoever works on the answer
  Clock::time_point request_start_;
  size_t request_bytes_ = 0;
  bool keep_alive_ = true;
  bool http_1_0_ = false;
  bool head_request_ = false;
  bool watching_ = false;
  int status_ = 0;

  // Writing.
  std::string out_;  // not yet handed to the socket
  std::string in_flight_;
  size_t in_flight_offset_ = 0;
  std::string_view static_tail_;  // a static body after in_flight_
  bool writing_ = false;
  bool streaming_ = false;  // the head of a stream was sent
  bool stream_expected_ = false;
  bool answer_complete_ = false;  // all of it is in out_ or sent
  Clock::time_point write_progress_;
  Clock::time_point last_event_;

  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point timer_at_ = Clock::time_point::max();
};

class ConnectionExchange final : public Exchange,
                                 public std::enable_shared_from_this<ConnectionExchange> {
 public:
  ConnectionExchange(std::shared_ptr<Connection> connection, HttpRequest request)
      : connection_(std::move(connection)), request_(std::move(request)) {}
  ~ConnectionExchange() override {
    // A handler that dropped the exchange without an answer must not leave the client waiting.
    if (ended_ || gone_) return;
    asio::post(connection_->socket_.get_executor(), [connection = std::move(connection_)] {
      connection->send(error_response(500, "internal error", "", "internal_error"));
    });
  }

  const HttpRequest& request() const override { return request_; }

  void respond(HttpResponse response) override {
    asio::dispatch(connection_->socket_.get_executor(),
                   [self = shared_from_this(), response = std::move(response)] {
                     if (self->ended_ || self->gone_) return;
                     self->ended_ = true;
                     self->forget_disconnect();
                     self->connection_->send(response);
                   });
  }

  void post(std::function<void()> f) override {
    asio::post(connection_->socket_.get_executor(),
               [self = shared_from_this(), f = std::move(f)] { f(); });
  }

  void on_disconnect(std::function<void()> f) override {
    {
      const std::lock_guard lock(mutex_);
      if (ended_) return;
      if (!gone_) {
        disconnect_ = std::move(f);
        return;
      }
    }
    f();
  }

  bool disconnected() const override { return gone_; }

  void expect_stream() override {
    asio::dispatch(connection_->socket_.get_executor(), [self = shared_from_this()] {
      if (self->ended_ || self->gone_) return;
      self->connection_->stream_expected_ = true;
      self->connection_->last_event_ = Clock::now();
      self->connection_->update_answer_deadline();
    });
  }

  bool stream_started() const override { return connection_->streaming_; }

  void write(std::string_view events) override {
    if (ended_ || gone_) return;
    connection_->write_events(events);
  }

  void finish_stream() override {
    if (ended_ || gone_) return;
    ended_ = true;
    forget_disconnect();
    connection_->end_stream();
  }

  // The server gives up: the client gets `response`, as the last event of a stream when one was
  // begun, and the handler is told as if the client had left. On the strand.
  void give_up(const HttpResponse& response) {
    if (ended_) return connection_->on_client_gone();  // an answer that nobody fetches
    connection_->send(response);
    set_gone();
  }

  // The client left: on the strand.
  void set_gone() {
    std::function<void()> f;
    {
      const std::lock_guard lock(mutex_);
      gone_ = true;
      f = std::exchange(disconnect_, nullptr);
    }
    if (f) f();
  }

 private:
  void forget_disconnect() {
    std::function<void()> dropped;
    const std::lock_guard lock(mutex_);
    dropped = std::exchange(disconnect_, nullptr);
  }

  std::shared_ptr<Connection> connection_;
  HttpRequest request_;
  std::mutex mutex_;
  std::function<void()> disconnect_;
  std::atomic<bool> gone_ = false;
  std::atomic<bool> ended_ = false;
};

void Connection::start() {
  error_code ec;
  socket_.non_blocking(true, ec);
  int family = 0;
  socklen_t length = sizeof(family);
  if (::getsockopt(socket_.native_handle(), SOL_SOCKET, SO_DOMAIN, &family, &length) == 0 &&
      family != AF_UNIX) {
    const int on = 1;
    ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    ::setsockopt(socket_.native_handle(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  }
  asio::dispatch(socket_.get_executor(), [self = shared_from_this()] { self->enter_idle(); });
}

void Connection::refuse_overload() {
  asio::dispatch(socket_.get_executor(), [self = shared_from_this()] {
    self->keep_alive_ = false;
    self->state_ = State::kAnswering;
    self->send(error_response(503, "too many connections", "", "overloaded"));
  });
}

void Connection::close_if_idle() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    if (self->state_ == State::kIdle) self->close();
  });
}

void Connection::drain() { close_if_idle(); }

void Connection::abort() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    const auto exchange = self->exchange_.lock();
    if (exchange == nullptr || self->state_ != State::kAnswering) return self->on_client_gone();
    self->keep_alive_ = false;
    exchange->give_up(error_response(503, "the server is shutting down", "", "shutting_down"));
  });
}

// --- reading ---

void Connection::watch() {
  if (watching_) return;
  watching_ = true;
  socket_.async_wait(StreamSocket::wait_read, [self = shared_from_this()](error_code ec) {
    self->watching_ = false;
    self->on_readable(ec);
  });
}

void Connection::on_readable(error_code ec) {
  const bool idle = state_ == State::kIdle;
  if ((!idle && state_ != State::kAnswering) || ec == asio::error::operation_aborted) return;
  // The wait may end for bytes that were read long ago (epoll reports edges), so only a read tells.
  if (!ec) {
    buffer_.commit(socket_.read_some(buffer_.prepare(4096), ec));
    if (ec == asio::error::would_block || ec == asio::error::try_again) ec = {};
  }
  if (idle) {
    if (ec) return close();
    return request_begins() ? read_head() : watch();
  }
  // Bytes while an answer is made are the next request; the end of the stream means that the client
  // left.
  if (ec) return on_client_gone();
  if (buffer_.size() < kPipelineBytes) watch();
}

void Connection::enter_idle() {
  if (pool_.draining()) return close();
  state_ = State::kIdle;
  if (request_begins()) return read_head();
  buffer_.shrink_to_fit();
  pool_.set_idle(this, true);
  set_deadline(Clock::now() + seconds(options_.keep_alive_seconds));
  watch();
}

// Empty lines before a request are skipped: some clients end their bodies with one (RFC 9112
// section 2.2).
bool Connection::request_begins() {
  const auto is_line_end = [](char c) { return c == '\r' || c == '\n'; };
  const std::string_view text(static_cast<const char*>(buffer_.data().data()), buffer_.size());
  buffer_.consume(static_cast<size_t>(std::ranges::find_if_not(text, is_line_end) - text.begin()));
  return buffer_.size() > 0;
}

void Connection::read_head() {
  pool_.set_idle(this, false);
  state_ = State::kReading;
  request_start_ = Clock::now();
  request_bytes_ = 0;
  keep_alive_ = false;  // until the head says otherwise
  http_1_0_ = false;
  head_request_ = false;
  status_ = 0;
  request_ = {};
  refusal_.reset();
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(options_.max_header_bytes));
  parser_->body_limit(static_cast<uint64_t>(options_.max_body_bytes));
  set_deadline(request_start_ + seconds(options_.request_timeout_seconds));
  http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](error_code ec, size_t) { self->on_head(ec); });
}

HttpRequest Connection::take_head() {
  HttpRequest request;
  const auto& message = parser_->get();
  request.method = std::string(message.method_string());
  request.path = std::string(message.target());
  for (const auto& field : message) {
    request.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
  }
  return request;
}

void Connection::on_read_error(error_code ec) {
  if (state_ != State::kReading) return;
  const auto refuse = [&](int status, std::string_view message) {
    request_ = take_head();
    app_.on_head(request_);  // only for the headers of the answer
    keep_alive_ = false;
    state_ = State::kAnswering;
    send(error_response(status, message));
  };
  if (ec == http::error::header_limit) {
    return refuse(
        431, fmt::format("the request's head is larger than {} bytes", options_.max_header_bytes));
  }
  if (ec == http::error::body_limit) {
    return refuse(
        413, fmt::format("the request's body is larger than {} bytes", options_.max_body_bytes));
  }
  const bool parse_error = ec.category() == make_error_code(http::error::bad_method).category() &&
                           ec != http::error::end_of_stream && ec != http::error::partial_message;
  if (!parse_error) return close();
  // A TLS client hello: it would not understand an answer.
  const bool tls = buffer_.size() > 0 && *static_cast<const char*>(buffer_.data().data()) == 0x16;
  if (tls) return close();
  refuse(400, fmt::format("malformed HTTP request: {}", ec.message()));
}

void Connection::on_head(error_code ec) {
  if (state_ != State::kReading) return;
  if (ec) return on_read_error(ec);
  on_head_complete();
}

void Connection::on_head_complete() {
  const auto& message = parser_->get();
  request_ = take_head();
  keep_alive_ = message.keep_alive();
  http_1_0_ = message.version() < 11;
  head_request_ = message.method() == http::verb::head;
  refusal_ = app_.on_head(request_);
  if (request_.headers.size() > static_cast<size_t>(options_.max_headers)) {
    keep_alive_ = false;
    refusal_ = error_response(
        431, fmt::format("the request has more than {} header fields", options_.max_headers));
  } else if (pool_.draining()) {
    keep_alive_ = false;
    refusal_ = error_response(503, "the server is shutting down", "", "shutting_down");
  }
  if (refusal_) {
    const auto length = parser_->content_length();
    const bool worth_reading = parser_->is_done() || (length && *length <= kDiscardableBody &&
                                                      request_.header("expect").empty());
    if (!worth_reading || !keep_alive_) {
      keep_alive_ = keep_alive_ && parser_->is_done();
      state_ = State::kAnswering;
      return send(*refusal_);
    }
  } else if (!parser_->is_done() && !request_.header("expect").empty()) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    flush();
  }
  read_body();
}

void Connection::read_body() {
  if (parser_->is_done()) return dispatch();
  const double allowance = static_cast<double>(request_bytes_) / kSlowestBytesPerSecond;
  set_deadline(request_start_ + seconds(options_.request_timeout_seconds + allowance));
  http::async_read_some(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](error_code ec, size_t bytes) { self->on_body(ec, bytes); });
}

void Connection::on_body(error_code ec, size_t bytes) {
  if (state_ != State::kReading) return;
  request_bytes_ += bytes;
  if (ec) return on_read_error(ec);
  read_body();
}

void Connection::dispatch() {
  state_ = State::kAnswering;
  write_progress_ = Clock::now();
  set_deadline(Clock::time_point::max());
  if (refusal_) {
    parser_.reset();
    return send(*refusal_);
  }
  request_.body = std::move(parser_->get().body());
  parser_.reset();
  // The answer's head needs the headers again after the request moved into the exchange.
  HttpRequest head;
  head.method = request_.method;
  head.path = request_.path;
  head.route = request_.route;
  head.request_id = request_.request_id;
  head.answer_headers = request_.answer_headers;
  auto exchange = std::make_shared<ConnectionExchange>(shared_from_this(), std::move(request_));
  request_ = std::move(head);
  exchange_ = exchange;
  answer_complete_ = false;
  try {
    app_.on_request(exchange);
  } catch (...) {
    exchange->respond(response_of_current_exception());
  }
  if (state_ == State::kAnswering && !answer_complete_) watch();
}

// --- writing ---

std::string Connection::response_head(int status, std::string_view content_type,
                                      const std::string& extra,
                                      std::optional<size_t> length) const {
  std::string head = fmt::format("HTTP/1.1 {} {}\r\ndate: {}\r\nserver: reft/{}\r\n", status,
                                 http_status_text(status), http_date(), REFT_VERSION);
  if (!content_type.empty()) head += fmt::format("content-type: {}\r\n", content_type);
  head += request_.answer_headers;
  head += extra;
  if (length) {
    head += fmt::format("content-length: {}\r\n", *length);
  } else if (!http_1_0_) {
    head += "transfer-encoding: chunked\r\n";
  }
  if (!keep_alive_) {
    head += "connection: close\r\n";
  } else if (http_1_0_) {
    head += "connection: keep-alive\r\n";
  }
  head += "\r\n";
  return head;
}

void Connection::send(const HttpResponse& response) {
  if (state_ != State::kAnswering) return;
  if (streaming_) {  // too late for a status: the error becomes an event
    write_events("data: " + response.body + "\n\ndata: [DONE]\n\n");
    return end_stream();
  }
  status_ = response.status;
  if (pool_.draining()) keep_alive_ = false;
  const bool is_static = !response.static_body.empty();
  const size_t size = is_static ? response.static_body.size() : response.body.size();
  const bool bodiless = response.status == 204 || response.status == 304;
  out_ +=
      response_head(response.status, bodiless ? "" : response.content_type, response.extra_headers,
                    bodiless ? std::nullopt : std::optional<size_t>(size));
  if (bodiless && !http_1_0_) {  // such an answer has neither length nor chunks
    const std::string_view chunked = "transfer-encoding: chunked\r\n";
    out_.erase(out_.rfind(chunked), chunked.size());
  }
  if (!head_request_ && !bodiless) {
    if (is_static) {
      static_tail_ = response.static_body;
    } else {
      out_ += response.body;
    }
  }
  answer_complete_ = true;
  write_progress_ = Clock::now();
  flush();
  if (state_ == State::kAnswering) update_answer_deadline();
}

void Connection::begin_stream() {
  if (streaming_) return;
  streaming_ = true;
  status_ = 200;
  if (http_1_0_) keep_alive_ = false;
  out_ += response_head(200, "text/event-stream; charset=utf-8",
                        "cache-control: no-cache\r\nx-accel-buffering: no\r\n", std::nullopt);
}

void Connection::write_events(std::string_view events) {
  if (state_ != State::kAnswering || events.empty()) return;
  begin_stream();
  const size_t waiting = out_.size() + in_flight_.size() - in_flight_offset_;
  if (waiting > static_cast<size_t>(options_.max_stream_buffer_bytes)) {
    log_warning("Serve", "request {} is aborted: its client reads too slowly, {} bytes wait for it",
                request_.request_id, waiting);
    return on_client_gone();
  }
  if (http_1_0_) {
    out_ += events;
  } else {
    fmt::format_to(std::back_inserter(out_), "{:x}\r\n", events.size());
    out_ += events;
    out_ += "\r\n";
  }
  last_event_ = Clock::now();
  flush();
}

void Connection::end_stream() {
  if (state_ != State::kAnswering) return;
  begin_stream();
  if (!http_1_0_) out_ += "0\r\n\r\n";
  answer_complete_ = true;
  flush();
  if (state_ == State::kAnswering) update_answer_deadline();
}

void Connection::flush() {
  if (writing_ || out_.empty() || state_ == State::kClosed) return;
  in_flight_.clear();
  in_flight_.swap(out_);
  in_flight_offset_ = 0;
  write_progress_ = Clock::now();
  writing_ = true;
  write_some();
}

void Connection::write_some() {
  const std::array<asio::const_buffer, 2> buffers = {
      asio::buffer(in_flight_.data() + in_flight_offset_, in_flight_.size() - in_flight_offset_),
      asio::buffer(static_tail_.data(), static_tail_.size())};
  socket_.async_write_some(buffers, [self = shared_from_this()](error_code ec, size_t bytes) {
    self->on_written(ec, bytes);
  });
}

void Connection::on_written(error_code ec, size_t bytes) {
  if (state_ == State::kClosed) return;
  if (ec) {
    writing_ = false;
    return on_client_gone();
  }
  write_progress_ = Clock::now();
  const size_t from_string = std::min(bytes, in_flight_.size() - in_flight_offset_);
  in_flight_offset_ += from_string;
  static_tail_.remove_prefix(bytes - from_string);
  if (in_flight_offset_ < in_flight_.size() || !static_tail_.empty()) return write_some();
  writing_ = false;
  in_flight_.clear();
  in_flight_offset_ = 0;
  if (!out_.empty()) return flush();
  if (answer_complete_ && state_ == State::kAnswering) finish_answer();
}

void Connection::finish_answer() {
  app_.on_answered(request_, status_,
                   std::chrono::duration<double>(Clock::now() - request_start_).count());
  exchange_.reset();
  answer_complete_ = streaming_ = stream_expected_ = false;
  in_flight_.shrink_to_fit();
  out_.shrink_to_fit();
  if (!keep_alive_) return linger();
  enter_idle();
}

// Closing with unread input would reset the connection and may take the answer with it: half-close,
// then swallow what still comes for a short while.
void Connection::linger() {
  state_ = State::kLingering;
  buffer_.consume(buffer_.size());
  error_code ec;
  socket_.shutdown(StreamSocket::shutdown_send, ec);
  if (ec) return close();
  set_deadline(Clock::now() + (pool_.draining() ? kLingerTimeDraining : kLingerTime));
  struct Discard {
    std::shared_ptr<Connection> self;
    void operator()(error_code error, size_t n) {
      if (self->state_ != State::kLingering) return;
      if (error) return self->close();
      self->buffer_.commit(n);
      self->buffer_.consume(n);
      next();
    }
    void next() {
      auto space = self->buffer_.prepare(16 << 10);
      self->socket_.async_read_some(space, *this);
    }
  };
  Discard{shared_from_this()}.next();
}

void Connection::on_client_gone() {
  if (state_ == State::kClosed) return;
  const bool answering = state_ == State::kAnswering;
  const auto exchange = exchange_.lock();
  close();
  if (exchange) exchange->set_gone();
  if (answering) {
    app_.on_answered(request_, 499,
                     std::chrono::duration<double>(Clock::now() - request_start_).count());
  }
}

void Connection::close() {
  if (state_ == State::kClosed) return;
  pool_.set_idle(this, false);
  state_ = State::kClosed;
  exchange_.reset();
  error_code ec;
  timer_.cancel();
  socket_.close(ec);
}

// --- time ---

// The timer is only moved when the new deadline is earlier: a later one is noticed when it fires.
void Connection::set_deadline(Clock::time_point when) {
  deadline_ = when;
  if (when < timer_at_) arm_timer();
}

void Connection::arm_timer() {
  timer_at_ = deadline_;
  if (deadline_ == Clock::time_point::max()) return;
  timer_.expires_at(deadline_);
  timer_.async_wait([self = shared_from_this()](error_code ec) {
    if (ec || self->state_ == State::kClosed) return;
    self->timer_at_ = Clock::time_point::max();
    if (Clock::now() >= self->deadline_) {
      self->on_timer();
    } else {
      self->arm_timer();
    }
  });
}

void Connection::update_answer_deadline() {
  Clock::time_point when = Clock::time_point::max();
  if (writing_) when = write_progress_ + kWriteStallTime;
  if (stream_expected_ && !answer_complete_ && options_.ping_seconds > 0) {
    when = std::min(when, last_event_ + seconds(options_.ping_seconds));
  }
  set_deadline(when);
}

void Connection::on_timer() {
  switch (state_) {
    case State::kIdle:
    case State::kLingering:
      return close();
    case State::kReading:
      return time_out_request();
    case State::kAnswering:
      if (writing_ && Clock::now() >= write_progress_ + kWriteStallTime) return on_client_gone();
      if (stream_expected_ && !answer_complete_ && options_.ping_seconds > 0 &&
          Clock::now() >= last_event_ + seconds(options_.ping_seconds)) {
        write_events(": ping\n\n");
      }
      if (state_ == State::kAnswering) update_answer_deadline();
      return;
    case State::kClosed:
      return;
  }
}

// A read is still pending here, so the answer cannot go the usual way: one try, then the end.
void Connection::time_out_request() {
  const HttpResponse response = error_response(408, "the request did not arrive in time");
  keep_alive_ = false;
  request_.answer_headers.clear();
  const std::string answer =
      response_head(response.status, response.content_type, "", response.body.size()) +
      response.body;
  error_code ec;
  if (!writing_) socket_.send(asio::buffer(answer), 0, ec);
  close();
}

// --- pool ---

ConnectionPool::ConnectionPool(HttpApp& app, const ServerOptions& options, size_t max_connections)
    : app_(app), options_(options), max_connections_(max_connections) {}

void ConnectionPool::serve(StreamSocket socket) {
  auto connection = std::make_shared<Connection>(std::move(socket), app_, *this, options_);
  bool full = false;
  {
    const std::lock_guard lock(mutex_);
    full = entries_.size() >= max_connections_;
    entries_.emplace(connection.get(), Entry{connection, std::nullopt});
  }
  if (full && !evict_idle()) return connection->refuse_overload();
  connection->start();
}

bool ConnectionPool::evict_idle() {
  std::shared_ptr<Connection> victim;
  {
    const std::lock_guard lock(mutex_);
    while (!idle_.empty() && victim == nullptr) {
      Entry& entry = entries_.at(idle_.front());
      victim = entry.connection.lock();
      entry.idle.reset();
      idle_.pop_front();
    }
  }
  if (victim == nullptr) return false;
  victim->close_if_idle();
  return true;
}

void ConnectionPool::drain() {
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
  }
  for (const auto& connection : all()) connection->drain();
}

bool ConnectionPool::draining() const {
  const std::lock_guard lock(mutex_);
  return draining_;
}

void ConnectionPool::abort() {
  for (const auto& connection : all()) connection->abort();
}

size_t ConnectionPool::size() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

size_t ConnectionPool::num_idle() const {
  const std::lock_guard lock(mutex_);
  return idle_.size();
}

void ConnectionPool::set_idle(Connection* connection, bool idle) {
  const std::lock_guard lock(mutex_);
  const auto it = entries_.find(connection);
  if (it == entries_.end() || idle == it->second.idle.has_value()) return;
  if (idle) {
    it->second.idle = idle_.insert(idle_.end(), connection);
  } else {
    idle_.erase(*it->second.idle);
    it->second.idle.reset();
  }
}

void ConnectionPool::remove(Connection* connection) {
  const std::lock_guard lock(mutex_);
  const auto it = entries_.find(connection);
  if (it == entries_.end()) return;
  if (it->second.idle) idle_.erase(*it->second.idle);
  entries_.erase(it);
}

std::vector<std::shared_ptr<Connection>> ConnectionPool::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Connection>> out;
  for (const auto& [key, entry] : entries_) {
    if (auto connection = entry.connection.lock()) out.push_back(std::move(connection));
  }
  return out;
}

}  // namespace reft
