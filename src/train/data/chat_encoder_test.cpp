#include "train/data/chat_encoder.h"

#include <gmock/gmock.h>

#include "train/data/example_encoder.h"

namespace reft {
namespace {

using testing::HasSubstr;

std::string golden(const std::string& name) {
  return std::string(REFT_SOURCE_DIR) + "/tests/train/data/" + name;
}

const Tokenizer& tokenizer() {
  static const std::unique_ptr<Tokenizer> instance = load_tokenizer(golden(""));
  return *instance;
}

const Json& masks() {
  static const Json json = read_json_file(golden("masks.json"));
  return json;
}

std::vector<std::vector<size_t>> spans_of(const EncodedChat& chat) {
  std::vector<std::vector<size_t>> spans;
  for (const TokenSpan& answer : chat.answers) spans.push_back({answer.begin, answer.end});
  return spans;
}

Json get(const Json& object, const char* key, Json fallback) {
  return object.contains(key) ? object[key] : fallback;
}

EncodedChat encode_case(const Json& c, const std::string& chat_template) {
  const ChatEncoder encoder(chat_template, tokenizer(), get(c, "kwargs", Json::object()));
  return encoder.encode(c["messages"], get(c, "tools", nullptr));
}

// Ids and masks of transformers, from templates that mark the assistant's part.
TEST(ChatEncoder, MarkedTemplatesEqualTransformers) {
  for (size_t i = 0; i < masks()["cases"].size(); ++i) {
    const Json& c = masks()["cases"][i];
    const EncodedChat chat = encode_case(c, masks()["marked"][c["template"].get<std::string>()]);
    ASSERT_EQ(chat.ids, c["ids"].get<std::vector<int32_t>>()) << i << " " << c["messages"].dump();
    ASSERT_EQ(spans_of(chat), (c["spans"].get<std::vector<std::vector<size_t>>>()))
        << i << " " << c["messages"].dump();
  }
}

// The same from the built-in templates, which mark nothing.
TEST(ChatEncoder, PlainTemplatesEqualTransformers) {
  ASSERT_GE(masks()["cases"].size(), 200u);
  for (size_t i = 0; i < masks()["cases"].size(); ++i) {
    const Json& c = masks()["cases"][i];
    const EncodedChat chat = encode_case(c, resolve_chat_template(c["template"]));
    ASSERT_EQ(chat.ids, c["ids"].get<std::vector<int32_t>>()) << i << " " << c["messages"].dump();
    ASSERT_EQ(spans_of(chat), (c["spans"].get<std::vector<std::vector<size_t>>>()))
        << i << " " << c["template"] << c.value("kwargs", Json()).dump() << " "
        << c["messages"].dump();
  }
}

TEST(ChatEncoder, Trims) {
  int trimmed = 0;
  for (const Json& c : masks()["cases"]) {
    if (!c.contains("trimmed")) continue;
    const EncodedChat chat = encode_case(c, resolve_chat_template(c["template"]));
    for (const Json& t : c["trimmed"]) {
      EncoderOptions options;
      options.cutoff_len = t["cutoff_len"];
      options.mask_history = t["mask_history"];
      options.train_on_prompt = t["train_on_prompt"];
      const TrainSequence sequence = trim_chat(chat, options);
      ASSERT_EQ(sequence.ids, t["ids"].get<std::vector<int32_t>>()) << t.dump();
      std::vector<int32_t> labels;
      for (size_t i = 0; i < sequence.ids.size(); ++i) {
        labels.push_back(sequence.trained[i] ? sequence.ids[i] : -100);
      }
      ASSERT_EQ(labels, t["labels"].get<std::vector<int32_t>>()) << t.dump();
      ++trimmed;
    }
  }
  EXPECT_GE(trimmed, 100);
}

// The ids before an answer are those that the server would send the model, for every answer that
// the template shows the same way when it is the last.
TEST(ChatEncoder, PromptIsTheServersPrompt) {
  for (const char* name : {"chatml", "llama3", "qwen2.5"}) {
    const std::string text = resolve_chat_template(name);
    const ChatEncoder encoder(text, tokenizer());
    const Json messages = {{{"role", "system"}, {"content", "be kind"}},
                           {{"role", "user"}, {"content", "hello\n\n"}},
                           {{"role", "assistant"}, {"content", "world"}},
                           {{"role", "user"}, {"content", ""}},
                           {{"role", "assistant"}, {"content", "\nyes"}}};
    const EncodedChat chat = encoder.encode(messages, nullptr);
    ASSERT_EQ(chat.answers.size(), 2u);
    for (size_t turn : {0, 1}) {
      ChatTemplateInput input;
      input.messages =
          Json(messages.begin(), messages.begin() + 2 + 2 * static_cast<ptrdiff_t>(turn));
      input.bos_token = "<|begin_of_text|>";
      const std::vector<int32_t> prompt =
          tokenizer().encode(ChatTemplate(text).render(input), {.add_special_tokens = false});
      ASSERT_EQ(chat.answers[turn].begin, prompt.size()) << name;
      EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), chat.ids.begin())) << name;
      // The end of the turn is learnt too.
      EXPECT_TRUE(tokenizer().is_special(chat.ids[chat.answers[turn].end - 1])) << name;
    }
  }
}

