#include "speech/speech_tokens.h"

#include <algorithm>
#include <cctype>

#include "base/check.h"

namespace reft {
namespace {

struct Language {
  std::string_view code, name;
};
constexpr Language kLanguages[] = {
    {"en", "english"},        {"zh", "chinese"},     {"de", "german"},        {"es", "spanish"},
    {"ru", "russian"},        {"ko", "korean"},      {"fr", "french"},        {"ja", "japanese"},
    {"pt", "portuguese"},     {"tr", "turkish"},     {"pl", "polish"},        {"ca", "catalan"},
    {"nl", "dutch"},          {"ar", "arabic"},      {"sv", "swedish"},       {"it", "italian"},
    {"id", "indonesian"},     {"hi", "hindi"},       {"fi", "finnish"},       {"vi", "vietnamese"},
    {"he", "hebrew"},         {"uk", "ukrainian"},   {"el", "greek"},         {"ms", "malay"},
    {"cs", "czech"},          {"ro", "romanian"},    {"da", "danish"},        {"hu", "hungarian"},
    {"ta", "tamil"},          {"no", "norwegian"},   {"th", "thai"},          {"ur", "urdu"},
    {"hr", "croatian"},       {"bg", "bulgarian"},   {"lt", "lithuanian"},    {"la", "latin"},
    {"mi", "maori"},          {"ml", "malayalam"},   {"cy", "welsh"},         {"sk", "slovak"},
    {"te", "telugu"},         {"fa", "persian"},     {"lv", "latvian"},       {"bn", "bengali"},
    {"sr", "serbian"},        {"az", "azerbaijani"}, {"sl", "slovenian"},     {"kn", "kannada"},
    {"et", "estonian"},       {"mk", "macedonian"},  {"br", "breton"},        {"eu", "basque"},
    {"is", "icelandic"},      {"hy", "armenian"},    {"ne", "nepali"},        {"mn", "mongolian"},
    {"bs", "bosnian"},        {"kk", "kazakh"},      {"sq", "albanian"},      {"sw", "swahili"},
    {"gl", "galician"},       {"mr", "marathi"},     {"pa", "punjabi"},       {"si", "sinhala"},
    {"km", "khmer"},          {"sn", "shona"},       {"yo", "yoruba"},        {"so", "somali"},
    {"af", "afrikaans"},      {"oc", "occitan"},     {"ka", "georgian"},      {"be", "belarusian"},
    {"tg", "tajik"},          {"sd", "sindhi"},      {"gu", "gujarati"},      {"am", "amharic"},
    {"yi", "yiddish"},        {"lo", "lao"},         {"uz", "uzbek"},         {"fo", "faroese"},
    {"ht", "haitian creole"}, {"ps", "pashto"},      {"tk", "turkmen"},       {"nn", "nynorsk"},
    {"mt", "maltese"},        {"sa", "sanskrit"},    {"lb", "luxembourgish"}, {"my", "myanmar"},
    {"bo", "tibetan"},        {"tl", "tagalog"},     {"mg", "malagasy"},      {"as", "assamese"},
    {"tt", "tatar"},          {"haw", "hawaiian"},   {"ln", "lingala"},       {"ha", "hausa"},
    {"ba", "bashkir"},        {"jw", "javanese"},    {"su", "sundanese"},     {"yue", "cantonese"},
};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

std::vector<int32_t> read_ids(const Json& config, const char* key, int64_t vocab_size) {
  std::vector<int32_t> ids;
  const auto it = config.find(key);
  if (it == config.end() || it->is_null()) return ids;
  check(it->is_array(), "{} is {}, not a list of token ids", key, it->dump().substr(0, 100));
  for (const Json& id : *it) {
    check(id.is_number_integer() && id.get<int64_t>() < vocab_size, "{} holds {}, not a token id",
          key, id.dump().substr(0, 100));
    if (id.get<int64_t>() >= 0) ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::vector<std::pair<int64_t, int64_t>> read_heads(const LoadedSpeechModel& loaded) {
  std::vector<std::pair<int64_t, int64_t>> heads;
  const SpeechInfo& info = loaded.model->info();
  const int64_t num_heads = loaded.model->cross_cache_specs()[0].num_kv_heads;
  const auto it = loaded.generation_config.find("alignment_heads");
  if (it != loaded.generation_config.end() && it->is_array()) {
    for (const Json& pair : *it) {
      check(pair.is_array() && pair.size() == 2 && pair[0].is_number_integer() &&
                pair[1].is_number_integer(),
            "alignment_heads holds {}, not a pair of layer and head", pair.dump().substr(0, 100));
      heads.emplace_back(pair[0].get<int64_t>(), pair[1].get<int64_t>());
      const auto [layer, head] = heads.back();
      check(layer >= 0 && layer < info.num_decoder_layers && head >= 0 && head < num_heads,
            "alignment_heads holds layer {} and head {} of {} layers with {} heads", layer, head,
            info.num_decoder_layers, num_heads);
    }
  }
  if (!heads.empty()) return heads;
  // Where nobody has chosen any: all heads of the upper half.
  for (int64_t layer = info.num_decoder_layers / 2; layer < info.num_decoder_layers; ++layer) {
    for (int64_t head = 0; head < num_heads; ++head) heads.emplace_back(layer, head);
  }
  return heads;
}

}  // namespace

std::string language_name(std::string_view code) {
  for (const Language& language : kLanguages) {
    if (language.code == code) return std::string(language.name);
  }
  return std::string(code);
}

std::string language_code(std::string_view name) {
  std::string wanted = lower(name);
  // Regional variants: "en-US", "zh_CN".
  if (const size_t cut = wanted.find_first_of("-_"); cut != std::string::npos) wanted.resize(cut);
  for (const Language& language : kLanguages) {
    if (language.code == wanted || language.name == wanted) return std::string(language.code);
  }
  static constexpr Language kOther[] = {
      {"my", "burmese"},       {"ca", "valencian"}, {"nl", "flemish"},  {"ht", "haitian"},
      {"lb", "letzeburgesch"}, {"ps", "pushto"},    {"pa", "panjabi"},  {"ro", "moldavian"},
      {"si", "sinhalese"},     {"es", "castilian"}, {"zh", "mandarin"}, {"jw", "jv"}};
  for (const Language& other : kOther) {
    if (other.name == wanted) return std::string(other.code);
  }
  return "";
}

SpeechTokens::SpeechTokens(const LoadedSpeechModel& model,
                           std::shared_ptr<const Tokenizer> the_tokenizer)
    : tokenizer(std::move(the_tokenizer)) {
  const int64_t vocab_size = model.model->info().vocab_size;
  const auto find = [&](std::string_view name) { return tokenizer->token_to_id(name); };
  const auto need = [&](std::string_view name) {
    const auto id = find(name);
    check(id && *id < vocab_size, "the tokenizer has no {} token: not one of a speech model", name);
    return *id;
  };
  end_of_text = need("<|endoftext|>");
  start = need("<|startoftranscript|>");
  start_of_previous = need("<|startofprev|>");
  no_timestamps = need("<|notimestamps|>");
  // Its name changed over time.
  no_speech = find("<|nospeech|>") ? *find("<|nospeech|>") : need("<|nocaptions|>");
  timestamp_begin = no_timestamps + 1;
  check(timestamp_begin < vocab_size, "the vocabulary of {} holds no timestamps", vocab_size);
  transcribe = find("<|transcribe|>");
  translate = find("<|translate|>");
  for (const Language& language : kLanguages) {
    const auto id = find(fmt::format("<|{}|>", language.code));
    if (id && *id < vocab_size) languages.emplace_back(language.code, *id);
  }
  // The vocabulary of English-only models is one token shorter.
  multilingual = vocab_size >= 51865 && transcribe && translate && !languages.empty();
  if (const auto it = model.generation_config.find("is_multilingual");
      it != model.generation_config.end() && it->is_boolean()) {
    multilingual = it->get<bool>() && transcribe && translate && !languages.empty();
  }
  suppressed = read_ids(model.generation_config, "suppress_tokens", vocab_size);
  for (const auto& id : {transcribe, translate, std::optional(start), std::optional(no_speech),
                         std::optional(start_of_previous), find("<|startoflm|>")}) {
    if (id && *id < vocab_size) suppressed.push_back(*id);
  }
  std::sort(suppressed.begin(), suppressed.end());
  suppressed.erase(std::unique(suppressed.begin(), suppressed.end()), suppressed.end());
  suppressed_first = read_ids(model.generation_config, "begin_suppress_tokens", vocab_size);
  if (suppressed_first.empty()) {
    suppressed_first = tokenizer->encode(" ", {.add_special_tokens = false});
    suppressed_first.push_back(end_of_text);
  }
  alignment_heads = read_heads(model);
}

std::optional<int32_t> SpeechTokens::language_token(std::string_view code) const {
  for (const auto& [known, id] : languages) {
    if (known == code) return id;
  }
  return std::nullopt;
}

std::vector<int32_t> SpeechTokens::start_sequence(std::string_view language,
                                                  bool translate_to_english) const {
  if (!multilingual) return {start};
  const auto id = language_token(language);
  check(id.has_value(), "the model does not know the language '{}'", language);
  return {start, *id, translate_to_english ? *translate : *transcribe};
}

std::string SpeechTokens::text(std::span<const int32_t> ids) const {
  std::vector<int32_t> plain;
  for (const int32_t id : ids) {
    if (id < end_of_text) plain.push_back(id);
  }
  return tokenizer->decode(plain);
}

}  // namespace reft
