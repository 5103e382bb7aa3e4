#include "text/tokenizer_pipeline.h"

#include <algorithm>

#include "base/check.h"
#include "text/unicode.h"

namespace reft {

int32_t TokenizerParts::find(std::string_view token) const {
  if (const AddedToken* t = added.by_content(token)) return t->id;
  return model->token_to_id(token);
}

void TokenizerParts::add_token(AddedToken token) {
  if (token.content.empty()) return;
  int32_t id = find(token.content);
  if (id < 0) {
    int64_t next = model->size();
    for (const AddedToken& t : added.all()) next = std::max<int64_t>(next, int64_t(t.id) + 1);
    check(next <= TokenTable::kMaxId, "added token '{}': no id left", token.content);
    id = int32_t(next);
  }
  token.id = id;
  added.add(std::move(token));
}

namespace {

class PipelineTokenizer final : public Tokenizer {
 public:
  explicit PipelineTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {
    int64_t end = parts_.model->id_end();
    for (const AddedToken& t : parts_.added.all()) end = std::max<int64_t>(end, int64_t(t.id) + 1);
    vocab_size_ = end;
    direct_bytes_ = parts_.model->takes_bytes() && parts_.decoder->byte_level();
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    std::string clean;
    if (unicode::valid_prefix(text) != text.size()) {
      clean = unicode::sanitize(text);
      text = clean;
    }
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 4 + 8);
    if (options.add_special_tokens) ids = parts_.prefix;
    std::vector<AddedTokens::Section> sections;
    parts_.added.split(text, false, options.parse_special, sections);
    bool after_special = true;
    for (const auto& section : sections) {
      if (section.id >= 0) {
        ids.push_back(section.id);
        after_special = is_special(section.id);
      } else {
        encode_section(section.text, section.text.data() == text.data(), after_special, options,
                       ids);
        after_special = false;
      }
    }
    if (options.add_special_tokens)
      ids.insert(ids.end(), parts_.suffix.begin(), parts_.suffix.end());
    return ids;
  }

  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string out;
    if (direct_bytes_) {
      Utf8Joiner joiner;
      for (const int32_t id : ids) {
        if (known(id) && !(skip_special_tokens && is_special(id)))
          joiner.add(direct_bytes(id), out);
      }
      joiner.finish(out);
      return out;
    }
    auto stream = parts_.decoder->start(/*whole_runs=*/true);
    for (const int32_t id : ids) {
      if (known(id) && !(skip_special_tokens && is_special(id))) stream->add(decoder_text(id), out);
    }
    stream->finish(out);
    return out;
  }

  std::unique_ptr<DecodeStream> start_decode(bool skip_special_tokens) const override;

  int64_t vocab_size() const override { return vocab_size_; }

  std::optional<int32_t> token_to_id(std::string_view token) const override {
    const int32_t id = parts_.find(token);
    return id >= 0 ? std::optional<int32_t>(id) : std::nullopt;
  }

  std::string id_to_token(int32_t id) const override {
    if (const AddedToken* t = parts_.added.by_id(id)) return t->content;
    return parts_.model->id_to_token(id);
  }

  std::string token_bytes(int32_t id) const override {
    if (!known(id)) return {};
    if (const AddedToken* t = parts_.added.by_id(id)) return t->content;
    if (direct_bytes_) return std::string(parts_.model->bytes(id));
    const std::string token = parts_.model->id_to_token(id);
    if (parts_.decoder->byte_fallback() && token.size() == 6 && token.compare(0, 3, "<0x") == 0 &&
        token[5] == '>' && std::isxdigit(static_cast<unsigned char>(token[3])) &&
        std::isxdigit(static_cast<unsigned char>(token[4]))) {
      return std::string(1, char(std::stoi(token.substr(3, 2), nullptr, 16)));
    }
    // Behind another token, so that the rules for the first one do not apply.
    auto stream = parts_.decoder->start();
    std::string before, out;
    stream->add("a", before);
    stream->add(token, out);
    stream->finish(out);
    return out;
  }

  bool is_special(int32_t id) const override {
    if (const AddedToken* t = parts_.added.by_id(id)) return t->special;
    return false;
  }
  std::optional<int32_t> bos_id() const override { return parts_.bos; }
  std::optional<int32_t> eos_id() const override { return parts_.eos; }
  std::optional<int32_t> pad_id() const override { return parts_.pad; }
  const std::string& chat_template() const override { return parts_.chat_template; }

