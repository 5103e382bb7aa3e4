#include "text/wordpiece.h"

#include <algorithm>

#include "base/check.h"
#include "text/unicode.h"

namespace reft {

int32_t TableModel::unknown() const {
  check(unk_ >= 0, "the unknown token '{}' is not in the vocabulary", unk_token_);
  return unk_;
}

void WordPiece::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  const auto chars = std::count_if(piece.begin(), piece.end(),
                                   [](char c) { return !unicode::is_continuation(c); });
  if (chars > max_chars_) {
    ids.push_back(unknown());
    return;
  }
  const size_t before = ids.size();
  std::string part;
  for (size_t start = 0; start < piece.size();) {
    size_t end = piece.size();
    int32_t id = -1;
    while (start < end) {
      part = start > 0 ? prefix_ : std::string();
      part += piece.substr(start, end - start);
      id = table_.find(part);
      if (id >= 0) break;
      do --end;
      while (end > start && unicode::is_continuation(piece[end]));
    }
    if (id < 0) {
      ids.resize(before);
      ids.push_back(unknown());
      return;
    }
    ids.push_back(id);
    start = end;
  }
}

void WordLevel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  const int32_t id = table_.find(piece);
  ids.push_back(id >= 0 ? id : unknown());
}

}  // namespace reft
