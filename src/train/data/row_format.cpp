#include "train/data/row_format.h"

#include <algorithm>
#include <vector>

#include "train/data/conversation.h"

namespace reft {
namespace {

bool has_value(const Json* column) { return column != nullptr && !column->is_null(); }

const std::string& read_text(const Json* value, const std::string& place,
                             const std::string& field) {
  if (value == nullptr) refuse_field(place, field, "is missing");
  if (!value->is_string()) {
    refuse_field(place, field, fmt::format("must be a string, this is {}", value->type_name()));
  }
  return value->get_ref<const std::string&>();
}

bool read_label(const Json& value, const std::string& place, const std::string& field) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer() && (value == 0 || value == 1)) return value == 1;
  if (value == "true" || value == "True" || value == "1") return true;
  if (value == "false" || value == "False" || value == "0") return false;
  refuse_field(place, field, "must be true or false");
}

void check_last_is_assistant(const Json& messages, const std::string& place,
                             const std::string& field) {
  if (messages.empty() || messages.back()["role"] != "assistant") {
    refuse_field(place, field, "must end with a message of the assistant");
  }
}

// What comes behind the assistant's last message cannot be learnt from.
void drop_unanswered(Json* messages, const std::string& place) {
  while (!messages->empty() && messages->back()["role"] != "assistant") {
    messages->erase(messages->size() - 1);
  }
  if (messages->empty())
    throw RowError(place + ": the conversation has no message of the assistant");
}

}  // namespace

int64_t Example::num_bytes() const {
  size_t bytes = text.size() + 64;
  for (const Json* list : {&messages, &chosen, &rejected}) {
    for (const Json& message : *list) {
      bytes += message["content"].get_ref<const std::string&>().size() + 64;
    }
  }
  return static_cast<int64_t>(bytes);
}

Json Example::to_json() const {
  return {{"kind", static_cast<int>(kind)},
          {"text", text},
          {"messages", messages},
          {"chosen", chosen},
          {"rejected", rejected},
          {"tools", tools},
          {"desirable", desirable},
          {"place", place},
          {"row_id", row_id}};
}

Example Example::from_json(const Json& json) {
  Example out;
  out.kind = static_cast<Kind>(json.at("kind").get<int>());
  out.text = json.at("text").get<std::string>();
  out.messages = json.at("messages");
  out.chosen = json.at("chosen");
  out.rejected = json.at("rejected");
  out.tools = json.at("tools");
  out.desirable = json.at("desirable").get<bool>();
  out.place = json.at("place").get<std::string>();
  out.row_id = json.at("row_id").get<uint64_t>();
  return out;
}

std::string RowFormat::column(const char* name) const {
  const auto it = names_.find(name);
  if (it != names_.end()) return it->second;
  const std::string_view usual = name;
  if (usual == "prompt") return "instruction";
  if (usual == "query") return "input";
  if (usual == "response") return "output";
  return name;
}

const Json* RowFormat::find(const Json& row, const char* name) const {
  const auto it = row.find(column(name));
  return it == row.end() ? nullptr : &*it;
}

RowFormat::RowFormat(const Row& row, ColumnNames names) : names_(std::move(names)) {
  const Json& value = row.value;
  // The usual names of columns that have several.
  auto choose = [&](const char* name, std::initializer_list<const char*> usual) {
    for (const char* other : usual) {
      if (!names_.contains(name) && value.contains(other)) names_[name] = other;
    }
  };
  choose("messages", {"messages", "conversations", "conversation"});
  choose("kto_tag", {"kto_tag", "label"});
  const bool mapped = names_.contains("prompt") || names_.contains("response");
  const bool pair = has_value(find(value, "chosen")) && has_value(find(value, "rejected"));
  std::string name;
  std::vector<std::string> used;
  auto use = [&](std::initializer_list<const char*> columns) {
    for (const char* c : columns) {
      if (find(value, c) != nullptr) used.push_back(column(c));
    }
  };
  if (find(value, "messages") != nullptr) {
    prompt_ = Prompt::kConversation;
    name = column("messages").starts_with("conversation") ? "sharegpt" : "messages";
    use({"messages", "system", "tools"});
  } else if (find(value, "prompt") != nullptr && (pair || find(value, "response") != nullptr)) {
    prompt_ = Prompt::kAlpaca;
    name = "alpaca";
    use({"system", "history", "prompt", "query"});
    if (!pair) use({"response"});
    use({"tools"});
  } else if (!mapped && value.contains("prompt") && (pair || value.contains("completion"))) {
    prompt_ = Prompt::kPrompt;
    name = "prompt-completion";
    used = {"prompt"};
    if (!pair) used.push_back("completion");
    use({"system", "tools"});
  } else if (!mapped && !pair && value.contains("text")) {
    prompt_ = Prompt::kText;
    name = "text";
    used = {"text"};
  } else if (pair) {
    name = "messages";
  } else {
    std::string columns;
    for (const auto& [key, _] : value.items()) columns += (columns.empty() ? "" : ", ") + key;
    throw RowError(fmt::format(
        "{}: the columns ({}) fit no known format: text; instruction and output; conversations; "
        "messages; prompt and completion; chosen and rejected. --dataset_info names others",
        row.place, columns));
  }
  if (prompt_ != Prompt::kText) kind_ = Example::Kind::kChat;
  if (pair) {
    kind_ = Example::Kind::kPair;
    name = "preference, " + name;
    use({"chosen", "rejected"});
  } else if (prompt_ != Prompt::kText && find(value, "kto_tag") != nullptr) {
    kind_ = Example::Kind::kTagged;
    name = "tagged, " + name;
    use({"kto_tag"});
  }
  description_ = fmt::format("{} (", name);
  for (size_t i = 0; i < used.size(); ++i) description_ += (i > 0 ? ", " : "") + used[i];
  description_ += ")";
}

