#include "base/args.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/json.h"

namespace reft {
namespace {

std::string dashed(std::string name) {
  std::ranges::replace(name, '_', '-');
  return name;
}

std::string underscored(std::string name) {
  std::ranges::replace(name, '-', '_');
  return name;
}

std::string flag_text(const std::string& name) {
  return (name.size() == 1 ? "-" : "--") + dashed(name);
}

// One value of a list flag: a JSON array of strings, as vLLM's users write some lists, or itself.
std::vector<std::string> list_items(const std::string& text) {
  const Json items = Json::parse(text.starts_with('[') ? text : "", nullptr, false);
  const bool is_list = items.is_array() && std::ranges::all_of(items, &Json::is_string);
  return is_list ? items.get<std::vector<std::string>>() : std::vector{text};
}

int64_t parse_integer(const std::string& flag, const std::string& given) {
  std::string text;
  std::ranges::copy_if(given, std::back_inserter(text),
                       [](char c) { return c != '_' && c != ','; });
  double scale = 1;
  if (!text.empty()) {
    switch (text.back()) {
      case 'k':
        scale = 1e3;
        break;
      case 'm':
        scale = 1e6;
        break;
      case 'g':
        scale = 1e9;
        break;
      case 'K':
        scale = 1024.0;
        break;
      case 'M':
        scale = 1024.0 * 1024;
        break;
      case 'G':
        scale = 1024.0 * 1024 * 1024;
        break;
      default:
        break;
    }
    if (scale != 1) text.pop_back();
  }
  int64_t whole = 0;
  const char* end = text.data() + text.size();
  if (auto [p, error] = std::from_chars(text.data(), end, whole);
      error == std::errc() && p == end && scale == 1) {
    return whole;
  }
  double value = 0;
  const auto [p, error] = std::from_chars(text.data(), end, value);
  value *= scale;
  check(error == std::errc() && p == end && std::isfinite(value) && value == std::floor(value) &&
            std::abs(value) < 9e18,
        "{}: '{}' is not a whole number", flag, given);
  return static_cast<int64_t>(value);
}

double parse_number(const std::string& flag, const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [p, error] = std::from_chars(text.data(), end, value);
  check(error == std::errc() && p == end && std::isfinite(value), "{}: '{}' is not a number", flag,
        text);
  return value;
}

std::optional<bool> parse_bool(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  if (text == "true" || text == "1" || text == "yes" || text == "on") return true;
  if (text == "false" || text == "0" || text == "no" || text == "off") return false;
  return std::nullopt;
}

// Breaks text into lines of at most `width` columns with this indentation; keeps the line breaks of
// the text.
std::string wrap(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t start = 0;
  while (start <= text.size()) {
    const size_t end = std::min(text.find('\n', start), text.size());
    std::string line(indent, ' ');
    size_t column = indent;
    size_t word = start;
    while (word < end) {
      const size_t stop = std::min(text.find(' ', word), end);
      if (column > indent && column + 1 + (stop - word) > width) {
        out += line + "\n";
        line = std::string(indent, ' ');
        column = indent;
      }
      if (column > indent) {
        line += ' ';
        ++column;
      }
      line += text.substr(word, stop - word);
      column += stop - word;
      word = stop + 1;
    }
    out += (column > indent ? line : "") + "\n";
    start = end + 1;
  }
  return out;
}

}  // namespace

struct ArgParser::State {
  enum class Kind { kString, kInteger, kNumber, kBool, kList, kIgnoredValue, kIgnoredSwitch };

  struct Option {
    Kind kind;
    std::string name;
    std::vector<std::string> aliases;
    std::string help;
    std::string default_text;
    size_t group = 0;
    std::vector<std::string> choices;
    std::function<void(const std::string& flag, const std::string& value)> set;
    bool set_already = false;
  };

  struct Positional {
    std::string name;
    std::string help;
    bool required = false;
    std::string* value = nullptr;
    std::vector<std::string>* rest = nullptr;
  };

  std::string name, summary, description;
  std::vector<std::string> groups{"Options"};
  std::vector<Option> options;
  std::vector<Positional> positionals;
  std::vector<std::pair<std::string, std::string>> examples;
  std::vector<std::string> ignored;
  std::string config_path;

  Option* find(const std::string& word) {
    const std::string wanted = underscored(word);
    for (Option& option : options) {
      if (option.name == wanted ||
          std::ranges::find(option.aliases, wanted) != option.aliases.end()) {
        return &option;
      }
    }
    return nullptr;
  }

