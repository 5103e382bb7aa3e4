#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"

namespace reft {
namespace {

uint32_t last_char(std::string_view text) {
  size_t i = text.size() - 1;
  while (i > 0 && unicode::is_continuation(text[i])) --i;
  const char* p = text.data() + i;
  return unicode::next(p);
}

bool is_word(uint32_t c) { return unicode::flags(c) & unicode::kRustWord; }

}  // namespace

void AddedTokens::add(AddedToken token) {
  if (token.content.empty()) return;
  auto [it, fresh] = by_id_.try_emplace(token.id, tokens_.size());
  if (fresh) {
    tokens_.push_back(std::move(token));
  } else {
    token.special |= tokens_[it->second].special && tokens_[it->second].content == token.content;
    tokens_[it->second] = std::move(token);
  }
  by_content_[tokens_[it->second].content] = it->second;
}

void AddedTokens::finish(const std::function<std::string(std::string_view)>& normalize) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    std::string text = token.content;
    if (token.normalized && normalize) {
      text = normalize(token.content);
      if (text != token.content) normalized_text_[token.id] = text;
    }
    if (!text.empty()) trie_[token.normalized].insert(text, int32_t(i));
  }
}

void AddedTokens::split(std::string_view text, bool normalized, bool parse_special,
                        std::vector<Section>& out) const {
  const ByteTrie& trie = trie_[normalized];
  size_t start = 0;
  size_t i = 0;
  while (!trie.empty() && i < text.size()) {
    if (trie.child(ByteTrie::kRoot, static_cast<unsigned char>(text[i])) == ByteTrie::kNone) {
      ++i;
      continue;
    }
    size_t length = 0;
    int32_t index = -1;
    trie.prefixes(text.substr(i), [&](size_t n, int32_t value) {
      length = n;
      index = value;
    });
    if (index < 0) {
      ++i;
      continue;
    }
    size_t begin = i, end = i + length;
    i = end;
    const AddedToken& token = tokens_[size_t(index)];
    if (token.special && !parse_special) continue;
    if (token.single_word) {
      if (begin > 0 && is_word(last_char(text.substr(0, begin)))) continue;
      const char* p = text.data() + end;
      if (end < text.size() && is_word(unicode::next(p))) continue;
    }
    if (token.lstrip) {
      while (begin > start && unicode::is_space(last_char(text.substr(start, begin - start)))) {
        do --begin;
        while (unicode::is_continuation(text[begin]));
      }
    }
    // A token before may have taken the white space behind it, up to here and further.
    begin = std::max(begin, start);
    if (token.rstrip) {
      while (end < text.size()) {
        const char* p = text.data() + end;
        if (!unicode::is_space(unicode::next(p))) break;
        end = size_t(p - text.data());
      }
    }
    if (start < begin) out.push_back({text.substr(start, begin - start), -1});
    out.push_back({text.substr(begin, std::max(end, begin) - begin), token.id});
    start = std::max(end, begin);
  }
  if (start < text.size()) out.push_back({text.substr(start), -1});
}

const AddedToken* AddedTokens::by_id(int32_t id) const {
  auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &tokens_[it->second];
}

const AddedToken* AddedTokens::by_content(std::string_view content) const {
  auto it = by_content_.find(content);
  return it == by_content_.end() || tokens_[it->second].content != content ? nullptr
                                                                           : &tokens_[it->second];
}

bool AddedTokens::is_special_text(std::string_view content) const {
  const AddedToken* token = by_content(content);
  return token && token->special;
}

const std::string& AddedTokens::decoder_text(const AddedToken& token) const {
  auto it = normalized_text_.find(token.id);
  return it == normalized_text_.end() ? token.content : it->second;
}

}  // namespace reft
