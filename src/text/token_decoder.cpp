#include "text/token_decoder.h"

#include <functional>

#include "base/check.h"
#include "text/scanner.h"
#include "text/token_model.h"
#include "text/unicode.h"

namespace reft {

namespace {
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
}

void Utf8Joiner::add(std::string_view bytes, std::string& out) {
  if (pending_.empty() && unicode::valid_prefix(bytes) == bytes.size()) {
    out += bytes;
    return;
  }
  pending_ += bytes;
  drain(out, false);
}

void Utf8Joiner::finish(std::string& out) { drain(out, true); }

void Utf8Joiner::drain(std::string& out, bool last) {
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const size_t good = unicode::valid_prefix(rest);
    out += rest.substr(0, good);
    rest.remove_prefix(good);
    if (rest.empty()) break;
    const auto bad = unicode::bad_part(rest);
    if (!bad.complete && !last) break;
    for (size_t i = 0; i < (each_byte_ ? bad.size : 1); ++i) out += kReplacement;
    rest.remove_prefix(bad.size);
  }
  pending_.erase(0, pending_.size() - rest.size());
}

namespace {

// A link of the chain. A token may arrive in several parts once an earlier link has joined tokens;
// `begins` tells the first part of a token.
class Link {
 public:
  virtual ~Link() = default;
  virtual void push(std::string_view part, bool begins) = 0;
  virtual void flush() { next->flush(); }
  Link* next = nullptr;
};

class Sink final : public Link {
 public:
  void push(std::string_view part, bool) override { *out += part; }
  void flush() override {}
  std::string* out = nullptr;
};

class JoinBySpace final : public Link {
 public:
  void push(std::string_view part, bool) override {
    if (!first_) next->push(" ", true);
    first_ = false;
    next->push(part, true);
  }

 private:
  bool first_ = true;
};

class Fuse final : public Link {
 public:
  void push(std::string_view part, bool) override {
    next->push(part, first_);
    first_ = false;
  }

 private:
  bool first_ = true;
};

class ByteLevelLink final : public Link {
 public:
  void push(std::string_view part, bool) override {
    const bool mapped = byte_alphabet::decode(part, bytes_);
    text_.clear();
    joiner_.add(mapped ? std::string_view(bytes_) : part, text_);
    emit();
  }
  void flush() override {
    text_.clear();
    joiner_.finish(text_);
    emit();
    next->flush();
  }