  Option& declare(Kind kind, std::string option_name, std::string help,
                  std::vector<std::string> aliases, std::string default_text) {
    for (std::string& alias : aliases) alias = underscored(alias);
    check(find(option_name) == nullptr, "flag {} is declared twice", option_name);
    options.push_back({kind,
                       std::move(option_name),
                       std::move(aliases),
                       std::move(help),
                       std::move(default_text),
                       groups.size() - 1,
                       {},
                       nullptr,
                       false});
    return options.back();
  }

  void assign(Option& option, const std::string& flag, const std::string& value) {
    if (!option.choices.empty()) {
      check(std::ranges::find(option.choices, value) != option.choices.end(),
            "{}: '{}' is not one of {}", flag, value,
            fmt::format("{}", joined(option.choices, ", ")));
    }
    option.set(flag, value);
    option.set_already = true;
  }

  static std::string joined(const std::vector<std::string>& words, const char* separator) {
    std::string out;
    for (const std::string& word : words) out += (out.empty() ? "" : separator) + word;
    return out;
  }

  [[noreturn]] void unknown(const std::string& given) {
    std::vector<std::string> known{"help", "config"};
    for (const Option& option : options) {
      known.push_back(dashed(option.name));
      for (const std::string& alias : option.aliases) known.push_back(dashed(alias));
    }
    std::string bare = given.substr(
        given.find_first_not_of('-') == std::string::npos ? 0 : given.find_first_not_of('-'));
    const auto near = nearest_match(dashed(bare), known);
    fail("unknown flag '{}'{}; '{} --help' lists them", given,
         near ? fmt::format(": did you mean {}?", flag_text(*near)) : "", name);
  }

  // One argument that starts with a dash; advances `i` past the values it takes.
  void parse_flag(const std::vector<std::string>& args, size_t& i) {
    const std::string& given = args[i];
    const size_t dashes = given.find_first_not_of('-');
    const size_t equals = given.find('=');
    const std::string word =
        given.substr(dashes, equals == std::string::npos ? equals : equals - dashes);
    std::optional<std::string> attached;
    if (equals != std::string::npos) attached = given.substr(equals + 1);
    Option* option = find(word);
    bool negated = false;
    if (option == nullptr && (word.starts_with("no-") || word.starts_with("no_"))) {
      option = find(word.substr(3));
      negated = option != nullptr && option->kind == Kind::kBool;
      if (!negated) option = nullptr;
    }
    if (option == nullptr) unknown(given);
    const std::string flag = given.substr(0, equals);
    if (option->kind == Kind::kBool || option->kind == Kind::kIgnoredSwitch) {
      std::string value = "true";
      if (attached) {
        value = *attached;
      } else if (!negated && i + 1 < args.size() && parse_bool(args[i + 1]) &&
                 args[i + 1].size() > 1) {
        value = args[++i];
      }
      check(!(negated && attached), "{} takes no value", flag);
      return assign(*option, flag, negated ? "false" : value);
    }
    if (attached) return assign(*option, flag, *attached);
    check(i + 1 < args.size(), "{} needs a value", flag);
    assign(*option, flag, args[++i]);
    if (option->kind == Kind::kList) {
      while (i + 1 < args.size() && !looks_like_flag(args[i + 1])) assign(*option, flag, args[++i]);
    }
  }

  static bool looks_like_flag(const std::string& arg) {
    return arg.size() > 1 && arg[0] == '-' &&
           !(std::isdigit(static_cast<unsigned char>(arg[1])) || arg[1] == '.');
  }

  void apply_environment() {
    for (Option& option : options) {
      if (option.set_already || option.kind >= Kind::kIgnoredValue) continue;
      std::string variable = "REFT_" + option.name;
      std::ranges::transform(variable, variable.begin(),
                             [](unsigned char c) { return std::toupper(c); });
      if (const char* value = std::getenv(variable.c_str())) assign(option, variable, value);
    }
  }

