// reft completion: scripts for bash, zsh and fish.
#include <cstdio>
#include <map>

#include "base/check.h"
#include "cli/command.h"

namespace reft {
namespace {

struct CompletionOptions {
  static constexpr const char* kName = "completion";
  static constexpr const char* kSummary = "print a shell completion script (bash, zsh, fish)";
  static constexpr const char* kDescription = "";

  std::string shell = "bash";

  void declare(ArgParser& parser) {
    parser.positional("SHELL", &shell, "bash, zsh or fish.", true);
    parser.example("source <(reft completion bash)", "In ~/.bashrc:");
    parser.example("reft completion fish > ~/.config/fish/completions/reft.fish",
                   "For fish, once:");
  }

  // First words ("serve", "bench"), and the second ones of a group.
  static std::map<std::string, std::string> tree() {
    std::map<std::string, std::string> groups;
    for (const Command& command : all_commands()) {
      const std::string name = command.name;
      const size_t space = name.find(' ');
      std::string& members = groups[name.substr(0, space)];
      if (space != std::string::npos)
        members += (members.empty() ? "" : " ") + name.substr(space + 1);
    }
    return groups;
  }

  static std::string flag_words(const Command& command) {
    std::string out;
    for (const std::string& flag : command.flags()) out += (out.empty() ? "" : " ") + flag;
    return out;
  }

  static void print_bash() {
    std::string words, cases;
    for (const auto& [first, members] : tree()) {
      words += (words.empty() ? "" : " ") + first;
      if (!members.empty()) cases += fmt::format("      {}) words=\"{}\" ;;\n", first, members);
    }
    for (const Command& command : all_commands()) {
      std::string pattern = command.name;
      if (const size_t space = pattern.find(' '); space != std::string::npos) {
        pattern.replace(space, 1, "\\ ");
      } else {
        pattern = fmt::format("{0}|{0}\\ *", pattern);
      }
      cases += fmt::format("      {}) words=\"{}\" ;;\n", pattern, flag_words(command));
    }
    std::printf(
        "_reft() {\n"
        "  local cur=${COMP_WORDS[COMP_CWORD]} key=${COMP_WORDS[1]} words=\"\"\n"
        "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
        "    words=\"%s --help --version\"\n"
        "  else\n"
        "    if [ \"$COMP_CWORD\" -gt 2 ]; then key=\"$key ${COMP_WORDS[2]}\"; fi\n"
        "    case \"$key\" in\n%s    esac\n"
        "  fi\n"
        "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
        "  if [ ${#COMPREPLY[@]} -eq 0 ]; then COMPREPLY=($(compgen -f -- \"$cur\")); fi\n"
        "}\n"
        "complete -F _reft reft\n",
        words.c_str(), cases.c_str());
  }

  static void print_fish() {
    for (const Command& command : all_commands()) {
      const std::string name = command.name;
      const size_t space = name.find(' ');
      if (space == std::string::npos) {
        std::printf("complete -c reft -n __fish_use_subcommand -f -a %s -d '%s'\n", name.c_str(),
                    command.summary);
      } else {
        std::printf("complete -c reft -n '__fish_seen_subcommand_from %s' -f -a %s -d '%s'\n",
                    name.substr(0, space).c_str(), name.substr(space + 1).c_str(), command.summary);
        std::printf("complete -c reft -n __fish_use_subcommand -f -a %s\n",
                    name.substr(0, space).c_str());
      }
      for (const std::string& flag : command.flags()) {
        const std::string bare = flag.substr(flag.find_first_not_of('-'));
        std::printf("complete -c reft -n '__fish_seen_subcommand_from %s' -l %s\n",
                    name.substr(space == std::string::npos ? 0 : space + 1).c_str(), bare.c_str());
      }
    }
  }

  int execute(const ArgParser&) {
    if (shell == "fish") {
      print_fish();
    } else if (shell == "zsh") {
      std::printf("autoload -U +X bashcompinit && bashcompinit\n");
      print_bash();
    } else {
      check(shell == "bash", "no completion for '{}': expected bash, zsh or fish", shell);
      print_bash();
    }
    return 0;
  }
};

}  // namespace

Command completion_command() { return make_command<CompletionOptions>(); }

}  // namespace reft
