#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <exception>

#include "base/check.h"
#include "cli/command.h"
#include "ops/norm.h"

namespace reft {
namespace {

std::string overview() {
  std::string out =
      "reft serves and trains language models: one native executable, no Python.\n\nUSAGE\n"
      "    reft COMMAND [arguments]\n\nCOMMANDS\n";
  for (const Command& command : all_commands()) {
    out += fmt::format("    {:18} {}\n", command.name, command.summary);
  }
  return out +
         "\n    reft COMMAND --help    flags and examples of a command\n"
         "    reft --version         version and what this build can use\n";
}

// `args[0]` and, for "bench serve", `args[1]` name the command; they are removed.
const Command& take_command(std::vector<std::string>& args) {
  const std::string first = args[0];
  const std::string both = args.size() > 1 ? first + " " + args[1] : first;
  bool is_group = false;
  std::vector<std::string> names;
  for (const Command& command : all_commands()) {
    names.push_back(command.name);
    is_group = is_group || names.back().starts_with(first + " ");
    if (both == command.name && both != first) {
      args.erase(args.begin(), args.begin() + 2);
      return command;
    }
    if (first == command.name) {
      args.erase(args.begin());
      return command;
    }
  }
  if (is_group) {
    std::string members;
    for (const std::string& name : names) {
      if (name.starts_with(first + " "))
        members += (members.empty() ? "" : ", ") + name.substr(first.size() + 1);
    }
    fail("'reft {}' needs one of: {}", first, members);
  }
  const auto near = nearest_match(first, names);
  fail("unknown command '{}'{}; 'reft --help' lists them", first,
       near ? fmt::format(": did you mean '{}'?", *near) : "");
}

int run(std::vector<std::string> args) {
  if (args.empty() || args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    std::fputs(overview().c_str(), stdout);
    return args.empty() ? 2 : 0;
  }
  if (args[0] == "--version" || args[0] == "-V" || args[0] == "version") {
    std::printf("reft %s (%s)\n", REFT_VERSION,
                rms_norm_kernel.has(DeviceType::kCuda) ? "cpu, cuda" : "cpu");
    return 0;
  }
  const Command& command = take_command(args);
  return command.run(args);
}

// Opens what the caller closed of the descriptors 0 to 2: no socket may become the log's.
void fill_standard_streams() {
  int fd = 0;
  while (fd >= 0 && fd <= STDERR_FILENO) fd = ::open("/dev/null", O_RDWR);
  if (fd > STDERR_FILENO) ::close(fd);
}

}  // namespace
}  // namespace reft

int main(int argc, char** argv) {
  try {
    reft::fill_standard_streams();
    return reft::run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "reft: %s\n", e.what());
    return 1;
  }
}