  void apply_file() {
    if (config_path.empty()) return;
    const Json config = read_json_file(config_path);
    check(config.is_object(), "{}: the configuration must be a JSON object of flags", config_path);
    for (const auto& [key, value] : config.items()) {
      Option* option = find(key);
      if (option == nullptr) unknown(key);
      if (option->set_already) continue;
      const auto text = [](const Json& v) {
        return v.is_string() ? v.get<std::string>() : v.dump();
      };
      const std::string flag = config_path + ": " + key;
      if (value.is_array() && option->kind == Kind::kList) {
        for (const Json& item : value) assign(*option, flag, text(item));
      } else {
        assign(*option, flag, text(value));
      }
    }
  }
};

ArgParser::ArgParser(std::string name, std::string summary, std::string description)
    : state_(std::make_shared<State>()) {
  state_->name = std::move(name);
  state_->summary = std::move(summary);
  state_->description = std::move(description);
}

void ArgParser::group(std::string title) {
  if (state_->options.empty()) {
    state_->groups = {std::move(title)};
  } else {
    state_->groups.push_back(std::move(title));
  }
}

void ArgParser::add(std::string name, std::string* value, std::string help,
                    std::vector<std::string> aliases) {
  state_
      ->declare(State::Kind::kString, std::move(name), std::move(help), std::move(aliases), *value)
      .set = [value](const std::string&, const std::string& text) { *value = text; };
}

void ArgParser::add(std::string name, int64_t* value, std::string help,
                    std::vector<std::string> aliases) {
  state_
      ->declare(State::Kind::kInteger, std::move(name), std::move(help), std::move(aliases),
                std::to_string(*value))
      .set = [value](const std::string& flag, const std::string& text) {
    *value = parse_integer(flag, text);
  };
}

void ArgParser::add(std::string name, double* value, std::string help,
                    std::vector<std::string> aliases) {
  state_
      ->declare(State::Kind::kNumber, std::move(name), std::move(help), std::move(aliases),
                fmt::format("{}", *value))
      .set = [value](const std::string& flag, const std::string& text) {
    *value = parse_number(flag, text);
  };
}

void ArgParser::add(std::string name, bool* value, std::string help,
                    std::vector<std::string> aliases) {
  state_
      ->declare(State::Kind::kBool, std::move(name), std::move(help), std::move(aliases),
                *value ? "true" : "false")
      .set = [value](const std::string& flag, const std::string& text) {
    const auto parsed = parse_bool(text);
    check(parsed.has_value(), "{}: '{}' is neither true nor false", flag, text);
    *value = *parsed;
  };
}

void ArgParser::add(std::string name, std::vector<std::string>* value, std::string help,
                    std::vector<std::string> aliases) {
  auto first = std::make_shared<bool>(true);  // the first value given replaces the default
  state_
      ->declare(State::Kind::kList, std::move(name), std::move(help), std::move(aliases),
                State::joined(*value, " "))
      .set = [value, first](const std::string&, const std::string& text) {
    if (*first) value->clear();
    *first = false;
    for (std::string& item : list_items(text)) value->push_back(std::move(item));
  };
}

void ArgParser::choices(const std::string& name, std::vector<std::string> values) {
  auto* option = state_->find(name);
  check(option != nullptr, "choices for unknown flag {}", name);
  option->choices = std::move(values);
}

void ArgParser::positional(std::string name, std::string* value, std::string help, bool required) {
  state_->positionals.push_back({std::move(name), std::move(help), required, value, nullptr});
}

void ArgParser::positional_rest(std::string name, std::vector<std::string>* values,
                                std::string help) {
  state_->positionals.push_back({std::move(name), std::move(help), false, nullptr, values});
}

void ArgParser::ignored(std::string name, std::string why, bool takes_value) {
  auto& option =
      state_->declare(takes_value ? State::Kind::kIgnoredValue : State::Kind::kIgnoredSwitch,
                      std::move(name), why, {}, "");
  option.set = [state = state_.get(), why = std::move(why)](const std::string& flag,
                                                            const std::string&) {
    state->ignored.push_back(flag + ": " + why);
  };
}

void ArgParser::example(std::string command, std::string explanation) {
  state_->examples.emplace_back(std::move(command), std::move(explanation));
}

bool ArgParser::parse(const std::vector<std::string>& arguments) {
  State& s = *state_;
  size_t next_positional = 0;
  bool only_positionals = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& arg = arguments[i];
    if (!only_positionals && (arg == "--help" || arg == "-h")) {
      std::fputs(help().c_str(), stdout);
      return false;
    }
    if (!only_positionals && arg == "--") {
      only_positionals = true;
    } else if (!only_positionals && (arg == "--config" || arg.starts_with("--config="))) {
      check(arg != "--config" || i + 1 < arguments.size(), "--config needs a value");
      s.config_path = arg == "--config" ? arguments[++i] : arg.substr(arg.find('=') + 1);
    } else if (!only_positionals && State::looks_like_flag(arg)) {
      s.parse_flag(arguments, i);
    } else {
      check(next_positional < s.positionals.size(), "{}: unexpected argument '{}'", s.name, arg);
      State::Positional& p = s.positionals[next_positional];
      if (p.rest != nullptr) {
        p.rest->push_back(arg);
      } else {
        *p.value = arg;
        ++next_positional;
      }
    }
  }
  for (size_t i = next_positional; i < s.positionals.size(); ++i) {
    check(!s.positionals[i].required, "{}: missing argument {}", s.name, s.positionals[i].name);
  }
  s.apply_environment();
  s.apply_file();
  return true;
}

