// layers: base tensor ops backend_cpu nn models text engine train
// Data files of every kind: the first byte chooses which.
#include <sys/mman.h>
#include <unistd.h>

#include "train/data/row_format.h"
#include "train/data/row_readers.h"

namespace {

std::unique_ptr<reft::RowReader> open_kind(uint8_t kind, const std::string& path) {
  switch (kind % 7) {
    case 0:
      return reft::open_json_rows(path);
    case 1:
      return reft::open_json_lines(path);
    case 2:
      return reft::open_csv_rows(path, ',');
    case 3:
      return reft::open_text_rows(path, reft::TextUnit::kLine);
    case 4:
      return reft::open_text_rows(path, reft::TextUnit::kParagraph);
    default:
      return reft::open_parquet_rows(path);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const int file = ::memfd_create("rows", 0);
  if (file < 0 || ::write(file, data + 1, size - 1) != static_cast<ssize_t>(size - 1))
    __builtin_trap();
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  try {
    auto reader = open_kind(data[0], path);
    for (int rows = 0; rows < 1000; ++rows) {
      reft::Row row;
      try {
        if (!reader->next(&row)) break;
        reft::RowFormat(row, {}).read(row).to_json().dump();
        if (rows == 3) reader->seek(reader->cursor());
      } catch (const reft::RowError&) {
      }
    }
  } catch (const reft::Error&) {
  }
  ::close(file);
  return 0;
}
