// Command-line flags. `--max-model-len 4096`, `--max_model_len 4096` and `--max_model_len=4096` are
// one flag; a flag may have aliases; booleans take `--flag`, `--no-flag` and `--flag true|false`. A
// flag that is not given is looked up in the environment (REFT_MAX_MODEL_LEN), then in the JSON
// file of `--config`. An unknown flag suggests the nearest one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace reft {

// The flags of one subcommand, bound to variables that hold the defaults. Order of declaration is
// the order of the help.
class ArgParser {
 public:
  // `name`: "reft serve"; `summary`: one line; `description`: paragraphs of the help.
  ArgParser(std::string name, std::string summary, std::string description = "");

  // Starts a group of flags ("Model", "Memory and scheduling"): a heading of the help.
  void group(std::string title);

  // Names are written once, with underscores and without leading dashes: "max_model_len". A
  // one-letter alias takes one dash ("q" is -q), a two-letter one either ("tp" is -tp and --tp).
  void add(std::string name, std::string* value, std::string help,
           std::vector<std::string> aliases = {});
  // Accepts 4096, 4_096, 4k and 4m (thousands, millions), 4K and 4M (1024s), 1e6.
  void add(std::string name, int64_t* value, std::string help,
           std::vector<std::string> aliases = {});
  void add(std::string name, double* value, std::string help,
           std::vector<std::string> aliases = {});
  void add(std::string name, bool* value, std::string help, std::vector<std::string> aliases = {});
  // Repeatable, takes several values after one flag, and a JSON array of strings as one value.
  void add(std::string name, std::vector<std::string>* value, std::string help,
           std::vector<std::string> aliases = {});
  // Restricts a flag that was added to these values.
  void choices(const std::string& name, std::vector<std::string> values);
  void positional(std::string name, std::string* value, std::string help, bool required = false);
  // Takes every positional argument that is left.
  void positional_rest(std::string name, std::vector<std::string>* values, std::string help);
  // Accepted, because users of other servers pass it, and reported by ignored_flags() when given.
  void ignored(std::string name, std::string why, bool takes_value = true);
  // A worked example for the end of the help.
  void example(std::string command, std::string explanation);

  // Parses the arguments after the subcommand. Returns false when --help was asked for and printed
  // to stdout. Throws Error naming the flag, with a suggestion where there is one.
  bool parse(const std::vector<std::string>& arguments);
  // By flag, environment or file.
  bool was_set(const std::string& name) const;
  // "--trust-remote-code: no remote code is ever run", one per ignored flag that was given.
  const std::vector<std::string>& ignored_flags() const;

  // Man-style help: NAME, SYNOPSIS, DESCRIPTION, the groups with defaults, EXAMPLES. 100 columns.
  std::string help() const;
  // Every flag with its dashes, for completion.
  std::vector<std::string> flag_names() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// The candidate with the smallest edit distance, if it is close enough to be a typo.
std::optional<std::string> nearest_match(const std::string& word,
                                         const std::vector<std::string>& candidates);

}  // namespace reft
