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

  static std::string first_words() {
    std::string out;
    for (const auto& [first, members] : tree()) out += first + " ";
    return out + "--help --version";
  }

  // Branches of `case "$key"` that set `list`, for bash and zsh.
  static std::string cases() {
    std::string out;
    for (const auto& [first, members] : tree()) {
      if (!members.empty()) out += fmt::format("      {}) list=\"{}\" ;;\n", first, members);
    }
    for (const Command& command : all_commands()) {
      std::string pattern = command.name;
      if (const size_t space = pattern.find(' '); space != std::string::npos) {
        pattern.replace(space, 1, "\\ ");
      } else {
        pattern = fmt::format("{0}|{0}\\ *", pattern);
      }
      out += fmt::format("      {}) list=\"{}\" ;;\n", pattern, flag_words(command));
    }
    return out;
  }

  static void print_bash() {
    std::printf(
        "_reft() {\n"
        "  local cur=${COMP_WORDS[COMP_CWORD]} key=${COMP_WORDS[1]} list=\"\"\n"
        "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
        "    list=\"%s\"\n"
        "  else\n"
        "    if [ \"$COMP_CWORD\" -gt 2 ]; then key=\"$key ${COMP_WORDS[2]}\"; fi\n"
        "    case \"$key\" in\n%s    esac\n"
        "  fi\n"
        "  COMPREPLY=($(compgen -W \"$list\" -- \"$cur\"))\n"
        "}\n"
        "complete -o default -F _reft reft\n",
        first_words().c_str(), cases().c_str());
  }

  // Works both as a file `_reft` on zsh's fpath and when it is sourced.
  static void print_zsh() {
    std::printf(
        "#compdef reft\n"
        "_reft() {\n"
        "  local key=${words[2]} list=\"\"\n"
        "  if (( CURRENT == 2 )); then\n"
        "    list=\"%s\"\n"
        "  else\n"
        "    if (( CURRENT > 3 )); then key=\"$key ${words[3]}\"; fi\n"
        "    case \"$key\" in\n%s    esac\n"
        "  fi\n"
        "  compadd -- ${=list} || _files\n"
        "}\n"
        "if [[ ${funcstack[1]} == _reft ]]; then _reft \"$@\"; else compdef _reft reft; fi\n",
        first_words().c_str(), cases().c_str());
  }

  static void print_fish() {
    for (const Command& command : all_commands()) {
      const std::string name = command.name;
      std::string summary;
      for (const char c : std::string_view(command.summary)) {
        if (c == '\'') summary += '\\';
        summary += c;
      }
      const size_t space = name.find(' ');
      if (space == std::string::npos) {
        std::printf("complete -c reft -n __fish_use_subcommand -f -a %s -d '%s'\n", name.c_str(),
                    summary.c_str());
      } else {
        std::printf("complete -c reft -n '__fish_seen_subcommand_from %s' -f -a %s -d '%s'\n",
                    name.substr(0, space).c_str(), name.substr(space + 1).c_str(), summary.c_str());
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
      print_zsh();
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
