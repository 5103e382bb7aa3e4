// Command-line flags. `--max-model-len`, `--max_model_len` and `--max_model_len=4096` are one flag; a flag may have aliases;
// booleans take `--flag`, `--no-flag`, `--flag true|false`; a value may come from the environment (REFT_MAX_MODEL_LEN)
// or a JSON file (`--config file.json`, keys as flags). An unknown flag suggests the nearest one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace reft {

// One subcommand's flags, bound to variables. Order of declaration is the order of the help.
class ArgParser {
 public:
  // `name`: "reft serve"; `summary`: one line; `description`: paragraphs of the man-style help.
  ArgParser(std::string name, std::string summary, std::string description = "");

  // Starts a group of flags ("Model", "Memory and scheduling"), a heading of the help.
  void group(std::string title);

  // Names are written once, with underscores and without the leading dashes: "max_model_len". `aliases` also
  // may be short: "q", "tp". The variable's value is the default that the help shows.
  void add(std::string name, std::string* value, std::string help, std::vector<std::string> aliases = {});
  void add(std::string name, int64_t* value, std::string help, std::vector<std::string> aliases = {});  // accepts 4096, 4k (1000s), 4K (1024s), 1e6
  void add(std::string name, double* value, std::string help, std::vector<std::string> aliases = {});
  void add(std::string name, bool* value, std::string help, std::vector<std::string> aliases = {});
  // Repeatable; also several values after one flag when `multiple_values`.
  void add(std::string name, std::vector<std::string>* value, std::string help,
           std::vector<std::string> aliases = {}, bool multiple_values = false);
  // Only these values are accepted.
  void choices(std::string name, std::vector<std::string> values);
  // A positional argument; `required` ones come first.
  void positional(std::string name, std::string* value, std::string help, bool required = false);
  void positional_rest(std::string name, std::vector<std::string>* values, std::string help);
  // Accepted and ignored with one log line, because users of other servers pass them.
  void ignored(std::string name, std::string why, bool takes_value = true);
  // A worked example for the end of the help.
  void example(std::string command, std::string explanation);

  // Parses the arguments after the subcommand. Returns false when --help was asked for and printed.
  // Throws Error naming the flag, with a suggestion where there is one.
  bool parse(int argc, const char* const* argv);
  bool was_set(const std::string& name) const;

  std::string help() const;
  // All flag names with dashes, for the completion scripts.
  std::vector<std::string> flag_names() const;
  const std::string& name() const;
  const std::string& summary() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// The candidate with the smallest edit distance, if it is close enough to be a typo.
std::optional<std::string> nearest_match(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace reft
