// Conversations as data sets write them, in the form that chat templates read.
#pragma once

#include <string>

#include "train/data/row_format.h"

namespace reft {

// Says what is wrong with a row: "a.jsonl:3: 'messages[1].role' is missing".
[[noreturn]] void refuse_field(const std::string& place, const std::string& field,
                               const std::string& problem);

// One message, OpenAI's ({role, content}) or ShareGPT's ({from, value}); `names` holds tags.
// Throws RowError naming place and field.
Json read_message(const Json& message, const ColumnNames& names, const std::string& place,
                  const std::string& field);
// A list of them; a single one counts as a list. A column of text holds the list as JSON.
Json read_messages(const Json& messages, const ColumnNames& names, const std::string& place,
                   const std::string& field);
// A list of tools or of bare functions, or the JSON text of one; null or empty: null.
Json read_tools(const Json& tools, const std::string& place, const std::string& field);

Json make_message(const char* role, std::string content);

}  // namespace reft
