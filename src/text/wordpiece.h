// Whole-word vocabularies: WordPiece (greedy longest match, BERT) and WordLevel.
#pragma once

#include <string>

#include "text/token_model.h"

namespace reft {

class TableModel : public TokenModel {
 public:
  TableModel(TokenTable table, std::string unk_token)
      : table_(std::move(table)), unk_token_(std::move(unk_token)), unk_(table_.find(unk_token_)) {}
  int32_t token_to_id(std::string_view token) const override { return table_.find(token); }
  bool has_id(int32_t id) const override { return table_.has(id); }
  std::string id_to_token(int32_t id) const override { return std::string(table_.text(id)); }
  int32_t id_end() const override { return table_.id_end(); }
  int64_t size() const override { return int64_t(table_.size()); }

 protected:
  // Throws Error when the vocabulary has no unknown token.
  int32_t unknown() const;

  TokenTable table_;
  std::string unk_token_;
  int32_t unk_;
};

class WordPiece final : public TableModel {
 public:
  WordPiece(TokenTable table, std::string unk_token, std::string prefix, int64_t max_chars)
      : TableModel(std::move(table), std::move(unk_token)),
        prefix_(std::move(prefix)),
        max_chars_(max_chars) {}
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  std::string prefix_;  // of what continues a word ("##")
  int64_t max_chars_;   // longer words are unknown
};

class WordLevel final : public TableModel {
 public:
  using TableModel::TableModel;
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
};

}  // namespace reft
