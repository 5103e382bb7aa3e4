#include "base/json_text.h"
#include "train/data/row_readers.h"

namespace reft {
namespace {

bool is_blank(const std::string& text) {
  return text.find_first_not_of(" \t\r\n\f\v") == std::string::npos;
}

class TextRows : public RowReader {
 public:
  TextRows(const std::string& path, TextUnit unit) : stream_(path), unit_(unit) {
    stream_.skip_byte_order_mark();
  }

  bool next(Row* row) override {
    int64_t line = line_;
    if (!read_unit(&line)) return false;
    row->place = fmt::format("{}:{}", stream_.path(), line);
    row->value = Json{{"text", to_valid_utf8(text_)}};
    return true;
  }
  Json cursor() const override { return TextPlace{stream_.offset(), line_}.to_json(); }
  void seek(const Json& cursor) override {
    const TextPlace place = TextPlace::from_json(cursor);
    stream_.seek(place.offset);
    line_ = place.line;
  }

 private:
  // Fills text_ and the number of its first line.
  bool read_unit(int64_t* first_line) {
    text_.clear();
    std::string line;
    if (unit_ == TextUnit::kDocument) {
      *first_line = line_;
      for (int c = stream_.get(); c >= 0; c = stream_.get()) {
        text_ += static_cast<char>(c);
        check(text_.size() <= kMaxRowBytes, "'{}' is too large to be one document", stream_.path());
      }
      return !is_blank(text_);
    }
    while (stream_.read_line(&line)) {
      const int64_t number = line_++;
      if (is_blank(line)) {
        if (!text_.empty()) return true;
        continue;
      }
      if (text_.empty()) *first_line = number;
      if (!text_.empty()) text_ += '\n';
      text_ += line;
      if (unit_ == TextUnit::kLine) return true;
      check(text_.size() <= kMaxRowBytes, "{}:{}: a paragraph is larger than a row may be",
            stream_.path(), *first_line);
    }
    return !text_.empty();
  }

  ByteStream stream_;
  TextUnit unit_;
  std::string text_;
  int64_t line_ = 1;
};

}  // namespace

std::unique_ptr<RowReader> open_text_rows(const std::string& path, TextUnit unit) {
  return std::make_unique<TextRows>(path, unit);
}

}  // namespace reft
