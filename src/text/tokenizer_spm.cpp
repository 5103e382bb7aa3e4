// SentencePiece models: the protobuf file (tokenizer.model) and the tokenizer made of such a
// vocabulary.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "text/bpe.h"
#include "text/sentencepiece_file.h"
#include "text/unicode.h"
#include "text/unigram.h"

namespace reft {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // ▁

// Fields of one protobuf message, in order. Throws Error at a truncated or malformed field.
class ProtoReader {
 public:
  ProtoReader(std::string_view bytes, const std::string& what) : rest_(bytes), what_(what) {}

  bool next() {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    field = uint32_t(key >> 3);
    bytes = {};
    number = 0;
    switch (key & 7) {
      case 0:
        number = varint();
        return true;
      case 1:
        bytes = take(8);
        return true;
      case 2:
        bytes = take(varint());
        return true;
      case 5: {
        bytes = take(4);
        uint32_t bits = 0;
        std::memcpy(&bits, bytes.data(), 4);
        number = bits;
        return true;
      }
      default:
        fail("{}: not a SentencePiece model (wire type {})", what_, key & 7);
    }
  }
  float as_float() const {
    const auto bits = uint32_t(number);
    float value = 0;
    std::memcpy(&value, &bits, 4);
    return value;
  }

  uint32_t field = 0;
  uint64_t number = 0;
  std::string_view bytes;

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      check(!rest_.empty(), "{}: the SentencePiece model is truncated", what_);
      const auto byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      value |= uint64_t(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("{}: not a SentencePiece model (bad number)", what_);
  }
  std::string_view take(uint64_t n) {
    check(n <= rest_.size(), "{}: the SentencePiece model is truncated", what_);
    const auto out = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return out;
  }
  std::string_view rest_;
  const std::string& what_;
};

// SentencePiece's own normalisation: user-defined pieces stay, all else goes through the character
// map by longest key; then white space. The dummy prefix is not here.
class SpmNormalizer final : public Normalizer {
 public:
  explicit SpmNormalizer(const SentencePieceSpec& spec)
      : remove_extra_(spec.remove_extra_whitespaces), escape_(spec.escape_whitespaces) {
    if (!spec.charsmap.empty()) map_ = std::make_unique<Charsmap>(spec.charsmap);
    if (!spec.user_defined_in_text) return;
    for (const auto& piece : spec.pieces) {
      if (piece.type == SentencePieceSpec::kUserDefined && !piece.text.empty())
        kept_.insert(piece.text, 0);
    }
  }
  bool apply(std::string_view text, std::string& out, bool&) const override {
    const std::string_view space = escape_ ? kSpaceMark : " ";
    out.clear();
    out.reserve(text.size() * 2);
    bool after_space = remove_extra_;
    for (size_t i = 0; i < text.size();) {
      size_t length = 0;
      std::string_view part;
      kept_.prefixes(text.substr(i), [&](size_t found, int32_t) { length = found; });
      if (length > 0 || !map_ || !map_->find(text.substr(i), true, length, part)) {
        if (length == 0) length = unicode::length(text[i]);
        part = text.substr(i, length);
      }
      i += length;
      while (after_space && part.starts_with(' ')) part.remove_prefix(1);
      if (part.empty()) continue;
      for (const char c : part) {
        if (c == ' ') {
          out += space;
        } else {
          out += c;
        }
      }
      after_space = remove_extra_ && part.ends_with(' ');
    }
    while (remove_extra_ && out.ends_with(space)) out.resize(out.size() - space.size());
    return true;
  }

 private:
  std::unique_ptr<Charsmap> map_;
  ByteTrie kept_;
  bool remove_extra_, escape_;
};

bool matches_text(int64_t type) {
  return type == SentencePieceSpec::kNormal || type == SentencePieceSpec::kUserDefined ||
         type == SentencePieceSpec::kUnused;
}

std::unique_ptr<TokenModel> make_bpe(const SentencePieceSpec& spec, const std::string& unk,
                                     bool byte_fallback, const std::string& what) {
  TokenTable table;
  table.reserve(spec.pieces.size(), spec.pieces.size() * 8);
  for (size_t i = 0; i < spec.pieces.size(); ++i) {
    check(table.add(spec.pieces[i].text, int32_t(i)), "{}: too many pieces", what);
  }
  // Higher score first; equal scores share a rank, so that the leftmost merges first.
  std::vector<int32_t> order(spec.pieces.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return spec.pieces[size_t(a)].score > spec.pieces[size_t(b)].score;
  });
  std::vector<int32_t> rank(order.size(), -1);
  int32_t next = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && spec.pieces[size_t(order[i])].score < spec.pieces[size_t(order[i - 1])].score)
      ++next;
    if (matches_text(spec.pieces[size_t(order[i])].type)) rank[size_t(order[i])] = next;
  }
  BpeOptions options;
  options.sentencepiece = true;
  options.byte_fallback = byte_fallback;
  options.fuse_unk = true;
  options.unk_token = unk;
  auto bpe = std::make_unique<Bpe>(std::move(table), std::move(options));
  bpe->merge_by_rank(std::move(rank));
  bpe->finish();
  return bpe;
}

}  // namespace