 private:
  void emit() {
    if (text_.empty()) return;
    next->push(text_, first_);
    first_ = false;
  }
  Utf8Joiner joiner_;
  std::string bytes_, text_;
  bool first_ = true;
};

int byte_of(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// Byte tokens <0x41>; `whole_runs` as in TokenDecoder::start.
class ByteFallback final : public Link {
 public:
  explicit ByteFallback(bool whole_runs) : whole_runs_(whole_runs) {}
  void push(std::string_view part, bool begins) override {
    const int byte = begins ? byte_of(part) : -1;
    if (byte < 0) {
      drain();
      next->push(part, begins);
      return;
    }
    const char c = char(byte);
    if (whole_runs_) {
      run_ += c;
      return;
    }
    text_.clear();
    joiner_.add({&c, 1}, text_);
    if (!text_.empty()) next->push(text_, true);
  }
  void flush() override {
    drain();
    next->flush();
  }

 private:
  void drain() {
    text_.clear();
    if (unicode::valid_prefix(run_) == run_.size()) {
      text_ = run_;
    } else {
      for (size_t i = 0; i < run_.size(); ++i) text_ += kReplacement;
    }
    run_.clear();
    joiner_.finish(text_);
    if (!text_.empty()) next->push(text_, true);
  }
  bool whole_runs_;
  std::string run_;
  Utf8Joiner joiner_{true};
  std::string text_;
};

class ReplaceLink final : public Link {
 public:
  // `hold`: tokens come joined and the pattern may reach over their parts, so wait for the end.
  ReplaceLink(std::shared_ptr<const Matcher> matcher, std::string content, bool hold)
      : matcher_(std::move(matcher)), content_(std::move(content)), hold_(hold) {}
  void push(std::string_view part, bool begins) override {
    if (hold_) {
      held_ += part;
      return;
    }
    next->push(replaced(part), begins);
  }
  void flush() override {
    if (hold_) next->push(replaced(held_), true);
    held_.clear();
    next->flush();
  }

 private:
  std::string replaced(std::string_view text) const {
    std::string out;
    size_t copied = 0;
    for_each_match(*matcher_, text, [&](size_t begin, size_t end) {
      out += text.substr(copied, begin - copied);
      out += content_;
      copied = end;
    });
    out += text.substr(copied);
    return out;
  }
  std::shared_ptr<const Matcher> matcher_;
  std::string content_;
  bool hold_;
  std::string held_;
};

// Takes up to `start` and `stop` of one character from the ends of each token.
class StripLink final : public Link {
 public:
  StripLink(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop), left_(start) {}
  void push(std::string_view part, bool begins) override {
    if (begins) {
      held_ = 0;  // what an earlier token held at its end is cut
      left_ = start_;
    }
    std::string out;
    for (size_t i = 0; i < part.size();) {
      const std::string_view c = part.substr(i, unicode::length(part[i]));
      i += c.size();
      const bool hit = c == content_;
      if (hit && left_ > 0) {
        --left_;
        continue;
      }
      left_ = 0;
      if (hit && held_ < stop_) {
        ++held_;
        continue;
      }
      if (hit) {
        out += c;
        continue;
      }
      for (; held_ > 0; --held_) out += content_;
      out += c;
    }
    next->push(out, begins);
  }

 private:
  std::string content_;
  int64_t start_, stop_;
  int64_t left_;
  int64_t held_ = 0;
};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t i = text.find(from); i != std::string::npos; i = text.find(from, i + to.size())) {
    text.replace(i, from.size(), to);
  }
}

class MetaspaceLink final : public Link {
 public:
  MetaspaceLink(std::string replacement, bool prepended)
      : replacement_(std::move(replacement)), prepended_(prepended) {}
  void push(std::string_view part, bool begins) override {
    std::string text(part);
    replace_all(text, replacement_, first_ && prepended_ ? "" : " ");
    first_ = false;
    next->push(text, begins);
  }

 private:
  std::string replacement_;
  bool prepended_;
  bool first_ = true;
};

