#include "text/tokenizer.h"

#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "text/tokenizer_pipeline.h"

namespace reft {
namespace {

class ByteStream final : public DecodeStream {
 public:
  ByteStream(const Tokenizer& tokenizer, bool skip) : tokenizer_(tokenizer), skip_(skip) {}
  std::string add(int32_t id) override {
    std::string out;
    if (!(skip_ && tokenizer_.is_special(id))) joiner_.add(tokenizer_.token_bytes(id), out);
    return out;
  }
  std::string finish() override {
    std::string out;
    joiner_.finish(out);
    return out;
  }

 private:
  const Tokenizer& tokenizer_;
  bool skip_;
  Utf8Joiner joiner_;
};

TokenizerParts load_file(const std::string& path, const TokenizerConfig& config) {
  const MappedFile file(path);
  if (path.ends_with(".tiktoken")) return load_tiktoken(path, config);
  if (path.ends_with(".model")) {
    return looks_like_sentencepiece(file.text()) ? parse_sentencepiece(file.text(), path)
                                                 : load_tiktoken(path, config);
  }
  return parse_tokenizer_json(file.text(), path);
}

// The tokenizer's main file in a folder.
std::string find_file(const std::string& folder) {
  namespace fs = std::filesystem;
  for (const char* name :
       {"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"}) {
    if (fs::exists(folder + "/" + name)) return folder + "/" + name;
  }
  std::string found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string path = entry.path().string();
    if (path.ends_with(".tiktoken") && (found.empty() || path < found)) found = path;
  }
  if (found.empty()) {
    throw NoTokenizer(folder + ": no tokenizer.json, tokenizer.model or *.tiktoken in this folder");
  }
  return found;
}

}  // namespace

std::unique_ptr<DecodeStream> Tokenizer::start_decode(bool skip_special_tokens) const {
  return std::make_unique<ByteStream>(*this, skip_special_tokens);
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt_tail,
                             bool skip_special_tokens)
    : stream_(tokenizer.start_decode(skip_special_tokens)) {
  for (const int32_t id : prompt_tail) stream_->add(id);
}

std::string StreamDecoder::add(int32_t id) { return stream_->add(id); }

std::string StreamDecoder::finish() { return stream_->finish(); }

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path) {
  namespace fs = std::filesystem;
  const bool folder = fs::is_directory(path);
  const std::string file = folder ? find_file(path) : path;
  const fs::path parent = fs::path(file).parent_path();
  const TokenizerConfig config = read_tokenizer_config(parent.empty() ? "." : parent.string());
  try {
    TokenizerParts parts = load_file(file, config);
    apply_tokenizer_config(config, parts);
    return make_tokenizer(std::move(parts));
  } catch (const nlohmann::json::exception& e) {
    fail("{}: {}", file, e.what());
  }
}

}  // namespace reft