Example RowFormat::read(const Row& row) const {
  for (const char* media : {"images", "image", "videos", "audios"}) {
    const auto it = row.value.find(media);
    if (it != row.value.end() && !it->is_null() && !it->empty()) {
      refuse_field(row.place, media, "is not empty: only text can be trained on");
    }
  }
  Example example;
  example.kind = kind_;
  example.place = row.place;
  if (prompt_ == Prompt::kText) {
    const auto text = row.value.find("text");
    example.text = read_text(text == row.value.end() ? nullptr : &*text, row.place, "text");
    return example;
  }
  read_prompt(row, &example);
  if (const Json* system = find(row.value, "system"); has_value(system)) {
    const std::string& text = read_text(system, row.place, column("system"));
    if (!text.empty())
      example.messages.insert(example.messages.begin(), make_message("system", text));
  }
  if (const Json* tools = find(row.value, "tools"); has_value(tools)) {
    example.tools = read_tools(*tools, row.place, column("tools"));
  }
  if (kind_ == Example::Kind::kPair) {
    read_pair(row, &example);
    return example;
  }
  drop_unanswered(&example.messages, row.place);
  if (kind_ == Example::Kind::kTagged) {
    const Json* label = find(row.value, "kto_tag");
    if (!has_value(label)) refuse_field(row.place, column("kto_tag"), "is missing");
    example.desirable = read_label(*label, row.place, column("kto_tag"));
  }
  return example;
}

void RowFormat::read_prompt(const Row& row, Example* example) const {
  const Json& value = row.value;
  if (prompt_ == Prompt::kAlpaca) return read_alpaca(row, example);
  if (prompt_ == Prompt::kConversation) {
    const Json* messages = find(value, "messages");
    if (messages == nullptr) refuse_field(row.place, column("messages"), "is missing");
    example->messages = read_messages(*messages, names_, row.place, column("messages"));
    return;
  }
  if (prompt_ != Prompt::kPrompt) return;
  for (const auto& [name, role] : {std::pair{"prompt", "user"}, {"completion", "assistant"}}) {
    if (kind_ == Example::Kind::kPair && std::string_view(name) == "completion") break;
    const auto it = value.find(name);
    if (it == value.end()) refuse_field(row.place, name, "is missing");
    if (it->is_string()) {
      example->messages.push_back(make_message(role, it->get<std::string>()));
    } else {
      for (Json& message : read_messages(*it, names_, row.place, name)) {
        example->messages.push_back(std::move(message));
      }
    }
  }
}

void RowFormat::read_alpaca(const Row& row, Example* example) const {
  if (const Json* history = find(row.value, "history"); has_value(history)) {
    const std::string field = column("history");
    if (!history->is_array()) refuse_field(row.place, field, "must be a list of pairs of texts");
    for (size_t i = 0; i < history->size(); ++i) {
      const Json& turn = (*history)[i];
      const std::string name = fmt::format("{}[{}]", field, i);
      if (!turn.is_array() || turn.size() != 2) {
        refuse_field(row.place, name, "must be a pair of texts");
      }
      example->messages.push_back(make_message("user", read_text(&turn[0], row.place, name)));
      example->messages.push_back(make_message("assistant", read_text(&turn[1], row.place, name)));
    }
  }
  std::string user = read_text(find(row.value, "prompt"), row.place, column("prompt"));
  if (const Json* query = find(row.value, "query"); has_value(query)) {
    const std::string& text = read_text(query, row.place, column("query"));
    if (!user.empty() && !text.empty()) user += '\n';
    user += text;
  }
  example->messages.push_back(make_message("user", std::move(user)));
  if (kind_ == Example::Kind::kPair) return;
  example->messages.push_back(make_message(
      "assistant", read_text(find(row.value, "response"), row.place, column("response"))));
}

void RowFormat::read_pair(const Row& row, Example* example) const {
  for (auto [name, answer] :
       {std::pair{"chosen", &example->chosen}, {"rejected", &example->rejected}}) {
    const std::string field = column(name);
    const Json* value = find(row.value, name);
    if (!has_value(value)) refuse_field(row.place, field, "is missing");
    *answer = value->is_string()
                  ? Json::array({make_message("assistant", value->get<std::string>())})
                  : read_messages(*value, names_, row.place, field);
    check_last_is_assistant(*answer, row.place, field);
  }
  // Both may repeat the prompt, or be all there is of it.
  const size_t shortest = std::min(example->chosen.size(), example->rejected.size());
  size_t common = 0;
  while (common + 1 < shortest && example->chosen[common] == example->rejected[common]) ++common;
  const bool repeats =
      common >= example->messages.size() &&
      std::equal(example->messages.begin(), example->messages.end(), example->chosen.begin());
  if (repeats && common > 0) {
    example->messages =
        Json(example->chosen.begin(), example->chosen.begin() + static_cast<ptrdiff_t>(common));
    for (Json* answer : {&example->chosen, &example->rejected}) {
      *answer = Json(answer->begin() + static_cast<ptrdiff_t>(common), answer->end());
    }
  }
  if (example->messages.empty()) throw RowError(row.place + ": the pair has no prompt");
}

}  // namespace reft
