#include "base/json_text.h"
#include "train/data/row_readers.h"

namespace reft {
namespace {

// Records of RFC 4180. A quote inside an unquoted field stands for itself, as in Python's reader.
class CsvRows : public RowReader {
 public:
  CsvRows(const std::string& path, char separator) : stream_(path), separator_(separator) {
    stream_.skip_byte_order_mark();
    check(read_record(&columns_), "{}: the file has no header", path);
    for (std::string& column : columns_) {
      column = to_valid_utf8(column);
      check(!column.empty(), "{}:1: the header has a column without a name", path);
    }
  }

  bool next(Row* row) override {
    skip_blank_lines();
    const int64_t line = line_;
    if (!read_record(&fields_)) return false;
    row->place = fmt::format("{}:{}", stream_.path(), line);
    if (fields_.size() != columns_.size()) {
      throw RowError(fmt::format("{}: the row has {} fields, the header has {}", row->place,
                                 fields_.size(), columns_.size()));
    }
    row->value = Json::object();
    for (size_t i = 0; i < columns_.size(); ++i) {
      row->value[columns_[i]] = to_valid_utf8(fields_[i]);
    }
    return true;
  }
  Json cursor() const override { return TextPlace{stream_.offset(), line_}.to_json(); }
  void seek(const Json& cursor) override {
    const TextPlace place = TextPlace::from_json(cursor);
    stream_.seek(place.offset);
    line_ = place.line;
  }

 private:
  void skip_blank_lines() {
    while (stream_.peek() == '\n' || stream_.peek() == '\r') {
      if (stream_.get() == '\n') ++line_;
    }
  }

  // False at the end of the file.
  bool read_record(std::vector<std::string>* fields) {
    if (stream_.peek() < 0) return false;
    fields->clear();
    while (read_field(&fields->emplace_back())) {
    }
    return true;
  }

  // Returns whether another field follows in the record.
  bool read_field(std::string* field) {
    if (stream_.peek() == '"') {
      stream_.get();
      read_quoted(field);
    }
    for (;;) {
      const int c = stream_.get();
      if (c == separator_) return true;
      if (c < 0) return false;
      if (c == '\r' && stream_.peek() == '\n') continue;
      if (c == '\n') {
        ++line_;
        return false;
      }
      *field += static_cast<char>(c);
    }
  }

  // Up to the closing quote; two quotes stand for one.
  void read_quoted(std::string* field) {
    const int64_t first_line = line_;
    for (;;) {
      const int c = stream_.get();
      check(c >= 0 && field->size() <= kMaxRowBytes,
            "{}:{}: a quoted field has no end: a quote is missing or the file is truncated",
            stream_.path(), first_line);
      if (c == '\n') ++line_;
      if (c == '"') {
        if (stream_.peek() != '"') return;
        stream_.get();
      }
      *field += static_cast<char>(c);
    }
  }

  ByteStream stream_;
  char separator_;
  int64_t line_ = 1;
  std::vector<std::string> columns_;
  std::vector<std::string> fields_;
};

}  // namespace

std::unique_ptr<RowReader> open_csv_rows(const std::string& path, char separator) {
  return std::make_unique<CsvRows>(path, separator);
}

}  // namespace reft
