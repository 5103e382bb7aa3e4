#include "server/logprobs.h"

#include <algorithm>
#include <cmath>

#include "server/json_writer.h"

namespace reft {
namespace {

// What JSON can hold; −9999 is vLLM's stand-in for an impossible token.
float printable(float logprob) {
  return std::isnan(logprob) ? -9999.0f : std::max(logprob, -9999.0f);
}

}  // namespace

std::vector<TokenLogprob> top_alternatives(const TokenLogprobs& token, int num_top) {
  std::vector<TokenLogprob> out;
  for (const TokenLogprob& entry : token) {
    const bool seen = std::any_of(out.begin(), out.end(), [&](const TokenLogprob& other) {
      return other.token == entry.token;
    });
    if (!seen) out.push_back(entry);
  }
  std::stable_sort(out.begin(), out.end(), [](const TokenLogprob& a, const TokenLogprob& b) {
    return a.logprob > b.logprob;
  });
  if (out.size() > static_cast<size_t>(num_top)) out.resize(static_cast<size_t>(num_top));
  return out;
}

std::string LogprobWriter::label(int32_t token) const {
  if (as_ids_ || tokenizer_ == nullptr) return "token_id:" + std::to_string(token);
  return to_valid_utf8(tokenizer_->token_bytes(token));
}

void LogprobWriter::append_entry(std::string& out, const TokenLogprob& entry) const {
  out += R"({"token":)";
  append_json_string(out, label(entry.token));
  out += R"(,"logprob":)";
  append_json_float(out, printable(entry.logprob));
  out += R"(,"bytes":)";
  if (tokenizer_ == nullptr) {
    out += "null";
    return;
  }
  out += '[';
  const std::string bytes = tokenizer_->token_bytes(entry.token);
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

void LogprobWriter::append_chat(std::string& out, const TokenLogprobs& token, int num_top) const {
  if (token.empty()) return;
  append_entry(out, token.front());
  out += R"(,"top_logprobs":[)";
  bool first = true;
  for (const TokenLogprob& entry : top_alternatives(token, num_top)) {
    if (!first) out += ',';
    first = false;
    append_entry(out, entry);
    out += '}';
  }
  out += "]}";
}

void LogprobWriter::append_prompt(std::string& out,
                                  const std::vector<TokenLogprobs>& prompt) const {
  out += '[';
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (i > 0) out += ',';
    if (prompt[i].empty()) {
      out += "null";
      continue;
    }
    out += '{';
    for (size_t j = 0; j < prompt[i].size(); ++j) {
      const TokenLogprob& entry = prompt[i][j];
      // The chosen token may come again among the alternatives.
      if (j > 0 && entry.token == prompt[i][0].token) continue;
      if (j > 0) out += ',';
      out += fmt::format("\"{}\":{{\"logprob\":", entry.token);
      append_json_float(out, printable(entry.logprob));
      out += fmt::format(R"(,"rank":{},"decoded_token":)", entry.rank);
      if (tokenizer_ == nullptr) {
        out += "null";
      } else {
        append_json_string(out, to_valid_utf8(tokenizer_->token_bytes(entry.token)));
      }
      out += '}';
    }
    out += '}';
  }
  out += ']';
}

void CompletionLogprobs::add(const LogprobWriter& writer, int32_t id, const TokenLogprobs& token,
                             int num_top) {
  const char* separator = tokens_.empty() ? "" : ",";
  for (std::string* list : {&offsets_, &logprobs_, &tokens_, &tops_}) *list += separator;
  const std::string label = writer.label(id);
  append_json_int(offsets_, offset_);
  offset_ += count_code_points(label);
  append_json_string(tokens_, label);
  if (token.empty()) {
    logprobs_ += "null";
    tops_ += "null";
    return;
  }
  append_json_float(logprobs_, printable(token.front().logprob));
  // The chosen token is always among them, so there may be one more than asked for.
  std::vector<TokenLogprob> entries = top_alternatives(token, num_top);
  const bool has_chosen = std::any_of(entries.begin(), entries.end(), [&](const TokenLogprob& e) {
    return e.token == token.front().token;
  });
  if (!has_chosen) entries.push_back(token.front());
  tops_ += '{';
  std::vector<std::string> labels;
  for (const TokenLogprob& entry : entries) {
    std::string name = writer.label(entry.token);
    // Two ids may share their text; an object can hold it once.
    if (std::find(labels.begin(), labels.end(), name) != labels.end()) continue;
    if (!labels.empty()) tops_ += ',';
    append_json_string(tops_, name);
    tops_ += ':';
    append_json_float(tops_, printable(entry.logprob));
    labels.push_back(std::move(name));
  }
  tops_ += '}';
}

void CompletionLogprobs::append(std::string& out) const {
  out += R"({"text_offset":[)" + offsets_ + R"(],"token_logprobs":[)" + logprobs_ +
         R"(],"tokens":[)" + tokens_ + R"(],"top_logprobs":[)" + tops_ + "]}";
}

void CompletionLogprobs::clear() {
  for (std::string* list : {&offsets_, &logprobs_, &tokens_, &tops_}) list->clear();
}

}  // namespace reft