TEST(ChatEncoder, Refuses) {
  const Json messages = {{{"role", "user"}, {"content", "a"}},
                         {{"role", "assistant"}, {"content", "b"}}};
  EXPECT_THROW(ChatEncoder("{% for %}", tokenizer()), Error);
  const ChatEncoder backwards(
      "{% for m in messages | reverse %}[{{ m.role }}]{{ m.content }}{% endfor %}", tokenizer());
  const Json twice = {messages[0], messages[1], messages[0], messages[1]};
  EXPECT_THROW(backwards.encode(twice, nullptr), Error);
  const ChatEncoder raising("{{ raise_exception('no ' ~ messages[0].content) }}", tokenizer());
  try {
    raising.encode(messages, nullptr);
    FAIL() << "the template raises";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("no a"));
  }
}

Example chat_example(const std::string& user, const std::string& answer) {
  Example example;
  example.kind = Example::Kind::kChat;
  example.messages = {{{"role", "user"}, {"content", user}},
                      {{"role", "assistant"}, {"content", answer}}};
  example.place = "f:1";
  return example;
}

std::string trained_text(const TrainSequence& sequence) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < sequence.ids.size(); ++i) {
    if (sequence.trained[i]) ids.push_back(sequence.ids[i]);
  }
  return tokenizer().decode(ids, false);
}

TEST(ExampleEncoder, Kinds) {
  const ChatEncoder chat(resolve_chat_template("chatml"), tokenizer());
  const ExampleEncoder sft(tokenizer(), &chat, {.stage = Stage::kSft, .cutoff_len = 16});
  EncodedExample out = sft.encode(chat_example("hello", "world"));
  ASSERT_EQ(out.sequences.size(), 1u);
  EXPECT_EQ(trained_text(out.sequences[0]), "world<|im_end|>");
  EXPECT_FALSE(out.truncated);
  out = sft.encode(chat_example("hello", std::string(100, 'x')));
  EXPECT_TRUE(out.truncated);
  EXPECT_EQ(out.sequences[0].size(), 16);
  const EncodedExample back = EncodedExample::from_json(Json::parse(out.to_json().dump()));
  EXPECT_EQ(back.to_json(), out.to_json());
  EXPECT_EQ(back.sequences[0].ids, out.sequences[0].ids);

  Example text;
  text.text = "hello world what is the name of this model please write a short list answer 日本語";
  const size_t tokens = tokenizer().encode(text.text, {.add_special_tokens = false}).size();
  out = sft.encode(text);
  size_t ids = 0;
  std::string joined;
  for (const TrainSequence& s : out.sequences) {
    ids += s.ids.size();
    EXPECT_LE(s.size(), 16);
    joined += trained_text(s);
  }
  EXPECT_EQ(ids, tokens + 1);
  EXPECT_EQ(joined, text.text + "<|im_end|>");
  const ExampleEncoder pretrain(tokenizer(), nullptr,
                                {.stage = Stage::kPretrain, .cutoff_len = 16});
  EXPECT_EQ(pretrain.encode(text).sequences[0].size(), static_cast<int64_t>(tokens + 1));
  EXPECT_TRUE(pretrain.encode(Example{}).empty());

  Example pair = chat_example("q", "");
  pair.kind = Example::Kind::kPair;
  pair.messages.erase(1);
  pair.chosen = {{{"role", "assistant"}, {"content", "good"}}};
  pair.rejected = {{{"role", "assistant"}, {"content", "bad one"}}};
  const ExampleEncoder dpo(tokenizer(), &chat, {.stage = Stage::kDpo, .cutoff_len = 64});
  out = dpo.encode(pair);
  ASSERT_EQ(out.sequences.size(), 2u);
  EXPECT_EQ(trained_text(out.sequences[0]), "good<|im_end|>");
  EXPECT_EQ(trained_text(out.sequences[1]), "bad one<|im_end|>");

  for (const auto& [encoder, example] :
       {std::pair{&sft, &pair}, {&dpo, &text}, {&pretrain, &pair}}) {
    try {
      encoder->encode(*example);
      FAIL() << "a row of another kind was taken";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("--stage"));
    }
  }
  EXPECT_THROW(ExampleEncoder(tokenizer(), &chat, {.train_on_prompt = true, .mask_history = true}),
               Error);
  EXPECT_THROW(ExampleEncoder(tokenizer(), &chat, {.cutoff_len = 1}), Error);
}

}  // namespace
}  // namespace reft
