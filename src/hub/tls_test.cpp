// https against servers with certificates made here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdlib.h>  // NOLINT: setenv
#include <unistd.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/streambuf.hpp>
#include <boost/asio/write.hpp>
#include <filesystem>
#include <memory>
#include <thread>

#include "hub/http_client.h"

namespace reft {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using testing::HasSubstr;

struct Certificate {
  std::shared_ptr<EVP_PKEY> key;
  std::shared_ptr<X509> x509;
};

// Self-signed, or signed by `issuer`, valid for the given name ("IP:127.0.0.1", "DNS:localhost").
Certificate make_certificate(const char* subject_alternative_name,
                             const Certificate* issuer = nullptr) {
  Certificate made{{EVP_EC_gen("P-256"), &EVP_PKEY_free}, {X509_new(), &X509_free}};
  static long serial = 1;
  X509_set_version(made.x509.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(made.x509.get()), serial++);
  X509_gmtime_adj(X509_getm_notBefore(made.x509.get()), -60);
  X509_gmtime_adj(X509_getm_notAfter(made.x509.get()), 3600);
  X509_set_pubkey(made.x509.get(), made.key.get());
  X509_NAME* name = X509_get_subject_name(made.x509.get());
  const std::string common_name = "test " + std::to_string(serial);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1,
                             0);
  X509_set_issuer_name(made.x509.get(),
                       issuer != nullptr ? X509_get_subject_name(issuer->x509.get()) : name);
  const auto extend = [&](int id, const char* value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, id, value);
    X509_add_ext(made.x509.get(), extension, -1);
    X509_EXTENSION_free(extension);
  };
  extend(NID_basic_constraints, issuer != nullptr ? "CA:FALSE" : "critical,CA:TRUE");
  extend(NID_subject_alt_name, subject_alternative_name);
  X509_sign(made.x509.get(), issuer != nullptr ? issuer->key.get() : made.key.get(), EVP_sha256());
  return made;
}

// The authority that the client is told to trust. Before any test, as the TLS settings are made
// once.
const Certificate& authority() {
  static const Certificate made = [] {
    Certificate ca = make_certificate("DNS:authority");
    const fs::path path =
        fs::temp_directory_path() / ("reft_ca_" + std::to_string(::getpid()) + ".pem");
    FILE* file = std::fopen(path.c_str(), "w");
    PEM_write_X509(file, ca.x509.get());
    std::fclose(file);
    ::setenv("SSL_CERT_FILE", path.c_str(), 1);
    return ca;
  }();
  return made;
}
const Certificate& made_early = authority();

class TlsServer {
 public:
  explicit TlsServer(const Certificate& certificate)
      : acceptor_(io_, {asio::ip::make_address("127.0.0.1"), 0}) {
    SSL_CTX_use_certificate(context_.native_handle(), certificate.x509.get());
    SSL_CTX_use_PrivateKey(context_.native_handle(), certificate.key.get());
    thread_ = std::thread([this] { serve(); });
  }
  ~TlsServer() {
    stopping_ = true;
    boost::system::error_code ignored;
    asio::ip::tcp::socket(io_).connect(acceptor_.local_endpoint(), ignored);
    thread_.join();
  }
  std::string address(const std::string& host = "127.0.0.1") const {
    return fmt::format("https://{}:{}/", host, acceptor_.local_endpoint().port());
  }
  int num_requests() const { return num_requests_; }

 private:
  void serve() {
    while (!stopping_) {
      asio::ssl::stream<asio::ip::tcp::socket> stream(io_, context_);
      boost::system::error_code error;
      acceptor_.accept(stream.next_layer(), error);
      if (stopping_ || error) continue;
      stream.handshake(asio::ssl::stream_base::server, error);
      asio::streambuf buffer;
      for (int i = 0; i < 2 && !error; ++i) {  // two requests a connection
        buffer.consume(asio::read_until(stream, buffer, "\r\n\r\n", error));
        if (error) break;
        ++num_requests_;
        const std::string body(200'000, 's');
        asio::write(stream,
                    asio::buffer(fmt::format("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}",
                                             body.size(), body)),
                    error);
      }
    }
  }

  asio::io_context io_;
  asio::ssl::context context_{asio::ssl::context::tls_server};
  asio::ip::tcp::acceptor acceptor_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> num_requests_ = 0;
  std::thread thread_;
};

std::string error_of(HttpClient& client, const std::string& url, bool& retryable) {
  ClientRequest request;
  request.url = url;
  request.connect_timeout_s = 5;
  try {
    client.send(request);
  } catch (const HttpError& e) {
    retryable = e.retryable();
    return e.what();
  }
  return "";
}

TEST(Tls, TrustedServersAreRead) {
  const Certificate certificate = make_certificate("IP:127.0.0.1,DNS:localhost", &authority());
  TlsServer server(certificate);
  HttpClient client;
  ClientRequest request;
  for (int i = 0; i < 4; ++i) {
    request.url = server.address();
    EXPECT_EQ(client.send(request).body.size(), 200'000U);
  }
  EXPECT_EQ(server.num_requests(), 4);
}

TEST(Tls, OtherCertificatesAreRefused) {
  HttpClient client;
  bool retryable = true;
  const Certificate self_signed = make_certificate("IP:127.0.0.1");
  TlsServer unknown(self_signed);
  EXPECT_THAT(error_of(client, unknown.address(), retryable),
              HasSubstr("is not accepted: self-signed certificate"));
  EXPECT_FALSE(retryable);
  const Certificate other_name = make_certificate("IP:10.0.0.1,DNS:elsewhere.test", &authority());
  TlsServer wrong(other_name);
  EXPECT_THAT(error_of(client, wrong.address(), retryable), HasSubstr("IP address mismatch"));
  EXPECT_THAT(error_of(client, wrong.address("localhost"), retryable),
              HasSubstr("hostname mismatch"));
  EXPECT_EQ(unknown.num_requests() + wrong.num_requests(), 0);
}

TEST(Tls, APlainServerIsAnError) {
  asio::io_context io;
  asio::ip::tcp::acceptor acceptor(io, {asio::ip::make_address("127.0.0.1"), 0});
  std::thread thread([&] {
    asio::ip::tcp::socket socket = acceptor.accept();
    asio::write(socket, asio::buffer(std::string("HTTP/1.1 400 Bad Request\r\n\r\n")));
  });
  HttpClient client;
  bool retryable = false;
  EXPECT_THAT(
      error_of(client, fmt::format("https://127.0.0.1:{}/", acceptor.local_endpoint().port()),
               retryable),
      HasSubstr("TLS handshake"));
  thread.join();
}

}  // namespace
}  // namespace reft
