// The compiled halves of Boost.Asio and Beast, once for the client here and the server.
#include <boost/asio/impl/src.hpp>
#include <boost/beast/src.hpp>