TokenizerParts make_sentencepiece(SentencePieceSpec spec, const std::string& what) {
  check(!spec.pieces.empty(), "{}: the vocabulary is empty", what);
  TokenizerParts parts;
  std::string unk;
  std::optional<int64_t> unk_id;
  bool bytes = false;
  for (size_t i = 0; i < spec.pieces.size(); ++i) {
    const auto& piece = spec.pieces[i];
    check(unicode::valid_prefix(piece.text) == piece.text.size(), "{}: piece {} is not valid UTF-8",
          what, i);
    bytes |= piece.type == SentencePieceSpec::kByte;
    if (piece.type == SentencePieceSpec::kUnknown) {
      unk = piece.text;
      unk_id = int64_t(i);
    }
  }
  if (spec.bpe) {
    parts.model = make_bpe(spec, unk, bytes, what);
  } else {
    std::vector<Unigram::Piece> pieces;
    for (const auto& piece : spec.pieces)
      pieces.push_back({piece.text, piece.score, matches_text(piece.type)});
    parts.model = std::make_unique<Unigram>(pieces, unk_id, bytes);
  }
  for (size_t i = 0; i < spec.pieces.size(); ++i) {
    const auto& piece = spec.pieces[i];
    const bool control =
        piece.type == SentencePieceSpec::kControl || piece.type == SentencePieceSpec::kUnknown;
    if (!control && piece.type != SentencePieceSpec::kUserDefined) continue;
    AddedToken token;
    token.id = int32_t(i);
    token.content = piece.text;
    token.special = control;
    token.normalized = spec.user_defined_in_text && !control && !piece.text.starts_with(' ');
    parts.added.add(std::move(token));
  }
  parts.normalizer = std::make_unique<SpmNormalizer>(spec);
  if (spec.add_dummy_prefix) parts.section_prefix = spec.escape_whitespaces ? kSpaceMark : " ";
  Json decoders = Json::array();
  decoders.push_back(
      {{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (spec.add_dummy_prefix)
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  parts.decoder = make_token_decoder({{"type", "Sequence"}, {"decoders", decoders}});
  return parts;
}

bool looks_like_sentencepiece(std::string_view bytes) {
  // The first field is a piece: tag 0x0A, its length, then the piece's text with tag 0x0A again.
  return bytes.size() > 3 && bytes[0] == '\n' && bytes[2] == '\n';
}

SentencePieceFile read_sentencepiece(std::string_view bytes, const std::string& what) {
  SentencePieceFile file;
  auto& [spec, bos, eos, pad] = file;
  spec.remove_extra_whitespaces = true;
  spec.user_defined_in_text = true;
  int64_t model_type = 1;
  for (ProtoReader model(bytes, what); model.next();) {
    if (model.field == 1) {
      SentencePieceSpec::Piece piece;
      for (ProtoReader p(model.bytes, what); p.next();) {
        if (p.field == 1) piece.text = p.bytes;
        if (p.field == 2) piece.score = double(p.as_float());
        if (p.field == 3) piece.type = int64_t(p.number);
      }
      spec.pieces.push_back(std::move(piece));
    } else if (model.field == 2) {
      for (ProtoReader p(model.bytes, what); p.next();) {
        if (p.field == 3) model_type = int64_t(p.number);
        if (p.field == 24)
          check(p.number == 0, "{}: treat_whitespace_as_suffix is not supported", what);
        if (p.field == 41) bos = int64_t(p.number);
        if (p.field == 42) eos = int64_t(p.number);
        if (p.field == 43) pad = int64_t(p.number);
      }
    } else if (model.field == 3) {
      for (ProtoReader p(model.bytes, what); p.next();) {
        if (p.field == 2) spec.charsmap = p.bytes;
        if (p.field == 3) spec.add_dummy_prefix = p.number != 0;
        if (p.field == 4) spec.remove_extra_whitespaces = p.number != 0;
        if (p.field == 5) spec.escape_whitespaces = p.number != 0;
      }
    }
  }
  check(model_type == 1 || model_type == 2,
        "{}: SentencePiece model type {} is not supported (unigram and BPE are)", what, model_type);
  spec.bpe = model_type == 2;
  return file;
}

TokenizerParts parse_sentencepiece(std::string_view bytes, const std::string& what) {
  auto [spec, bos, eos, pad] = read_sentencepiece(bytes, what);
  const auto size = int64_t(spec.pieces.size());
  const bool bpe = spec.bpe;
  TokenizerParts parts = make_sentencepiece(std::move(spec), what);
  auto valid = [&](int64_t id) {
    return id >= 0 && id < size ? std::optional<int32_t>(int32_t(id)) : std::nullopt;
  };
  parts.bos = valid(bos);
  parts.eos = valid(eos);
  parts.pad = valid(pad);
  // What the Python classes of the two kinds do by default: Llama begins with bos, T5 ends with
  // eos.
  if (bpe && parts.bos) parts.prefix.push_back(*parts.bos);
  if (!bpe && parts.eos) parts.suffix.push_back(*parts.eos);
  return parts;
}

}  // namespace reft
