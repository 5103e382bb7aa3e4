#include "train/data/row_format.h"

#include <gmock/gmock.h>

#include "train/data/dataset.h"
#include "train/data/test_files_test.h"

namespace reft {
namespace {

using testing::HasSubstr;

Row make_row(const char* json) { return {Json::parse(json), "f:1"}; }

// The example of a row in the format that the row itself shows, in short.
std::string read(const char* json, ColumnNames names = {}) {
  const Row row = make_row(json);
  const Example e = RowFormat(row, std::move(names)).read(row);
  auto list = [](const Json& messages) {
    std::string out;
    for (const Json& m : messages) {
      out += (out.empty() ? "" : " ") + m["role"].get<std::string>().substr(0, 1) + ":" +
             m["content"].get<std::string>();
      if (m.contains("tool_calls")) out += m["tool_calls"].dump();
      if (m.contains("reasoning_content"))
        out += "(" + m["reasoning_content"].get<std::string>() + ")";
    }
    return out;
  };
  std::string out;
  if (e.kind == Example::Kind::kText) return "text " + e.text;
  if (e.kind == Example::Kind::kChat) out = "chat " + list(e.messages);
  if (e.kind == Example::Kind::kTagged) {
    out = (e.desirable ? "good " : "bad ") + list(e.messages);
  }
  if (e.kind == Example::Kind::kPair) {
    out = "pair " + list(e.messages) + " | " + list(e.chosen) + " | " + list(e.rejected);
  }
  if (!e.tools.is_null()) out += " tools " + e.tools.dump();
  return out;
}

std::string refusal(const char* first, const char* row = nullptr) {
  try {
    const RowFormat format(make_row(first), {});
    format.read(make_row(row != nullptr ? row : first));
  } catch (const RowError& e) {
    return e.what();
  }
  return "no error";
}

TEST(RowFormat, Text) {
  EXPECT_EQ(read(R"({"id": 7, "text": "a\nb", "score": 0.5})"), "text a\nb");
  EXPECT_EQ(refusal(R"({"text": "a"})", R"({"text": 3})"),
            "f:1: 'text' must be a string, this is number");
  EXPECT_EQ(refusal(R"({"text": "a"})", R"({"txt": "b"})"), "f:1: 'text' is missing");
}

TEST(RowFormat, Alpaca) {
  EXPECT_EQ(read(R"({"instruction": "do", "input": "", "output": "done"})"), "chat u:do a:done");
  EXPECT_EQ(read(R"({"instruction": "do", "input": "it", "output": "done", "system": "S",
                     "history": [["q", "r"]]})"),
            "chat s:S u:q a:r u:do\nit a:done");
  EXPECT_EQ(read(R"({"q": "do", "a": "done"})", {{"prompt", "q"}, {"response", "a"}}),
            "chat u:do a:done");
  EXPECT_EQ(refusal(R"({"instruction": "do", "output": "x"})", R"({"instruction": "do"})"),
            "f:1: 'output' is missing");
  EXPECT_EQ(refusal(R"({"instruction": "do", "output": ["x"]})"),
            "f:1: 'output' must be a string, this is array");
  EXPECT_THAT(refusal(R"({"instruction": "do", "output": "x", "history": ["q"]})"),
              HasSubstr("'history[0]' must be a pair"));
}

TEST(RowFormat, ShareGpt) {
  EXPECT_EQ(
      read(R"({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"},
                     {"from": "human", "value": "left out"}], "system": "S", "tools": "[]"})"),
      "chat s:S u:hi a:yo");
  EXPECT_EQ(
      read(R"({"conversations": [{"from": "human", "value": "w"},
               {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
               {"from": "observation", "value": "5"}, {"from": "gpt", "value": "five"}],
               "tools": "[{\"name\": \"f\", \"parameters\": {}}]"})"),
      R"(chat u:w a:[{"type":"function","function":{"name":"f","arguments":{"x":1}}}] t:5 a:five)"
      R"( tools [{"type":"function","function":{"name":"f","parameters":{}}}])");
  EXPECT_EQ(refusal(R"({"conversations": [{"from": "human", "value": "hi"}]})"),
            "f:1: the conversation has no message of the assistant");
  EXPECT_EQ(refusal(R"({"conversations": [{"from": "someone", "value": "hi"}]})"),
            "f:1: 'conversations[0].from' has the unknown role 'someone'");
  EXPECT_EQ(refusal(R"({"conversations": [{"from": "human"}]})"),
            "f:1: 'conversations[0].content' is missing");
  EXPECT_THAT(refusal(R"({"conversations": [{"from": "function_call", "value": "{"}]})"),
              HasSubstr("'conversations[0].value' is not valid JSON"));
}