bool ArgParser::was_set(const std::string& name) const {
  const auto* option = state_->find(name);
  return option != nullptr && option->set_already;
}

const std::vector<std::string>& ArgParser::ignored_flags() const { return state_->ignored; }

std::string ArgParser::help() const {
  const State& s = *state_;
  constexpr size_t kWidth = 100;
  std::string out =
      "NAME\n" + wrap(s.name + " - " + s.summary, 4, kWidth) + "\nSYNOPSIS\n    " + s.name;
  for (const auto& p : s.positionals) {
    out += p.rest != nullptr ? " [" + p.name + "...]"
           : p.required      ? " " + p.name
                             : " [" + p.name + "]";
  }
  if (!s.options.empty()) out += " [flags]";
  out += "\n";
  if (!s.description.empty()) out += "\nDESCRIPTION\n" + wrap(s.description, 4, kWidth);
  if (!s.positionals.empty()) {
    out += "\nARGUMENTS\n";
    for (const auto& p : s.positionals) out += "    " + p.name + "\n" + wrap(p.help, 8, kWidth);
  }
  for (size_t group = 0; group < s.groups.size(); ++group) {
    std::string body;
    std::string ignored_names;
    for (const auto& option : s.options) {
      if (option.group != group) continue;
      if (option.kind >= State::Kind::kIgnoredValue) {
        ignored_names += (ignored_names.empty() ? "" : " ") + flag_text(option.name);
        continue;
      }
      std::string line = "    " + flag_text(option.name);
      for (const auto& alias : option.aliases) line += ", " + flag_text(alias);
      if (option.kind == State::Kind::kBool) {
        line += ", --no-" + dashed(option.name);
      } else if (!option.choices.empty()) {
        line += " " + State::joined(option.choices, "|");
      } else {
        line += option.kind == State::Kind::kInteger  ? " N"
                : option.kind == State::Kind::kNumber ? " X"
                : option.kind == State::Kind::kList   ? " VALUE..."
                                                      : " VALUE";
      }
      std::string text = option.help;
      if (!option.default_text.empty()) text += fmt::format(" (default: {})", option.default_text);
      body += line + "\n" + wrap(text, 8, kWidth);
    }
    if (!ignored_names.empty()) {
      body += "    Accepted for compatibility, without effect:\n" + wrap(ignored_names, 8, kWidth);
    }
    if (!body.empty()) {
      std::string title = s.groups[group];
      std::ranges::transform(title, title.begin(), [](unsigned char c) { return std::toupper(c); });
      out += fmt::format("\n{}\n{}", title, body);
    }
  }
  if (!s.options.empty()) {
    out += "\nCONFIGURATION\n" + wrap(
                                     "Dashes and underscores are alike in flag names. --config "
                                     "FILE reads flags from a JSON object; the "
                                     "environment variable REFT_NAME_OF_FLAG sets a flag too. The "
                                     "command line wins, then the "
                                     "environment.",
                                     4, kWidth);
  }
  if (!s.examples.empty()) {
    out += "\nEXAMPLES\n";
    for (const auto& [command, explanation] : s.examples) {
      out += wrap(explanation, 4, kWidth) + "        " + command + "\n";
    }
  }
  return out;
}

std::vector<std::string> ArgParser::flag_names() const {
  std::vector<std::string> names{"--help", "--config"};
  for (const auto& option : state_->options) names.push_back(flag_text(option.name));
  return names;
}

std::optional<std::string> nearest_match(const std::string& word,
                                         const std::vector<std::string>& candidates) {
  std::optional<std::string> best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t substituted = diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace reft
