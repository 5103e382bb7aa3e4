// reft tokenize: text to ids and back, offline.
#include <charconv>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/check.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/model_flags.h"

namespace reft {
namespace {

// "1 2 3", "1, 2, 3" or "[1, 2, 3]".
std::vector<int32_t> parse_ids(const std::string& text, int64_t vocab_size) {
  constexpr const char* kSeparators = " ,[]\t\r\n";
  std::vector<int32_t> ids;
  for (size_t at = 0; (at = text.find_first_not_of(kSeparators, at)) != std::string::npos;) {
    const std::string word = text.substr(at, text.find_first_of(kSeparators, at) - at);
    int32_t id = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    check(error == std::errc() && end == word.data() + word.size() && id >= 0 && id < vocab_size,
          "--decode: '{}' is not a token id between 0 and {}", word, vocab_size - 1);
    ids.push_back(id);
    at += word.size();
  }
  return ids;
}

struct TokenizeOptions {
  static constexpr const char* kName = "tokenize";
  static constexpr const char* kSummary = "turn text into token ids, or ids into text";
  static constexpr const char* kDescription =
      "Reads the text from the argument or from standard input.";

  ModelFlags model;
  std::vector<std::string> words;
  bool decode = false;
  bool json = false;
  bool add_special_tokens = true;
  bool parse_special = true;

  void declare(ArgParser& parser) {
    model.declare_model(parser, false);
    parser.positional_rest("TEXT", &words, "The text (or, with --decode, the ids).");
    parser.group("Output");
    parser.add("decode", &decode, "The arguments are ids; print the text.", {"d"});
    parser.add("json", &json, "Print {\"count\", \"tokens\", \"token_strs\"} instead of a table.");
    parser.add("add_special_tokens", &add_special_tokens, "Add the model's BOS and the like.");
    parser.add("parse_special", &parse_special,
               "Special tokens written in the text become their ids.");
    parser.example("reft tokenize --model Qwen/Qwen3-0.6B 'Hello, world'",
                   "A table of ids and tokens:");
  }

  int execute(const ArgParser&) {
    model.quiet = true;
    const auto tokenizer = model.load_tokenizer_for(model.resolve_path());
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
    if (words.empty()) text.assign(std::istreambuf_iterator<char>(std::cin), {});
    if (decode) {
      std::printf("%s\n",
                  tokenizer->decode(parse_ids(text, tokenizer->vocab_size()), false).c_str());
      return 0;
    }
    const auto ids = tokenizer->encode(text, {add_special_tokens, parse_special});
    if (json) {
      Json out = {{"count", ids.size()}, {"tokens", ids}, {"token_strs", Json::array()}};
      for (int32_t id : ids) out["token_strs"].push_back(tokenizer->id_to_token(id));
      std::printf("%s\n", out.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
      return 0;
    }
    for (int32_t id : ids) {
      std::printf("%8d  %s\n", id,
                  Json(tokenizer->token_bytes(id))
                      .dump(-1, ' ', false, Json::error_handler_t::replace)
                      .c_str());
    }
    std::printf("%zu tokens\n", ids.size());
    return 0;
  }
};

}  // namespace

Command tokenize_command() { return make_command<TokenizeOptions>(); }

}  // namespace reft