class WordPieceLink final : public Link {
 public:
  WordPieceLink(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  void push(std::string_view part, bool begins) override {
    std::string text(part);
    if (!first_) {
      if (text.compare(0, prefix_.size(), prefix_) == 0) {
        text.erase(0, prefix_.size());
      } else {
        text.insert(0, " ");
      }
    }
    first_ = false;
    if (cleanup_) {
      static constexpr std::pair<std::string_view, std::string_view> kRules[] = {
          {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
          {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
          {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
      for (const auto& [from, to] : kRules) replace_all(text, from, to);
    }
    next->push(text, begins);
  }

 private:
  std::string prefix_;
  bool cleanup_;
  bool first_ = true;
};

// The end-of-word suffix is a space, but nothing at the very end.
class BpeSuffix final : public Link {
 public:
  explicit BpeSuffix(std::string suffix) : suffix_(std::move(suffix)) {}
  void push(std::string_view part, bool) override {
    release(" ");
    const size_t at = suffix_.empty() ? std::string_view::npos : part.find(suffix_);
    next->push(part.substr(0, at), true);
    if (at != std::string_view::npos) held_ = part.substr(at);
  }
  void flush() override {
    release("");
    next->flush();
  }

 private:
  void release(std::string_view to) {
    if (held_.empty()) return;
    replace_all(held_, suffix_, to);
    next->push(held_, false);
    held_.clear();
  }
  std::string suffix_;
  std::string held_;
};

using MakeLink = std::function<std::unique_ptr<Link>(bool whole_runs)>;

class Chain final : public TokenDecoder {
 public:
  std::unique_ptr<Stream> start(bool whole_runs) const override;
  bool byte_fallback() const override { return byte_fallback_; }
  bool byte_level() const override { return links_.size() == 1 && fused_ && byte_level_; }

  void add(const Json& config);

 private:
  std::vector<MakeLink> links_;
  bool fused_ = false;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
};

class ChainStream final : public TokenDecoder::Stream {
 public:
  ChainStream(const std::vector<MakeLink>& makers, bool whole_runs) {
    for (const auto& make : makers) links_.push_back(make(whole_runs));
    for (size_t i = 0; i < links_.size(); ++i) {
      links_[i]->next = i + 1 < links_.size() ? links_[i + 1].get() : &sink_;
    }
  }
  void add(std::string_view token, std::string& out) override {
    sink_.out = &out;
    first().push(token, true);
  }
  void finish(std::string& out) override {
    sink_.out = &out;
    first().flush();
  }

 private:
  Link& first() { return links_.empty() ? static_cast<Link&>(sink_) : *links_.front(); }
  std::vector<std::unique_ptr<Link>> links_;
  Sink sink_;
};

std::unique_ptr<TokenDecoder::Stream> Chain::start(bool whole_runs) const {
  return std::make_unique<ChainStream>(links_, whole_runs);
}

template <class T, class... Args>
MakeLink maker(Args... args) {
  return [=](bool) { return std::make_unique<T>(args...); };
}

void Chain::add(const Json& config) {
  if (config.is_null()) {
    links_.push_back(maker<JoinBySpace>());
    return;
  }
  check(config.is_object(), "decoder is not an object");
  const auto type = json_get(config, "type", std::string());
  if (type == "Sequence") {
    for (const Json& step : config.value("decoders", Json::array())) add(step);
  } else if (type == "ByteLevel") {
    links_.push_back(maker<ByteLevelLink>());
    fused_ = byte_level_ = true;
  } else if (type == "ByteFallback") {
    links_.push_back([](bool whole_runs) { return std::make_unique<ByteFallback>(whole_runs); });
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    links_.push_back(maker<Fuse>());
    fused_ = true;
  } else if (type == "Replace") {
    const Json pattern = config.value("pattern", Json());
    check(pattern.is_object(), "decoder Replace has no pattern");
    const auto regex = json_get(pattern, "Regex", std::string());
    const auto literal = json_get(pattern, "String", std::string());
    const bool single = !literal.empty() && unicode::length(literal[0]) == literal.size();
    std::shared_ptr<const Matcher> matcher =
        regex.empty() ? make_literal_matcher(literal) : make_matcher(regex);
    links_.push_back(
        maker<ReplaceLink>(matcher, json_get(config, "content", std::string()), fused_ && !single));
  } else if (type == "Strip") {
    const auto content = json_get(config, "content", std::string(" "));
    links_.push_back(maker<StripLink>(content, json_get(config, "start", int64_t{0}),
                                      json_get(config, "stop", int64_t{0})));
  } else if (type == "Metaspace") {
    const bool prepended = json_get(config, "prepend_scheme", std::string("always")) != "never" &&
                           json_get(config, "add_prefix_space", true);
    const auto replacement = json_get(config, "replacement", std::string("\xE2\x96\x81"));
    check(!replacement.empty(), "decoder Metaspace: empty replacement");
    links_.push_back(maker<MetaspaceLink>(replacement, prepended));
  } else if (type == "WordPiece") {
    links_.push_back(maker<WordPieceLink>(json_get(config, "prefix", std::string("##")),
                                          json_get(config, "cleanup", true)));
  } else if (type == "BPEDecoder") {
    links_.push_back(maker<BpeSuffix>(json_get(config, "suffix", std::string("</w>"))));
  } else {
    fail("decoder type '{}' is not supported", type);
  }
}

}  // namespace

std::unique_ptr<TokenDecoder> make_token_decoder(const Json& config) {
  auto chain = std::make_unique<Chain>();
  chain->add(config);
  return chain;
}

}  // namespace reft
