// One client connection: reads requests, hands them to the App, writes the answers. HTTP/1.1 with
// keep-alive and pipelining, event streams as chunks, and a deadline in every state.
//
// All of a Connection runs on its strand; the pool and the public functions of Connection may be
// called from any thread. Sockets are TCP or Unix.
#pragma once

#include <boost/asio/generic/stream_protocol.hpp>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "server/http.h"
#include "server/server.h"

namespace reft {

// What the connections serve.
class HttpApp {
 public:
  virtual ~HttpApp() = default;
  // The head of a request was read: finds the route and fills in answer_headers. An answer here
  // refuses the request before its body is read.
  virtual std::optional<HttpResponse> on_head(HttpRequest& request) = 0;
  // On the connection's strand; must not block. The exchange must be answered at some time.
  virtual void on_request(std::shared_ptr<Exchange> exchange) = 0;
  // An answer was sent, or its client left (status 499).
  virtual void on_answered(const HttpRequest& request, int status, double seconds) = 0;
};

using StreamSocket = boost::asio::generic::stream_protocol::socket;

class Connection;

// All open connections, so that they can be counted, drained and, when descriptors run out,
// evicted.
class ConnectionPool {
 public:
  ConnectionPool(HttpApp& app, const ServerOptions& options, size_t max_connections);

  // Starts serving `socket`. Over the limit the connection that is idle for the longest time is
  // closed; without an idle one the new connection gets a 503.
  void serve(StreamSocket socket);
  // Closes the longest idle connection; false when none is idle.
  bool evict_idle();
  // Idle connections close, busy ones close after their answer, new requests get 503.
  void drain();
  bool draining() const;
  // Closes everything: unfinished answers become a 503 or the error event of their stream, and
  // their exchanges are told that the client left.
  void abort();
  size_t size() const;
  size_t num_idle() const;

 private:
  friend class Connection;
  void set_idle(Connection* connection, bool idle);
  void remove(Connection* connection);
  std::vector<std::shared_ptr<Connection>> all() const;

  struct Entry {
    std::weak_ptr<Connection> connection;
    std::optional<std::list<Connection*>::iterator> idle;
  };
  HttpApp& app_;
  const ServerOptions& options_;
  const size_t max_connections_;
  mutable std::mutex mutex_;
  bool draining_ = false;
  std::unordered_map<Connection*, Entry> entries_;
  std::list<Connection*> idle_;  // longest idle first
};

}  // namespace reft
