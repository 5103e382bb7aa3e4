#include "text/unigram.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "text/unicode.h"

namespace reft {

namespace {
constexpr double kUnknownPenalty = 10.0;
}

Unigram::Unigram(const std::vector<Piece>& pieces, std::optional<int64_t> unk_id,
                 bool byte_fallback)
    : byte_fallback_(byte_fallback) {
  check(!unk_id || (*unk_id >= 0 && *unk_id < int64_t(pieces.size())),
        "unigram: unk_id {} is not one of the {} pieces", unk_id.value_or(0), pieces.size());
  if (unk_id) unk_ = int32_t(*unk_id);
  double lowest = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    check(table_.add(piece.text, int32_t(i)), "unigram: more than {} pieces", TokenTable::kMaxId);
    scores_.push_back(piece.score);
    if (piece.matches) lowest = std::min(lowest, piece.score);
    if (piece.matches && !piece.text.empty()) trie_.insert(piece.text, int32_t(i));
  }
  unk_score_ = lowest - kUnknownPenalty;
  if (byte_fallback_) fallback_ = byte_fallback_ids(table_);
}

void Unigram::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Node {
    double score = 0;
    int64_t begin = -1;
    int32_t id = 0;
  };
  thread_local std::vector<Node> nodes;
  nodes.assign(piece.size() + 1, Node{});
  auto offer = [&](size_t end, double score, size_t begin, int32_t id) {
    Node& node = nodes[end];
    if (node.begin < 0 || score > node.score) node = {score, int64_t(begin), id};
  };
  for (size_t begin = 0; begin < piece.size();) {
    const double before = nodes[begin].score;
    const size_t character = unicode::length(piece[begin]);
    bool single = false;
    trie_.prefixes(piece.substr(begin), [&](size_t length, int32_t id) {
      offer(begin + length, scores_[size_t(id)] + before, begin, id);
      single |= length == character;
    });
    if (!single) {
      check(unk_ >= 0, "the unigram model has no unknown token for text outside its vocabulary");
      offer(begin + character, unk_score_ + before, begin, unk_);
    }
    begin += character;
  }
  // Walked backwards; unknown pieces in a row are one.
  thread_local std::vector<std::pair<size_t, size_t>> path;
  path.clear();
  size_t fused_end = 0;
  for (size_t end = piece.size(); end > 0;) {
    const Node& node = nodes[end];
    const auto begin = size_t(node.begin);
    if (node.id == unk_) {
      if (fused_end == 0) fused_end = end;
    } else {
      if (fused_end != 0) path.emplace_back(end, fused_end);
      fused_end = 0;
      path.emplace_back(begin, end);
    }
    end = begin;
  }
  if (fused_end != 0) path.emplace_back(0, fused_end);
  for (auto it = path.rbegin(); it != path.rend(); ++it) {
    const std::string_view text = piece.substr(it->first, it->second - it->first);
    const int32_t id = table_.find(text);
    if (id >= 0) {
      ids.push_back(id);
    } else {
      emit_unknown(text, ids);
    }
  }
  if (nodes.capacity() > (1 << 16)) std::vector<Node>().swap(nodes);
}

void Unigram::emit_unknown(std::string_view text, std::vector<int32_t>& ids) const {
  const bool bytes = byte_fallback_ && std::all_of(text.begin(), text.end(), [&](char c) {
                       return fallback_[static_cast<unsigned char>(c)] >= 0;
                     });
  if (bytes) {
    for (char c : text) ids.push_back(fallback_[static_cast<unsigned char>(c)]);
    return;
  }
  check(unk_ >= 0, "the unigram model has no unknown token for text outside its vocabulary");
  ids.push_back(unk_);
}

}  // namespace reft
