// Rows of a data file, one after the other, each a JSON object. Memory does not grow with the file:
// a reader holds a row, and of Parquet a page of each column. One thread at a time.
//
// | extension | a row is |
// | .json | an element of the top-level array, or one of the values that follow each other |
// | .jsonl, .ndjson | a line (blank lines are passed over) |
// | .csv, .tsv | a record (RFC 4180) after the header; every value is a string |
// | .txt, .text | {"text": line}; see TextUnit |
// | .parquet | a row; structs become objects, lists arrays |
//
// All but Parquet may be followed by .gz or .zst. Bytes that are not UTF-8 become U+FFFD.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"

namespace reft {

// A row that cannot be used although the rows after it can; the message begins with its place.
class RowError : public Error {
 public:
  using Error::Error;
};

struct Row {
  Json value;
  std::string place;  // "data/a.jsonl:17", or "data/a.parquet: row 17"
};

// What of a text file is a row, as in `sample_by` of Hugging Face's text loader: a line without its
// line break; a paragraph, which ends at a blank line; or the whole file. Rows of white space only
// are passed over.
enum class TextUnit { kLine, kParagraph, kDocument };
// "line", "paragraph", "document"; throws Error on another name.
TextUnit parse_text_unit(const std::string& name);

class RowReader {
 public:
  virtual ~RowReader() = default;
  // False at the end. After a RowError the next call goes on with the row behind the bad one; after
  // another Error (unreadable, truncated, no end of a string in sight) there is nothing to read.
  virtual bool next(Row* row) = 0;
  // The place between two rows, for seek() of a reader of the same file.
  virtual Json cursor() const = 0;
  virtual void seek(const Json& cursor) = 0;
};

// Throws Error naming the file when it cannot be opened or its extension is none of the above.
std::unique_ptr<RowReader> open_rows(const std::string& path, TextUnit unit = TextUnit::kLine);

// The data files that `path` stands for: a file, a pattern whose last part holds `*`, `?` or
// `[…]`, or all data files below a folder in alphabetical order (hidden ones and dataset_info.json
// left out). Throws Error naming the path when there are none, or when a folder holds several kinds
// of files.
std::vector<std::string> list_data_files(const std::string& path);

}  // namespace reft
