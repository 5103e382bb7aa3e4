#include "train/data/row_readers.h"

namespace reft {
namespace {

bool is_space(int c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

// A row must be an object: its keys are the columns.
Json parse_row(std::string_view text, const std::string& place) {
  Json value;
  try {
    value = parse_json(text, place);
  } catch (const Error& e) {
    throw RowError(e.what());
  }
  if (!value.is_object()) {
    throw RowError(fmt::format("{}: a row must be a JSON object, this is {} {}", place,
                               value.is_array() ? "an" : "a", value.type_name()));
  }
  return value;
}

class JsonLines : public RowReader {
 public:
  explicit JsonLines(const std::string& path) : stream_(path) { stream_.skip_byte_order_mark(); }

  bool next(Row* row) override {
    while (stream_.read_line(&text_)) {
      const int64_t line = line_++;
      if (text_.find_first_not_of(" \t\r") == std::string::npos) continue;
      row->place = fmt::format("{}:{}", stream_.path(), line);
      row->value = parse_row(text_, row->place);
      return true;
    }
    return false;
  }
  Json cursor() const override { return TextPlace{stream_.offset(), line_}.to_json(); }
  void seek(const Json& cursor) override {
    const TextPlace place = TextPlace::from_json(cursor);
    stream_.seek(place.offset);
    line_ = place.line;
  }

 private:
  ByteStream stream_;
  std::string text_;
  int64_t line_ = 1;
};

// The elements of one large array, or values that follow each other. Finds where a value ends by
// its brackets and strings alone, so that a value which is not valid JSON spoils no other.
class JsonRows : public RowReader {
 public:
  explicit JsonRows(const std::string& path) : stream_(path) { stream_.skip_byte_order_mark(); }

  bool next(Row* row) override {
    if (at_end_ || !go_to_value()) return false;
    row->place = fmt::format("{}:{}", stream_.path(), line_);
    read_value();
    row->value = parse_row(text_, row->place);
    return true;
  }
  Json cursor() const override {
    Json cursor = TextPlace{stream_.offset(), line_}.to_json();
    cursor["opened"] = opened_;
    cursor["in_array"] = in_array_;
    cursor["at_end"] = at_end_;
    return cursor;
  }
  void seek(const Json& cursor) override {
    const TextPlace place = TextPlace::from_json(cursor);
    stream_.seek(place.offset);
    line_ = place.line;
    opened_ = cursor.at("opened").get<bool>();
    in_array_ = cursor.at("in_array").get<bool>();
    at_end_ = cursor.at("at_end").get<bool>();
  }

 private:
  int get() {
    const int c = stream_.get();
    if (c == '\n') ++line_;
    return c;
  }
  [[noreturn]] void stop(std::string_view message) {
    at_end_ = true;
    fail("{}:{}: {}", stream_.path(), line_, message);
  }
  int skip_space() {
    while (is_space(stream_.peek())) get();
    return stream_.peek();
  }

  // Moves to the first byte of the next value; false behind the last one.
  bool go_to_value() {
    int c = skip_space();
    bool comma = false;
    if (!opened_) {
      opened_ = true;
      in_array_ = c == '[';
      if (in_array_) {
        get();
        c = skip_space();
        comma = true;  // none is needed before the first element
        if (c == ',') stop("expected a value, got ','");
      }
    } else if (in_array_ && c == ',') {
      get();
      c = skip_space();
      comma = true;
      if (c == ']') stop("the array ends in a comma");
    }
    if (in_array_ && c == ']') {
      get();
      if (skip_space() >= 0) stop("there is something behind the array");
      at_end_ = true;
      return false;
    }
    if (c < 0) {
      if (in_array_) stop("the file ends inside the array: it is truncated");
      at_end_ = true;
      return false;
    }
    if (in_array_ && !comma) stop("expected ',' or ']' behind a value");
    return true;
  }

  void read_value() {
    text_.clear();
    int depth = 0;
    bool in_string = false;
    for (;;) {
      const int c = stream_.peek();
      if (c < 0) {
        if (depth == 0 && !in_string) return;
        stop("the file ends inside a value: it is truncated");
      }
      if (!in_string && depth == 0 && !text_.empty() &&
          (c == ',' || c == ']' || is_space(c) || text_.back() == '}' || text_.back() == ']')) {
        return;
      }
      text_ += static_cast<char>(get());
      if (text_.size() > kMaxRowBytes) stop("a value is larger than a row may be");
      if (in_string) {
        if (c == '\\') {
          if (stream_.peek() >= 0) text_ += static_cast<char>(get());
        } else if (c == '"') {
          in_string = false;
        }
      } else if (c == '"') {
        in_string = true;
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if ((c == '}' || c == ']') && --depth < 0) {
        stop("a bracket is closed that was not opened");
      }
    }
  }

  ByteStream stream_;
  std::string text_;
  int64_t line_ = 1;
  bool opened_ = false;
  bool in_array_ = false;
  bool at_end_ = false;
};

}  // namespace

std::unique_ptr<RowReader> open_json_rows(const std::string& path) {
  return std::make_unique<JsonRows>(path);
}

std::unique_ptr<RowReader> open_json_lines(const std::string& path) {
  return std::make_unique<JsonLines>(path);
}

}  // namespace reft
