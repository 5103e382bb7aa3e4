#include "train/data/dry_run.h"

#include <gmock/gmock.h>

#include "train/data/test_files_test.h"

namespace reft {
namespace {

TEST(DryRun, ShowsWhatIsLearnt) {
  TempFolder folder;
  const std::string path =
      folder.write("a.jsonl",
                   "{\"instruction\": \"hi \\u001b[31m\", \"output\": \"日本\"}\n"
                   "{\"conversations\": 1}\n"
                   "{\"instruction\": \"who\", \"output\": \"reft\"}\n");
  const auto tokenizer = load_tokenizer(std::string(REFT_SOURCE_DIR) + "/tests/train/data");
  const ChatEncoder chat(resolve_chat_template("chatml"), *tokenizer);
  const ExampleEncoder encoder(*tokenizer, &chat, {.cutoff_len = 64});
  LoaderOptions options;
  options.mix.datasets = {parse_dataset("mine@" + path)};
  options.mix.skip_bad_rows = true;
  options.mix.shuffle = false;
  options.num_threads = 1;
  const auto tokens_of = [&](const std::string& text) {
    return tokenizer->encode(text, {.add_special_tokens = false}).size();
  };
  const std::string first =
      "<|im_start|>user\nhi \x1b[31m<|im_end|>\n<|im_start|>assistant\n日本<|im_end|>\n";
  const std::string second =
      "<|im_start|>user\nwho<|im_end|>\n<|im_start|>assistant\nreft<|im_end|>\n";
  const size_t trained = tokens_of("日本<|im_end|>") + tokens_of("reft<|im_end|>");
  const std::string expected = fmt::format(
      "--- mine, {}:1: {} tokens, {} trained\n"
      "<|im_start|>user\nhi \\x1b[31m<|im_end|>\n<|im_start|>assistant\n[[日本<|im_end|>]]\n"
      "---\nmine: 3 rows read, 2 kept (0 truncated), 0 dropped, 1 bad\n"
      "epoch: 2 batches, 2 sequences, {} tokens, {} trained ({:.1f}%)\n",
      path, tokens_of(first), tokens_of("日本<|im_end|>"), tokens_of(first) + tokens_of(second),
      trained,
      100.0 * static_cast<double>(trained) /
          static_cast<double>(tokens_of(first) + tokens_of(second)));
  EXPECT_EQ(dry_run(options, encoder, *tokenizer, 1, false), expected);
  EXPECT_THAT(dry_run(options, encoder, *tokenizer, 2, true),
              testing::HasSubstr("\n\033[32mreft<|im_end|>\033[0m\n"));
}

}  // namespace
}  // namespace reft
