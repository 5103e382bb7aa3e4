// SentencePiece's unigram model: the segmentation of highest total score. Source: T. Kudo, "Subword
// Regularization" (2018), Viterbi search.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/byte_trie.h"
#include "text/token_model.h"

namespace reft {

class Unigram final : public TokenModel {
 public:
  struct Piece {
    std::string text;
    double score;
    bool matches = true;  // control, unknown and byte pieces never match text
  };
  // Ids are the indices. Throws Error when `unk_id` is outside.
  Unigram(const std::vector<Piece>& pieces, std::optional<int64_t> unk_id, bool byte_fallback);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
  int32_t token_to_id(std::string_view token) const override { return table_.find(token); }
  bool has_id(int32_t id) const override { return table_.has(id); }
  std::string id_to_token(int32_t id) const override { return std::string(table_.text(id)); }
  int32_t id_end() const override { return table_.id_end(); }
  int64_t size() const override { return table_.id_end(); }

 private:
  void emit_unknown(std::string_view text, std::vector<int32_t>& ids) const;

  TokenTable table_;
  ByteTrie trie_;
  std::vector<double> scores_;
  int32_t unk_ = -1;
  double unk_score_ = 0;
  bool byte_fallback_;
  std::vector<int32_t> fallback_;
};

}  // namespace reft
