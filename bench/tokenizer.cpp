// Tokenizer measurements, and ids for comparison with other implementations.
//   tokenizer bench PATH TEXT-FILE     load time, encode and decode speed
//   tokenizer ids PATH [plain] < LINES one JSON string per line; prints per line the ids, a tab,
//   and the text decoded
//                                      from them as a JSON string
//   tokenizer text PATH < LINES        one JSON list of ids per line; prints per line the JSON list
//                                      of their text and their text without special tokens
#include <fmt/core.h>

#include <chrono>
#include <iostream>

#include "base/file.h"
#include "base/json.h"
#include "tensor/gguf.h"
#include "text/tokenizer.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::unique_ptr<reft::Tokenizer> load(const std::string& path) {
  if (path.ends_with(".gguf")) {
    const auto gguf = reft::open_gguf(path);
    return reft::load_tokenizer(*gguf);
  }
  return reft::load_tokenizer(path);
}

void bench(const std::string& path, const std::string& text_file) {
  auto start = Clock::now();
  const auto tokenizer = load(path);
  fmt::print("load {:.3f} s, {} ids\n", seconds_since(start), tokenizer->vocab_size());
  const std::string text = reft::read_file(text_file);
  std::vector<int32_t> ids;
  for (int round = 0; round < 5; ++round) {
    start = Clock::now();
    ids = tokenizer->encode(text);
    const double t = seconds_since(start);
    fmt::print("encode {:.1f} MB/s, {} ids, {:.2f} bytes an id\n", double(text.size()) / 1e6 / t,
               ids.size(), double(text.size()) / double(ids.size()));
  }
  start = Clock::now();
  const std::string back = tokenizer->decode(ids);
  const double t = seconds_since(start);
  fmt::print("decode {:.1f} MB/s, {}\n", double(back.size()) / 1e6 / t,
             back == text ? "equal" : "not equal");
}

// The ids' text, where it comes out the same id by id.
std::string decode(const reft::Tokenizer& tokenizer, std::span<const int32_t> ids, bool skip) {
  reft::StreamDecoder stream(tokenizer, {}, skip);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.add(id);
  streamed += stream.finish();
  const std::string decoded = tokenizer.decode(ids, skip);
  const bool ill_formed = decoded.find("\xEF\xBF\xBD") != std::string::npos;
  return streamed == decoded || ill_formed ? decoded : "STREAM DIFFERS";
}

void ids(const std::string& path, bool plain) {
  const auto tokenizer = load(path);
  reft::EncodeOptions options;
  options.parse_special = !plain;
  std::string line;
  while (std::getline(std::cin, line)) {
    try {
      const auto text = reft::parse_json(line, "line").get<std::string>();
      const auto out = tokenizer->encode(text, options);
      for (size_t i = 0; i < out.size(); ++i) fmt::print("{}{}", i ? " " : "", out[i]);
      fmt::print("\t{}\n", reft::Json(decode(*tokenizer, out, false)).dump());
    } catch (const reft::Error& e) {
      fmt::print("error: {}\n", e.what());
    }
  }
}

void text(const std::string& path) {
  const auto tokenizer = load(path);
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto ids = reft::parse_json(line, "line").get<std::vector<int32_t>>();
    fmt::print(
        "{}\n",
        reft::Json::array({decode(*tokenizer, ids, false), decode(*tokenizer, ids, true)}).dump());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string mode = argc > 2 ? argv[1] : "";
  if (mode == "bench" && argc == 4) {
    bench(argv[2], argv[3]);
  } else if (mode == "ids") {
    ids(argv[2], argc > 3);
  } else if (mode == "text" && argc == 3) {
    text(argv[2]);
  } else {
    fmt::print(stderr, "usage: tokenizer bench PATH TEXT-FILE | ids PATH [plain] | text PATH\n");
    return 2;
  }
  return 0;
} catch (const std::exception& e) {
  fmt::print(stderr, "error: {}\n", e.what());
  return 1;
}