 private:
  friend class PipelineStream;

  bool known(int32_t id) const {
    return id >= 0 && (parts_.model->has_id(id) || parts_.added.by_id(id));
  }
  std::string decoder_text(int32_t id) const {
    if (const AddedToken* t = parts_.added.by_id(id)) return parts_.added.decoder_text(*t);
    return parts_.model->id_to_token(id);
  }
  // For the byte-level decoder: an added token that is spelled in the alphabet is decoded like any
  // other.
  std::string direct_bytes(int32_t id) const {
    if (const AddedToken* t = parts_.added.by_id(id)) {
      const std::string& text = parts_.added.decoder_text(*t);
      std::string bytes;
      return byte_alphabet::decode(text, bytes) ? bytes : text;
    }
    return std::string(parts_.model->bytes(id));
  }

  void encode_section(std::string_view text, bool at_start, bool after_special,
                      const EncodeOptions& options, std::vector<int32_t>& ids) const {
    std::string normalized;
    bool cut_start = false;
    if (parts_.normalizer && parts_.normalizer->apply(text, normalized, cut_start))
      text = normalized;
    at_start = at_start && !cut_start;
    if (after_special && !text.empty() && !parts_.section_prefix.empty()) {
      normalized = parts_.section_prefix + std::string(text);
      text = normalized;
    }
    if (!parts_.added.any(true)) {
      encode_text(text, at_start, ids);
      return;
    }
    std::vector<AddedTokens::Section> sections;
    parts_.added.split(text, true, options.parse_special, sections);
    for (const auto& section : sections) {
      if (section.id >= 0) {
        ids.push_back(section.id);
      } else {
        encode_text(section.text, at_start && section.text.data() == text.data(), ids);
      }
    }
  }

  void encode_text(std::string_view text, bool at_start, std::vector<int32_t>& ids) const {
    if (text.empty()) return;
    check(text.size() < UINT32_MAX / 4, "text of {} bytes is too long to tokenize", text.size());
    Pieces pieces;
    pieces.text = text;
    pieces.spans.push_back({0, uint32_t(text.size())});
    pieces.at_start = at_start;
    if (parts_.pretokenizer) parts_.pretokenizer->apply(pieces);
    for (const auto& span : pieces.spans) parts_.model->encode(pieces.piece(span), ids);
  }

  TokenizerParts parts_;
  int64_t vocab_size_ = 0;
  bool direct_bytes_ = false;
};

class PipelineStream final : public DecodeStream {
 public:
  PipelineStream(const PipelineTokenizer& tokenizer, bool skip)
      : tokenizer_(tokenizer), skip_(skip) {
    if (!tokenizer.direct_bytes_) stream_ = tokenizer.parts_.decoder->start();
  }
  std::string add(int32_t id) override {
    std::string out;
    if (!tokenizer_.known(id) || (skip_ && tokenizer_.is_special(id))) return out;
    if (stream_) {
      stream_->add(tokenizer_.decoder_text(id), out);
    } else {
      joiner_.add(tokenizer_.direct_bytes(id), out);
    }
    return out;
  }
  std::string finish() override {
    std::string out;
    if (stream_) {
      stream_->finish(out);
    } else {
      joiner_.finish(out);
    }
    return out;
  }

 private:
  const PipelineTokenizer& tokenizer_;
  bool skip_;
  std::unique_ptr<TokenDecoder::Stream> stream_;
  Utf8Joiner joiner_;
};

std::unique_ptr<DecodeStream> PipelineTokenizer::start_decode(bool skip_special_tokens) const {
  return std::make_unique<PipelineStream>(*this, skip_special_tokens);
}

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerParts parts) {
  check(parts.model && parts.decoder, "a tokenizer needs a model and a decoder");
  std::function<std::string(std::string_view)> normalize;
  if (parts.normalizer) {
    normalize = [&](std::string_view text) { return (*parts.normalizer)(text); };
  }
  parts.added.finish(normalize);
  return std::make_unique<PipelineTokenizer>(std::move(parts));
}

}  // namespace reft
