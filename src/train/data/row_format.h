// From the rows of the usual data sets to one type of example. The format is told from the columns:
//
// | format | columns |
// | text | text |
// | alpaca | instruction, output; input, system, history, tools if there are |
// | sharegpt | conversations of {from, value}; system, tools if there are |
// | messages | messages of {role, content, tool_calls …}; system, tools if there are |
// | prompt-completion | prompt, completion: both texts, or both lists of messages |
// | preference | chosen, rejected: texts, messages or lists of messages, beside the columns of one
// | |            | of the above that give the prompt (none: the messages that both begin with) | |
// tagged | label (or kto_tag) beside the columns of a conversation |
//
// Columns that a format does not know are ignored. Names after LLaMA-Factory and TRL.
#pragma once

#include <map>
#include <string>

#include "train/data/row_reader.h"

namespace reft {

struct Example {
  enum class Kind {
    kText,    // `text`, trained as a whole
    kChat,    // `messages`
    kPair,    // `messages`, then `chosen` or `rejected`
    kTagged,  // `messages`, of which the last is the answer, good or not: `desirable`
  };
  Kind kind = Kind::kText;
  std::string text;
  // OpenAI messages with string contents; arguments of tool calls are objects. kChat and kTagged
  // end with the assistant, kPair with anyone else.
  Json messages = Json::array();
  Json chosen;
  Json rejected;  // lists of messages, the last by the assistant
  Json tools;     // list of tools, or null
  bool desirable = true;
  std::string place;
  uint64_t row_id = 0;  // the same in every run: which file of the set, which row of the file

  int64_t num_bytes() const;  // of its texts, about
  Json to_json() const;
  static Example from_json(const Json& json);
};

// Names of columns and of what is inside a conversation, where they are not the usual ones: the
// `columns` and `tags` of a dataset_info.json. Known names: prompt, query, response, history,
// system, tools, messages, chosen, rejected, kto_tag; role_tag, content_tag, user_tag,
// assistant_tag, observation_tag, function_tag, system_tag.
using ColumnNames = std::map<std::string, std::string>;

class RowFormat {
 public:
  // Tells the format from the columns of one row. Throws RowError naming the place, the columns and
  // what would be understood.
  RowFormat(const Row& row, ColumnNames names);

  // Throws RowError naming place and field.
  Example read(const Row& row) const;
  // "alpaca (instruction, input, output)".
  const std::string& description() const { return description_; }

 private:
  enum class Prompt { kNone, kText, kAlpaca, kConversation, kPrompt };

  // A column by its usual name; null when the row has none.
  const Json* find(const Json& row, const char* name) const;
  std::string column(const char* name) const;
  // Fills messages and tools with what comes before the answer, and the answer where it is part of
  // the same columns.
  void read_prompt(const Row& row, Example* example) const;
  void read_alpaca(const Row& row, Example* example) const;
  void read_pair(const Row& row, Example* example) const;

  ColumnNames names_;
  Prompt prompt_ = Prompt::kNone;
  Example::Kind kind_ = Example::Kind::kText;
  std::string description_;
};

}  // namespace reft
