#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/request.h"
#include "server/json_body.h"
#include "server/json_writer.h"

namespace reft {
namespace {

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

// Message and param of the refusal; empty when the body is accepted.
std::pair<std::string, std::string> refusal(const std::string& body) {
  try {
    parse_request_body(body);
    return {};
  } catch (const RequestError& e) {
    EXPECT_EQ(e.status(), 400);
    return {e.what(), e.param()};
  }
}

TEST(JsonWriter, EscapesAndRepairs) {
  EXPECT_EQ(json_string("plain"), "\"plain\"");
  EXPECT_EQ(json_string("a\"b\\c\n\r\t\x01\x7f"), "\"a\\\"b\\\\c\\n\\r\\t\\u0001\x7f\"");
  EXPECT_EQ(json_string("\b\f"), "\"\\b\\f\"");
  EXPECT_EQ(json_string("é漢😀"), "\"é漢😀\"");
  std::string ascii;
  append_json_string(ascii, "é漢😀\x1f\xff", true);
  EXPECT_EQ(ascii, "\"\\u00e9\\u6f22\\ud83d\\ude00\\u001f\\ufffd\"");
  const std::string nul("a\0b", 3);
  EXPECT_EQ(json_string(nul), "\"a\\u0000b\"");
  // Truncated, overlong, surrogate, beyond U+10FFFF.
  EXPECT_EQ(json_string("x\xe6\xbc"), "\"x\xEF\xBF\xBD\"");
  EXPECT_EQ(to_valid_utf8("\xc0\xaf"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(to_valid_utf8("\xed\xa0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(to_valid_utf8("\xf4\x90\x80\x80z").back(), 'z');
  // Whatever bytes come, what goes out is JSON that reads back as the repaired text.
  std::string all;
  for (int i = 0; i < 256; ++i) {
    all += static_cast<char>(i);
    all += static_cast<char>(255 - i);
  }
  EXPECT_EQ(Json::parse(json_string(all)).get<std::string>(), to_valid_utf8(all));
}

TEST(JsonWriter, Numbers) {
  const auto text = [](float value) {
    std::string out;
    append_json_float(out, value);
    return out;
  };
  EXPECT_EQ(text(0), "0.0");
  EXPECT_EQ(text(-1.5f), "-1.5");
  EXPECT_EQ(text(-0.1f), "-0.1");
  EXPECT_EQ(text(std::numeric_limits<float>::infinity()), "9999.0");
  EXPECT_EQ(text(-std::numeric_limits<float>::infinity()), "-9999.0");
  EXPECT_EQ(text(std::nanf("")), "null");
  for (float value : {1e-30f, 3.4e38f, -7.0f, 16777216.0f}) {
    EXPECT_EQ(Json::parse(text(value)).get<float>(), value);
  }
}

TEST(JsonBody, AcceptsWhatItShould) {
  EXPECT_EQ(parse_request_body(R"({"a": [1, -2, 3.5, true, null, "x"], "b": {"c": {}}})").dump(),
            R"({"a":[1,-2,3.5,true,null,"x"],"b":{"c":{}}})");
  EXPECT_EQ(parse_request_body("\xEF\xBB\xBF{\"a\": 1}")["a"], 1);  // a byte order mark
  EXPECT_EQ(parse_request_body(" \r\n\t{} \n").size(), 0u);
  EXPECT_EQ(parse_request_body(R"({"__proto__": {"x": 1}, "": 2})")[""], 2);
  EXPECT_EQ(parse_request_body(R"({"a": "\u0000\ud83d\ude00"})")["a"].get<std::string>().size(),
            5u);
}

TEST(JsonBody, TheLastOfEqualKeysCounts) {
  EXPECT_EQ(parse_request_body(R"({"a": 1, "b": 2, "a": 3})").dump(), R"({"a":3,"b":2})");
  std::string many = "{";
  for (int i = 0; i < 100'000; ++i) many += fmt::format("\"k{}\":{},", i % 50'000, i);
  many += "\"z\":1}";
  const Json body = parse_request_body(many);  // in linear time
  EXPECT_EQ(body.size(), 50'001u);
  EXPECT_EQ(body["k7"], 50'007);
}

TEST(JsonBody, RefusesWithTheFieldAtFault) {
  EXPECT_EQ(refusal("").second, "");
  EXPECT_NE(refusal("").first, "");
  EXPECT_NE(refusal("nonsense").first, "");
  EXPECT_NE(refusal("[]").first, "");
  EXPECT_NE(refusal("5").first, "");
  EXPECT_EQ(refusal(R"({"ok": 1, "bad": NaN})").second, "bad");
  EXPECT_EQ(refusal(R"({"ok": 1, "bad": 1e999})").second, "bad");
  EXPECT_EQ(refusal(R"({"ok": 1, "bad": [1, 2)").second, "bad");
  EXPECT_EQ(refusal(R"({"bad": "\ud800"})").second, "bad");
  EXPECT_EQ(refusal("{\"bad\": \"\xff\"}").second, "bad");
  EXPECT_EQ(refusal("{\"bad\": \"\xc0\xaf\"}").second, "bad");
  EXPECT_NE(refusal("{} {}").first, "");
}

TEST(JsonBody, CapsDepthAndCount) {
  const auto nested = [](size_t depth, char open, const std::string& close) {
    return "{\"a\": " + std::string(depth, open) + close + "}";
  };
  EXPECT_EQ(refusal(nested(100, '[', std::string(100, ']'))).first, "");
  EXPECT_EQ(refusal(nested(100'000, '[', std::string(100'000, ']'))).second, "a");
  EXPECT_EQ(refusal(nested(1'000'000, '[', "")).second, "a");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_EQ(refusal(objects).second, "a");
  std::string wide = "{\"w\": [0";
  for (int i = 0; i < 4'100'000; ++i) wide += ",0";
  EXPECT_EQ(refusal(wide + "]}").second, "w");
}

TEST(Fields, ReadsAndNames) {
  const Json body = parse_request_body(
      R"({"i": 5, "f": 5.0, "h": 5.5, "s": "x", "b": true, "n": null, "a": [1, 2], "o": {},
          "big": 18446744073709551615, "neg": -3, "strs": ["a", 1]})");
  const Fields fields(body, "outer.");
  EXPECT_EQ(fields.integer("i"), 5);
  EXPECT_EQ(fields.integer("f"), 5);
  EXPECT_EQ(fields.integer("n"), std::nullopt);
  EXPECT_EQ(fields.integer("absent"), std::nullopt);
  EXPECT_EQ(fields.number("h"), 5.5f);
  EXPECT_EQ(fields.boolean("b"), true);
  EXPECT_EQ(fields.int_array("a", 0, 9)->size(), 2u);
  const auto param = [&](auto&& read) {
    try {
      read();
      return std::string();
    } catch (const RequestError& e) {
      EXPECT_EQ(e.status(), 400);
      return e.param();
    }
  };
  EXPECT_EQ(param([&] { fields.integer("h"); }), "outer.h");
  EXPECT_EQ(param([&] { fields.integer("s"); }), "outer.s");
  EXPECT_EQ(param([&] { fields.integer("b"); }), "outer.b");
  EXPECT_EQ(param([&] { fields.integer("big"); }), "outer.big");
  EXPECT_EQ(param([&] { fields.integer("neg", 0); }), "outer.neg");
  EXPECT_EQ(param([&] { fields.integer("i", 0, 4); }), "outer.i");
  EXPECT_EQ(param([&] { fields.number("s"); }), "outer.s");
  EXPECT_EQ(param([&] { fields.boolean("i"); }), "outer.i");
  EXPECT_EQ(param([&] { fields.string("i"); }), "outer.i");
  EXPECT_EQ(param([&] { fields.object("a"); }), "outer.a");
  EXPECT_EQ(param([&] { fields.array("o"); }), "outer.o");
  EXPECT_EQ(param([&] { fields.int_array("a", 0, 1); }), "outer.a");
  EXPECT_EQ(param([&] { fields.string_array("strs", 9); }), "outer.strs");
  EXPECT_EQ(param([&] { fields.string_array("strs", 1); }), "outer.strs");
}

}  // namespace
}  // namespace reft