TEST(RowFormat, Messages) {
  EXPECT_EQ(read(R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content":
                     [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                     {"role": "assistant", "content": null, "reasoning": "why", "tool_calls":
                     [{"id": "1", "function": {"name": "f", "arguments": "{\"x\": 2}"}}]}]})"),
            "chat s:S u:a\nb a:"
            R"([{"id":"1","function":{"name":"f","arguments":{"x":2}},"type":"function"}](why))");
  EXPECT_EQ(
      read(
          R"({"messages": "[{\"role\": \"user\", \"content\": \"u\"}, {\"role\": \"assistant\", \"content\": \"a\"}]"})"),
      "chat u:u a:a");
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": 3}]})"),
              HasSubstr("'messages[0].content' must be a string"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"),
              HasSubstr("'messages[0].content[0]' must be a part of type 'text'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": "x"}], "images": ["a.jpg"]})"),
              HasSubstr("'images' is not empty"));
}

TEST(RowFormat, PromptCompletion) {
  EXPECT_EQ(read(R"({"prompt": "p", "completion": "c"})"), "chat u:p a:c");
  EXPECT_EQ(
      read(R"({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "p"}],
                     "completion": [{"role": "assistant", "content": "c"}]})"),
      "chat s:S u:p a:c");
}

TEST(RowFormat, Pairs) {
  EXPECT_EQ(read(R"({"instruction": "i", "input": "n", "chosen": "g", "rejected": "b"})"),
            "pair u:i\nn | a:g | a:b");
  EXPECT_EQ(read(R"({"conversations": [{"from": "human", "value": "h"}],
                     "chosen": {"from": "gpt", "value": "g"}, "rejected": {"from": "gpt", "value": "b"}})"),
            "pair u:h | a:g | a:b");
  EXPECT_EQ(read(R"({"prompt": "p", "chosen": "g", "rejected": "b"})"), "pair u:p | a:g | a:b");
  const std::string both =
      R"("chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "g"}],
         "rejected": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"}]})";
  EXPECT_EQ(read(("{" + both).c_str()), "pair u:p | a:g | a:b");
  EXPECT_EQ(read((R"({"prompt": "p", )" + both).c_str()), "pair u:p | a:g | a:b");
  EXPECT_EQ(refusal(R"({"prompt": "p", "chosen": "g", "rejected": "b"})",
                    R"({"prompt": "p", "chosen": "g"})"),
            "f:1: 'rejected' is missing");
  EXPECT_THAT(refusal(R"({"chosen": "g", "rejected": "b"})"), HasSubstr("no prompt"));
}

TEST(RowFormat, Tags) {
  EXPECT_EQ(
      read(
          R"({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}], "label": false})"),
      "bad u:u a:a");
  EXPECT_EQ(read(R"({"prompt": "p", "completion": "c", "label": "True"})"), "good u:p a:c");
  EXPECT_EQ(read(R"({"instruction": "p", "output": "c", "kto_tag": 1})"), "good u:p a:c");
  EXPECT_THAT(refusal(R"({"prompt": "p", "completion": "c", "label": "maybe"})"),
              HasSubstr("'label' must be true or false"));
}

TEST(RowFormat, Unknown) {
  EXPECT_THAT(refusal(R"({"question": "q", "answer": "a"})"),
              HasSubstr("f:1: the columns (question, answer) fit no known format"));
}

TEST(Dataset, Names) {
  TempFolder folder;
  const std::string info = folder.write("dataset_info.json", R"({
    "mine": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}, "num_samples": 2},
    "chats": {"file_name": "b.json", "formatting": "sharegpt", "columns": {"messages": "turns"},
              "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"}},
    "far": {"hf_hub_url": "x/y"}})");
  folder.write("a.json", R"([{"q": "1", "a": "2"}, {"q": "3", "a": "4"}, {"q": "5", "a": "6"}])");
  folder.write("b.json",
               R"([{"turns": [{"who": "me", "what": "hi"}, {"who": "it", "what": "yo"}]}])");
  DatasetSpec spec = parse_dataset("alpaca@/d/a.json#2.5");
  EXPECT_EQ(spec.name, "alpaca");
  EXPECT_EQ(spec.path, "/d/a.json");
  EXPECT_EQ(spec.weight, 2.5);
  spec = parse_dataset("/d/some#thing/");
  EXPECT_EQ(spec.name, "some#thing");
  EXPECT_EQ(spec.weight, std::nullopt);
  EXPECT_THROW(parse_dataset("a@/d#0"), Error);
  EXPECT_THROW(parse_dataset("@"), Error);
  EXPECT_THROW(parse_dataset("far", info), Error);

  Example example;
  DatasetRows mine(parse_dataset("mine#3", info), TextUnit::kLine, false, std::nullopt);
  EXPECT_EQ(mine.spec().weight, 3);
  int rows = 0;
  for (; mine.next(&example); ++rows) EXPECT_EQ(example.messages.size(), 2u);
  EXPECT_EQ(rows, 2);
  DatasetRows chats(parse_dataset("chats", info), TextUnit::kLine, false, std::nullopt);
  ASSERT_TRUE(chats.next(&example));
  EXPECT_EQ(example.messages[1], (Json{{"role", "assistant"}, {"content", "yo"}}));
}

