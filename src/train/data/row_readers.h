// The readers behind open_rows(), by kind of file.
#pragma once

#include "train/data/byte_stream.h"
#include "train/data/row_reader.h"

namespace reft {

std::unique_ptr<RowReader> open_json_rows(const std::string& path);
std::unique_ptr<RowReader> open_json_lines(const std::string& path);
std::unique_ptr<RowReader> open_csv_rows(const std::string& path, char separator);
std::unique_ptr<RowReader> open_text_rows(const std::string& path, TextUnit unit);

std::unique_ptr<RowReader> open_parquet_rows(const std::string& path);

// The place of readers of text: the next byte, and the number of the line it is in.
struct TextPlace {
  int64_t offset = 0;
  int64_t line = 1;

  Json to_json() const { return {{"offset", offset}, {"line", line}}; }
  static TextPlace from_json(const Json& json) {
    return {json.at("offset").get<int64_t>(), json.at("line").get<int64_t>()};
  }
};

}  // namespace reft
