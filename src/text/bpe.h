// Byte pair encoding: merges from a file's list, or by the rank or score of the merged token.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/token_model.h"

namespace reft {

struct BpeOptions {
  bool byte_level = false;     // the vocabulary is keyed by plain bytes
  bool ignore_merges = false;  // a piece that is a token stays whole
  bool byte_fallback = false;
  bool fuse_unk = false;
  std::string unk_token;  // empty: characters without token vanish
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
  // SentencePiece: a character without token still takes part in merges, and unknown characters in
  // a row are one.
  bool sentencepiece = false;
};

// How the vocabulary and the merges reach the model. All texts are those of the vocabulary table.
class Bpe final : public TokenModel {
 public:
  // `table` holds plain bytes when options.byte_level (entries outside the alphabet go to `raw`).
  // Merges by list.
  Bpe(TokenTable table, BpeOptions options);

  // Adds the next merge in order of rank. When a token is not in the vocabulary: an Error that
  // names it, or, not `strict`, no merge.
  void add_merge(std::string_view left, std::string_view right, bool strict = true);
  void reserve_merges(size_t n);
  // Merges whatever makes a token: the one with the lowest rank first. Rank by id where `rank` is
  // empty.
  void merge_by_rank(std::vector<int32_t> rank = {});
  // Entries of a byte-level vocabulary that are not written in its alphabet: they have an id but
  // never match.
  TokenTable& raw() { return raw_; }
  // To be called once, after the merges.
  void finish();

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
  bool takes_bytes() const override { return options_.byte_level; }
  std::string_view bytes(int32_t id) const override {
    return raw_.has(id) ? raw_.text(id) : table_.text(id);
  }
  int32_t token_to_id(std::string_view token) const override;
  bool has_id(int32_t id) const override { return table_.has(id) || raw_.has(id); }
  std::string id_to_token(int32_t id) const override;
  int32_t id_end() const override { return std::max(table_.id_end(), raw_.id_end()); }
  int64_t size() const override { return int64_t(table_.size() + raw_.size()); }

 private:
  struct Symbol {
    int32_t id;           // -1: no token (SentencePiece only)
    uint32_t begin, end;  // bytes of the piece; begin == end: merged away
    int32_t prev, next;
  };
  struct Merge {
    int32_t rank = -1;  // -1: none
    int32_t id = -1;
  };
  struct MergeSlot {
    uint64_t pair = kFree;
    int32_t rank, id;
  };
  static constexpr uint64_t kFree = ~uint64_t{0};

  Merge find_merge(std::string_view piece, const Symbol& a, const Symbol& b) const;
  void grow_merges(size_t slots);
  void insert_merge(int32_t left, int32_t right, int32_t rank, int32_t id);
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
  void encode_uncached(std::string_view word, std::vector<int32_t>& ids) const;
  void split_into_symbols(std::string_view word, std::vector<Symbol>& symbols) const;
  int32_t character_id(std::string_view text, bool first, bool last) const;
  void merge_short(std::string_view word, std::vector<Symbol>& symbols) const;
  void merge_long(std::string_view word, std::vector<Symbol>& symbols) const;
  void emit(std::string_view word, const std::vector<Symbol>& symbols,
            std::vector<int32_t>& ids) const;
  void find_boundary();

  TokenTable table_, raw_;
  BpeOptions options_;
  std::vector<MergeSlot> merges_;
  size_t merge_count_ = 0;
  int32_t next_rank_ = 0;
  bool by_rank_ = false;
  std::vector<int32_t> rank_;  // by id; empty: the id
  int32_t unk_ = -1;
  int32_t byte_ids_[256];
  std::vector<int32_t> fallback_;
  size_t max_token_ = 0;
  bool boundary_ = false;  // no merge reaches over "x▁": words can be encoded one by one
  uint64_t serial_;        // of this model, for the caches of threads
  // Whether encoding the token's own text gives the token: 0 not known yet, 1 yes, 2 no.
  mutable std::vector<std::atomic<uint8_t>> whole_;
};

}  // namespace reft