TEST(Dataset, BadRows) {
  TempFolder folder;
  folder.write("s/a.jsonl", "{\"text\": \"1\"}\n{\"text\": 2}\n{bad\n{\"text\": \"4\"}\n");
  folder.write("s/b.jsonl", "{\"text\": \"5\"}\n");
  Example example;
  DatasetRows strict({"s", folder.path("s")}, TextUnit::kLine, false, std::nullopt);
  ASSERT_TRUE(strict.next(&example));
  try {
    strict.next(&example);
    FAIL() << "a bad row was taken";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("s/a.jsonl:2: 'text' must be a string"));
    EXPECT_THAT(e.what(), HasSubstr("--skip_bad_rows"));
  }
  DatasetRows lenient({"s", folder.path("s")}, TextUnit::kLine, true, std::nullopt);
  std::string texts;
  while (lenient.next(&example)) texts += example.text;
  EXPECT_EQ(texts, "145");
  EXPECT_EQ(lenient.counts().read, 5);
  EXPECT_EQ(lenient.counts().bad, 2);
}

// Saved at any row, another object goes on with the next one, through files in shuffled order.
TEST(Dataset, StateRestores) {
  TempFolder folder;
  for (int f = 0; f < 5; ++f) {
    std::string text;
    for (int i = 0; i <= f; ++i) text += fmt::format("{{\"text\": \"{}.{}\"}}\n", f, i);
    folder.write(fmt::format("s/{}.jsonl", f), text);
  }
  const DatasetSpec spec{"s", folder.path("s")};
  DatasetRows rows(spec, TextUnit::kLine, false, 7);
  std::vector<std::string> orders;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    rows.begin_epoch(epoch);
    Example example;
    std::string order;
    for (int i = 0;; ++i) {
      DatasetRows other(spec, TextUnit::kLine, false, 7);
      other.restore(Json::parse(rows.state().dump()));
      Example expected;
      const bool found = rows.next(&expected);
      ASSERT_EQ(other.next(&example), found);
      if (!found) {
        EXPECT_EQ(i, 15);
        break;
      }
      EXPECT_EQ(example.text, expected.text);
      order += example.text + " ";
    }
    orders.push_back(order);
  }
  EXPECT_NE(orders[0], orders[1]);
  folder.write("s/5.jsonl", "");
  DatasetRows changed(spec, TextUnit::kLine, false, 7);
  EXPECT_THROW(changed.restore(rows.state()), Error);
}

TEST(Dataset, SharedSets) {
  for (const auto& [name, format, count] :
       {std::tuple{"alpaca_en_demo.json", "alpaca (instruction, input, output)", 999},
        {"identity.json", "alpaca (instruction, input, output)", 91},
        {"glaive_toolcall_en_demo.json", "sharegpt (conversations, tools)", 300},
        {"dpo_en_demo.json", "preference, sharegpt (conversations, chosen, rejected)", 300},
        {"kto_en_demo.json", "tagged, messages (messages, label)", 300},
        {"c4_demo.jsonl", "text (text)", 300},
        {"wiki_demo.txt", "text (text)", 30}}) {
    const std::string path = shared_dataset(name);
    if (path.empty()) GTEST_SKIP() << "no ../shared/datasets beside the repository";
    DatasetRows rows({name, path}, TextUnit::kLine, false, std::nullopt);
    Example example;
    int seen = 0;
    while (rows.next(&example)) ++seen;
    EXPECT_EQ(rows.format(), format);
    EXPECT_EQ(seen, count) << name;
  }
}

}  // namespace
}  // namespace reft
