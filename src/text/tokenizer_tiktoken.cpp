// tiktoken rank files: a line per token, its bytes in base64 and its rank. The pattern is not in
// the file; it follows from the number of ranks.
#include <array>

#include "base/check.h"
#include "base/file.h"
#include "text/bpe.h"
#include "text/scanner.h"
#include "text/tokenizer_pipeline.h"

namespace reft {
namespace {

bool decode_base64(std::string_view text, std::string& out) {
  out.clear();
  uint32_t bits = 0;
  int have = 0;
  for (char c : text) {
    uint32_t v = 0;
    if (c >= 'A' && c <= 'Z') {
      v = uint32_t(c - 'A');
    } else if (c >= 'a' && c <= 'z') {
      v = uint32_t(c - 'a' + 26);
    } else if (c >= '0' && c <= '9') {
      v = uint32_t(c - '0' + 52);
    } else if (c == '+') {
      v = 62;
    } else if (c == '/') {
      v = 63;
    } else if (c == '=') {
      break;
    } else {
      return false;
    }
    bits = bits << 6 | v;
    have += 6;
    if (have >= 8) {
      have -= 8;
      out += char(bits >> have & 0xFF);
    }
  }
  return true;
}

std::string_view pattern_for(size_t ranks) {
  if (ranks <= 60'000) return patterns::kGpt2;                       // gpt2, r50k, whisper
  if (ranks >= 150'000 && ranks < 155'000) return patterns::kQwen2;  // Qwen 1
  if (ranks >= 199'000 && ranks < 205'000) return patterns::kO200k;  // o200k, Llama 4
  return patterns::kLlama3;                                          // cl100k, Llama 3
}

}  // namespace

TokenizerParts load_tiktoken(const std::string& path, const TokenizerConfig&) {
  const MappedFile file(path);
  const std::string_view text = file.text();
  TokenTable table;
  table.reserve(text.size() / 14, text.size());
  std::string bytes;
  size_t line_number = 0;
  for (size_t i = 0; i < text.size();) {
    ++line_number;
    const size_t end = std::min(text.find('\n', i), text.size());
    std::string_view line = text.substr(i, end - i);
    i = end + 1;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    check(space != std::string_view::npos && decode_base64(line.substr(0, space), bytes),
          "{}: line {} is not base64 and a rank", path, line_number);
    int64_t rank = 0;
    for (char c : line.substr(space + 1)) {
      check(c >= '0' && c <= '9' && rank <= TokenTable::kMaxId, "{}: line {} has a bad rank", path,
            line_number);
      rank = rank * 10 + (c - '0');
    }
    check(!bytes.empty() || line.substr(0, space) == "=", "{}: line {} has an empty token", path,
          line_number);
    check(table.add(bytes, int32_t(std::min<int64_t>(rank, TokenTable::kMaxId + 1))),
          "{}: line {}: rank {} is taken or too large", path, line_number, rank);
  }
  check(table.size() > 0, "{}: no ranks", path);
  TokenizerParts parts;
  parts.pretokenizer = make_split_sequence({std::string(pattern_for(table.size()))});
  BpeOptions options;
  options.byte_level = true;
  options.ignore_merges = true;
  auto bpe = std::make_unique<Bpe>(std::move(table), options);
  bpe->merge_by_rank();
  bpe->finish();
  parts.model = std::move(bpe);
  parts.decoder = make_token_decoder(Json{{"type", "ByteLevel"}});
  return parts;
}

}  // namespace reft
