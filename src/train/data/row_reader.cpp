#include "train/data/row_reader.h"

#include <fnmatch.h>

#include <algorithm>
#include <filesystem>

#include "train/data/row_readers.h"

namespace reft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kKnownKinds = ".json, .jsonl, .csv, .tsv, .txt or .parquet";

// ".jsonl" of "a.jsonl.gz"; ".ndjson" and ".text" by their usual names; empty: not a data file.
std::string kind_of(const std::string& path) {
  fs::path name = path;
  const std::string compression = name.extension();
  const bool compressed = compression == ".gz" || compression == ".zst";
  if (compressed) name = name.stem();
  const std::string extension = name.extension();
  if (extension == ".ndjson") return ".jsonl";
  if (extension == ".text") return ".txt";
  if (extension == ".parquet" && compressed) return "";
  for (const char* kind : {".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet"}) {
    if (extension == kind) return kind;
  }
  return "";
}

bool is_left_out(const fs::path& path) {
  const std::string name = path.filename();
  return name.starts_with('.') || name == "dataset_info.json" || name == "dataset_infos.json";
}

// All of a set must be of one kind, or a folder's licence would become training text.
void check_one_kind(const std::vector<std::string>& files, const std::string& path) {
  check(!files.empty(), "'{}' holds no data files ({})", path, kKnownKinds);
  const std::string kind = kind_of(files.front());
  for (const std::string& file : files) {
    check(kind_of(file) == kind,
          "'{}' holds files of several kinds ('{}' and '{}'): name those that are meant, as in "
          "'{}/*{}'",
          path, files.front(), file, path, kind);
  }
}

}  // namespace

TextUnit parse_text_unit(const std::string& name) {
  if (name == "line") return TextUnit::kLine;
  if (name == "paragraph") return TextUnit::kParagraph;
  if (name == "document") return TextUnit::kDocument;
  fail("'{}' is not a part of a text file: line, paragraph or document", name);
}

std::unique_ptr<RowReader> open_rows(const std::string& path, TextUnit unit) {
  const std::string kind = kind_of(path);
  check(!kind.empty(), "cannot tell from its name what kind of data '{}' is: it must end in {}",
        path, kKnownKinds);
  if (kind == ".json") return open_json_rows(path);
  if (kind == ".jsonl") return open_json_lines(path);
  if (kind == ".csv") return open_csv_rows(path, ',');
  if (kind == ".tsv") return open_csv_rows(path, '\t');
  if (kind == ".txt") return open_text_rows(path, unit);
  return open_parquet_rows(path);
}

std::vector<std::string> list_data_files(const std::string& path) {
  std::vector<std::string> files;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    for (auto it = fs::recursive_directory_iterator(
             path, fs::directory_options::follow_directory_symlink);
         it != fs::recursive_directory_iterator(); ++it) {
      if (is_left_out(it->path())) {
        it.disable_recursion_pending();
      } else if (it->is_regular_file() && !kind_of(it->path()).empty()) {
        files.push_back(it->path());
      }
    }
  } else if (fs::exists(path, error)) {
    return {path};
  } else {
    const fs::path pattern(path);
    const std::string name = pattern.filename();
    check(name.find_first_of("*?[") != std::string::npos, "'{}' does not exist", path);
    const fs::path folder = pattern.has_parent_path() ? pattern.parent_path() : fs::path(".");
    check(fs::is_directory(folder, error), "'{}' is not a folder", folder.string());
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      const std::string file = entry.path().filename();
      if (entry.is_regular_file() && ::fnmatch(name.c_str(), file.c_str(), 0) == 0)
        files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  check_one_kind(files, path);
  return files;
}

}  // namespace reft
