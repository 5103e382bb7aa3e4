#include "text/pretokenizer.h"

#include "base/check.h"
#include "text/scanner.h"
#include "text/token_model.h"
#include "text/unicode.h"

namespace reft {
namespace {

using unicode::flags;

struct Match {
  uint32_t begin, end;
  bool is_match;
};

SplitBehavior behavior_of(const Json& config, const char* fallback) {
  const auto name = json_get(config, "behavior", std::string(fallback));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  fail("pre_tokenizer: unknown behavior '{}'", name);
}

// Appends the pieces that a list of alternating parts gives.
void add_splits(const std::vector<Match>& matches, SplitBehavior behavior,
                std::vector<Pieces::Span>& out) {
  auto add = [&](uint32_t begin, uint32_t end) {
    if (begin < end) out.push_back({begin, end});
  };
  const size_t first = out.size();
  bool previous = false;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      for (const Match& m : matches) add(m.begin, m.end);
      return;
    case SplitBehavior::kRemoved:
      for (const Match& m : matches) {
        if (!m.is_match) add(m.begin, m.end);
      }
      return;
    case SplitBehavior::kContiguous:
      for (const Match& m : matches) {
        if (m.is_match == previous && out.size() > first) {
          out.back().end = m.end;
        } else {
          add(m.begin, m.end);
        }
        previous = m.is_match;
      }
      return;
    case SplitBehavior::kMergedWithPrevious:
      for (const Match& m : matches) {
        if (m.is_match && !previous && out.size() > first) {
          out.back().end = m.end;
        } else {
          add(m.begin, m.end);
        }
        previous = m.is_match;
      }
      return;
    case SplitBehavior::kMergedWithNext: {
      std::vector<Pieces::Span> backwards;
      for (auto m = matches.rbegin(); m != matches.rend(); ++m) {
        if (m->is_match && !previous && !backwards.empty()) {
          backwards.back().begin = m->begin;
        } else if (m->begin < m->end) {
          backwards.push_back({m->begin, m->end});
        }
        previous = m->is_match;
      }
      out.insert(out.end(), backwards.rbegin(), backwards.rend());
      return;
    }
  }
}

// A step that cuts each piece without changing the text: parts(text, matches) gives the parts in
// order.
template <class Parts>
class Cut final : public PreTokenizer {
 public:
  Cut(Parts parts, SplitBehavior behavior) : parts_(std::move(parts)), behavior_(behavior) {}
  void apply(Pieces& pieces) const override {
    std::vector<Pieces::Span> out;
    out.reserve(pieces.spans.size() + pieces.text.size() / 4);
    std::vector<Match> matches;
    for (const auto& span : pieces.spans) {
      matches.clear();
      parts_(pieces.piece(span), matches);
      for (Match& m : matches) {
        m.begin += span.begin;
        m.end += span.begin;
      }
      add_splits(matches, behavior_, out);
    }
    pieces.at_start = pieces.at_start && !out.empty() && !pieces.spans.empty() &&
                      out[0].begin == pieces.spans[0].begin;
    pieces.spans = std::move(out);
  }

 private:
  Parts parts_;
  SplitBehavior behavior_;
};

template <class Parts>
std::unique_ptr<PreTokenizer> cut(Parts parts, SplitBehavior behavior) {
  return std::make_unique<Cut<Parts>>(std::move(parts), behavior);
}

// Parts by a predicate on characters: each matching character is a part of its own.
template <class Predicate>
std::unique_ptr<PreTokenizer> cut_at(Predicate predicate, SplitBehavior behavior) {
  return cut(
      [predicate](std::string_view text, std::vector<Match>& out) {
        const char* p = text.data();
        const char* end = p + text.size();
        const char* from = p;
        auto at = [&](const char* q) { return uint32_t(q - text.data()); };
        while (p < end) {
          const char* c = p;
          if (!predicate(unicode::next(p))) continue;
          if (from < c) out.push_back({at(from), at(c), false});
          out.push_back({at(c), at(p), true});
          from = p;
        }
        if (from < end) out.push_back({at(from), at(end), false});
      },
      behavior);
}

struct MatchParts {
  std::shared_ptr<const Matcher> matcher;
  bool invert = false;
  void operator()(std::string_view text, std::vector<Match>& out) const {
    size_t done = 0;
    for_each_match(*matcher, text, [&](size_t begin, size_t end) {
      if (begin > done) out.push_back({uint32_t(done), uint32_t(begin), invert});
      out.push_back({uint32_t(begin), uint32_t(end), !invert});
      done = end;
    });
    if (done < text.size()) out.push_back({uint32_t(done), uint32_t(text.size()), invert});
  }
};

// Matches isolated: the common case without the list between.
class SplitIsolated final : public PreTokenizer {
 public:
  explicit SplitIsolated(std::unique_ptr<Matcher> matcher) : matcher_(std::move(matcher)) {}
  void apply(Pieces& pieces) const override {
    std::vector<Pieces::Span> out;
    out.reserve(pieces.spans.size() + pieces.text.size() / 4);
    for (const auto& span : pieces.spans) {
      const std::string_view text = pieces.piece(span);
      size_t done = 0;
      auto add = [&](size_t b, size_t e) {
        if (b < e) out.push_back({span.begin + uint32_t(b), span.begin + uint32_t(e)});
      };
      for_each_match(*matcher_, text, [&](size_t begin, size_t end) {
        add(done, begin);
        add(begin, end);
        done = end;
      });
      add(done, text.size());
    }
    pieces.spans = std::move(out);
  }

