// Walks JSON text without building values: a tokenizer.json holds half a million strings. Throws
// Error with the place of what is wrong. The values that are not walked are handed out as text for
// parse_json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reft {

class JsonScanner {
 public:
  // `text` is valid UTF-8 and outlives the scanner; `what` begins the messages.
  JsonScanner(std::string_view text, std::string what) : text_(text), what_(std::move(what)) {}

  // Steps over the next value and returns its text.
  std::string_view value();
  // Enters an object or array: to be followed by next_key/next_item until they return false.
  void enter(char open);
  // Moves to the next member's value. False at the closing brace.
  bool next_key(std::string_view& key);
  bool next_item();
  // The next value as a string; the view lives until the next call, or as long as the text without
  // escapes.
  std::string_view string();
  int64_t integer();
  double number();
  // First character of the next value.
  char peek();
  // Nothing but white space may follow.
  void end();

 private:
  [[noreturn]] void bad(const char* problem) const;
  void space() {
    while (i_ < text_.size() &&
           (text_[i_] == ' ' || text_[i_] == '\n' || text_[i_] == '\t' || text_[i_] == '\r'))
      ++i_;
  }
  void expect(char c);
  bool next(char close);
  uint32_t hex4();
  std::string_view escaped_string(size_t begin);

  std::string_view text_;
  std::string what_;
  size_t i_ = 0;
  bool first_ = false;  // just entered a container
  std::string buffers_[2];
  int buffer_ = 0;
};

}  // namespace reft
