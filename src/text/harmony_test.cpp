#include "text/harmony.h"

#include <gtest/gtest.h>

#include "base/error_of_test.h"

namespace reft {
namespace {

constexpr const char* kSpecial[] = {"<|start|>",     "<|end|>",    "<|message|>", "<|channel|>",
                                    "<|constrain|>", "<|return|>", "<|call|>"};

// Ids 0 … 255 are bytes, the next ones those of the format (without the last `missing` of them).
class Bytes final : public Tokenizer {
 public:
  explicit Bytes(size_t missing = 0) : count_(std::size(kSpecial) - missing) {}

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions&) const override {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      size_t length = 1;
      int32_t id = static_cast<unsigned char>(text[0]);
      for (size_t i = 0; i < count_; ++i) {
        if (!text.starts_with(kSpecial[i])) continue;
        length = std::string_view(kSpecial[i]).size();
        id = 256 + static_cast<int32_t>(i);
      }
      ids.push_back(id);
      text.remove_prefix(length);
    }
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    std::string text;
    for (const int32_t id : ids) text += token_bytes(id);
    return text;
  }
  int64_t vocab_size() const override { return 256 + static_cast<int64_t>(count_); }
  std::optional<int32_t> token_to_id(std::string_view token) const override {
    for (size_t i = 0; i < count_; ++i) {
      if (token == kSpecial[i]) return 256 + static_cast<int32_t>(i);
    }
    return std::nullopt;
  }
  std::string id_to_token(int32_t id) const override { return token_bytes(id); }
  std::string token_bytes(int32_t id) const override {
    return id < 256 ? std::string(1, static_cast<char>(id)) : kSpecial[id - 256];
  }
  bool is_special(int32_t id) const override { return id >= 256; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return std::nullopt; }
  std::optional<int32_t> pad_id() const override { return std::nullopt; }
  const std::string& chat_template() const override { return empty_; }

 private:
  size_t count_;
  std::string empty_;
};

// "[reasoning]…", "[content]…", "[name]…" with the arguments, neighbouring pieces joined.
std::string parse(const std::string& answer) {
  const Bytes tokenizer;
  HarmonyParser parser(tokenizer);
  std::string out, kind;
  const auto add = [&](const std::vector<AnswerDelta>& deltas) {
    for (const AnswerDelta& d : deltas) {
      const bool call = d.kind == AnswerDelta::Kind::kToolCall;
      const std::string own = call                                      ? "call"
                              : d.kind == AnswerDelta::Kind::kReasoning ? "reasoning"
                                                                        : "content";
      if (!d.tool_name.empty()) {
        EXPECT_TRUE(call);
        out += "[" + d.tool_name + "]";
      } else if (own != kind) {
        EXPECT_FALSE(call) << "arguments without a name";
        out += "[" + own + "]";
      }
      kind = own;
      out += d.text;
    }
  };
  for (const int32_t id : tokenizer.encode(answer, {})) add(parser.add(id));
  add(parser.finish());
  return out;
}

TEST(Harmony, Channels) {
  EXPECT_EQ(parse("<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>"
                  "final<|message|>It is é 4.<|return|>"),
            "[reasoning]Let me see.[content]It is é 4.");
  EXPECT_EQ(parse("<|channel|>final<|message|>cut off"), "[content]cut off");
  EXPECT_EQ(parse("<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant"
                  "<|channel|>final<|message|>Done.<|return|>"),
            "[content]I will look.Done.");
  EXPECT_EQ(parse(""), "");
  EXPECT_EQ(parse("<|channel|>analysis<|message|><|end|>"), "");
}

TEST(Harmony, ToolCalls) {
  const std::string call = R"({"city":"Oslo"})";
  // The order of the format's documentation, and that of the chat template.
  EXPECT_EQ(parse("<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + call +
                  "<|call|>"),
            "[weather]" + call);
  EXPECT_EQ(parse(" to=functions.weather<|channel|>commentary json<|message|>" + call + "<|call|>"),
            "[weather]" + call);
  EXPECT_EQ(parse("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.a"
                  "<|channel|>commentary <|constrain|>json<|message|>{}<|call|><|start|>assistant"
                  "<|channel|>commentary to=functions.b<|message|>{\"x\":1}<|call|>"),
            "[reasoning]Hm.[a]{}[b]{\"x\":1}");
  EXPECT_EQ(parse("<|channel|>analysis to=python code<|message|>print(1)<|call|>"),
            "[python]print(1)");
  EXPECT_EQ(parse("<|channel|>commentary to=functions.none<|message|><|call|>"), "[none]");
}

TEST(Harmony, WhatAModelShouldNotWrite) {
  // No channel, no end, text between messages.
  EXPECT_EQ(parse("<|message|>hello<|return|>"), "[content]hello");
  EXPECT_EQ(parse("<|channel|>analysis<|message|>so<|channel|>final<|message|>yes<|return|>"),
            "[reasoning]so[content]yes");
  EXPECT_EQ(parse("<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b"),
            "[reasoning]a[content]b");
  EXPECT_EQ(parse("<|channel|>final<|message|>a<|end|>lost<|end|>"), "[content]a");
  EXPECT_EQ(parse("never a message"), "");
  EXPECT_EQ(parse("<|channel|>final<|message|>a<|message|>b<|return|><|return|>"), "[content]ab");
}

TEST(Harmony, NeedsItsTokens) {
  const Bytes whole, part(1);
  EXPECT_TRUE(HarmonyParser::understands(whole));
  EXPECT_FALSE(HarmonyParser::understands(part));
  EXPECT_NE(error_of([&] { HarmonyParser parser(part); }).find("<|call|>"), std::string::npos);
}

}  // namespace
}  // namespace reft