 private:
  std::unique_ptr<Matcher> matcher_;
};

std::unique_ptr<PreTokenizer> make_split(std::unique_ptr<Matcher> matcher, SplitBehavior behavior,
                                         bool invert) {
  if (behavior == SplitBehavior::kIsolated)
    return std::make_unique<SplitIsolated>(std::move(matcher));
  return cut(MatchParts{std::move(matcher), invert}, behavior);
}

class Sequence final : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {}
  void apply(Pieces& pieces) const override {
    for (const auto& step : steps_) step->apply(pieces);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

// A step that rewrites each piece: rewrite(piece, first, out) appends its new text.
template <class Rewrite>
void rewrite_pieces(Pieces& pieces, Rewrite rewrite) {
  std::string text;
  text.reserve(pieces.text.size() + pieces.text.size() / 2 + 16);
  std::vector<Pieces::Span> spans;
  spans.reserve(pieces.spans.size());
  for (size_t i = 0; i < pieces.spans.size(); ++i) {
    const auto begin = uint32_t(text.size());
    rewrite(pieces.piece(pieces.spans[i]), i == 0, text);
    check(text.size() < UINT32_MAX, "text is too long to tokenize");
    if (text.size() > begin) spans.push_back({begin, uint32_t(text.size())});
  }
  pieces.storage = std::move(text);
  pieces.text = pieces.storage;
  pieces.spans = std::move(spans);
}

class ByteLevel final : public PreTokenizer {
 public:
  ByteLevel(bool prefix_space, bool use_regex, bool map_bytes)
      : prefix_space_(prefix_space), map_bytes_(map_bytes) {
    if (use_regex)
      split_ = make_split(make_scanner(patterns::kGpt2), SplitBehavior::kIsolated, false);
  }
  void apply(Pieces& pieces) const override {
    if (prefix_space_) {
      rewrite_pieces(pieces, [](std::string_view piece, bool, std::string& out) {
        if (piece[0] != ' ') out += ' ';
        out += piece;
      });
    }
    if (split_) split_->apply(pieces);
    if (map_bytes_) {
      rewrite_pieces(pieces, [](std::string_view piece, bool, std::string& out) {
        out += byte_alphabet::encode(piece);
      });
    }
  }

 private:
  bool prefix_space_, map_bytes_;
  std::unique_ptr<PreTokenizer> split_;
};

enum class PrependScheme { kFirst, kNever, kAlways };

class Metaspace final : public PreTokenizer {
 public:
  Metaspace(std::string replacement, PrependScheme scheme, bool split)
      : replacement_(std::move(replacement)), scheme_(scheme) {
    if (split)
      split_ =
          make_split(make_literal_matcher(replacement_), SplitBehavior::kMergedWithNext, false);
  }
  void apply(Pieces& pieces) const override {
    rewrite_pieces(pieces, [&](std::string_view piece, bool first, std::string& out) {
      const bool marked = piece[0] == ' ' || piece.substr(0, replacement_.size()) == replacement_;
      const bool prepend = scheme_ == PrependScheme::kAlways ||
                           (scheme_ == PrependScheme::kFirst && first && pieces.at_start);
      if (prepend && !marked) out += replacement_;
      for (char c : piece) {
        if (c == ' ') {
          out += replacement_;
        } else {
          out += c;
        }
      }
    });
    if (split_) split_->apply(pieces);
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  std::unique_ptr<PreTokenizer> split_;
};

std::unique_ptr<PreTokenizer> make_metaspace(const Json& config) {
  const auto replacement = json_get(config, "replacement", std::string("\xE2\x96\x81"));
  check(!replacement.empty() && unicode::length(replacement[0]) == replacement.size(),
        "pre_tokenizer Metaspace: the replacement '{}' is not one character", replacement);
  auto scheme = json_get(config, "prepend_scheme", std::string("always"));
  if (!json_get(config, "add_prefix_space", true)) scheme = "never";
  check(scheme == "always" || scheme == "never" || scheme == "first",
        "pre_tokenizer Metaspace: unknown prepend_scheme '{}'", scheme);
  return std::make_unique<Metaspace>(replacement,
                                     scheme == "always"  ? PrependScheme::kAlways
                                     : scheme == "first" ? PrependScheme::kFirst
                                                         : PrependScheme::kNever,
                                     json_get(config, "split", true));
}

// Runs of word characters and runs of other visible ones; white space goes.
class Whitespace final : public PreTokenizer {
 public:
  void apply(Pieces& pieces) const override {
    std::vector<Pieces::Span> out;
    auto kind = [](uint32_t c) {
      return flags(c) & unicode::kRustWord ? 1 : flags(c) & unicode::kWhite ? 0 : 2;
    };
    for (const auto& span : pieces.spans) {
      const char* base = pieces.text.data();
      const char* p = base + span.begin;
      const char* end = base + span.end;
      while (p < end) {
        const char* begin = p;
        const int k = kind(unicode::next(p));
        while (p < end) {
          const char* q = p;
          if (kind(unicode::next(q)) != k) break;
          p = q;
        }
        if (k != 0) out.push_back({uint32_t(begin - base), uint32_t(p - base)});
      }
    }
    pieces.at_start = pieces.at_start && !out.empty() && out[0].begin == 0;
    pieces.spans = std::move(out);
  }
};

class FixedLength final : public PreTokenizer {
 public:
  explicit FixedLength(int64_t length) : length_(length) {}
  void apply(Pieces& pieces) const override {
    std::vector<Pieces::Span> out;
    for (const auto& span : pieces.spans) {
      uint32_t i = span.begin;
      while (i < span.end) {
        const uint32_t begin = i;
        for (int64_t n = 0; n < length_ && i < span.end; ++n)
          i += uint32_t(unicode::length(pieces.text[i]));
        out.push_back({begin, i});
      }
    }
    pieces.spans = std::move(out);
  }

 private:
  int64_t length_;
};

std::unique_ptr<PreTokenizer> make_split_from(const Json& config) {
  const Json pattern = config.value("pattern", Json());
  check(pattern.is_object(), "pre_tokenizer Split has no pattern");
  const auto regex = json_get(pattern, "Regex", std::string());
  const auto literal = json_get(pattern, "String", std::string());
  check(!regex.empty() || !literal.empty(), "pre_tokenizer Split has an empty pattern");
  return make_split(regex.empty() ? make_literal_matcher(literal) : make_matcher(regex),
                    behavior_of(config, "Isolated"), json_get(config, "invert", false));
}

}  // namespace

std::unique_ptr<PreTokenizer> make_split_sequence(const std::vector<std::string>& patterns) {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  for (const auto& pattern : patterns) {
    steps.push_back(make_split(make_matcher(pattern), SplitBehavior::kIsolated, false));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

std::unique_ptr<PreTokenizer> make_pretokenizer(const Json& config, bool* byte_level) {
  if (config.is_null()) return nullptr;
  check(config.is_object(), "pre_tokenizer is not an object");
  const auto type = json_get(config, "type", std::string());
  if (type == "Sequence") {
    std::vector<std::unique_ptr<PreTokenizer>> steps;
    const Json list = config.value("pretokenizers", Json::array());
    for (size_t i = 0; i < list.size(); ++i) {
      auto step = make_pretokenizer(list[i], i + 1 == list.size() ? byte_level : nullptr);
      if (step) steps.push_back(std::move(step));
    }
    return std::make_unique<Sequence>(std::move(steps));
  }
  if (type == "Split") return make_split_from(config);
  if (type == "ByteLevel") {
    if (byte_level) *byte_level = true;
    return std::make_unique<ByteLevel>(json_get(config, "add_prefix_space", true),
                                       json_get(config, "use_regex", true), byte_level == nullptr);
  }
  if (type == "Metaspace") return make_metaspace(config);
  if (type == "Digits") {
    return cut_at([](uint32_t c) { return bool(flags(c) & unicode::kRustNumeric); },
                  json_get(config, "individual_digits", false) ? SplitBehavior::kIsolated
                                                               : SplitBehavior::kContiguous);
  }
  const auto is_space = [](uint32_t c) { return bool(flags(c) & unicode::kWhite); };
  const auto is_punct = [](uint32_t c) { return bool(flags(c) & unicode::kBertPunct); };
  if (type == "Whitespace") return std::make_unique<Whitespace>();
  if (type == "WhitespaceSplit") return cut_at(is_space, SplitBehavior::kRemoved);
  if (type == "Punctuation") return cut_at(is_punct, behavior_of(config, "Isolated"));
  if (type == "BertPreTokenizer") {
    std::vector<std::unique_ptr<PreTokenizer>> steps;
    steps.push_back(cut_at(is_space, SplitBehavior::kRemoved));
    steps.push_back(cut_at(is_punct, SplitBehavior::kIsolated));
    return std::make_unique<Sequence>(std::move(steps));
  }
  if (type == "CharDelimiterSplit") {
    const auto delimiter = json_get(config, "delimiter", std::string());
    check(!delimiter.empty(), "pre_tokenizer CharDelimiterSplit has no delimiter");
    return make_split(make_literal_matcher(delimiter), SplitBehavior::kRemoved, false);
  }
  if (type == "FixedLength") {
    const auto length = json_get(config, "length", int64_t{5});
    check(length > 0, "pre_tokenizer FixedLength: length {}", length);
    return std::make_unique<FixedLength>(length);
  }
  fail("pre_tokenizer type '{}' is not supported", type);
}

}  // namespace reft
