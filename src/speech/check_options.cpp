#include "speech/check_options.h"

#include "engine/request.h"
#include "speech/speech_engine.h"

namespace reft {

void check_options(TranscriptionOptions& o, const SpeechTokens& tokens) {
  const auto refuse = [](bool ok, const char* param, const std::string& message) {
    if (!ok) throw RequestError(message, param);
  };
  refuse(!o.temperatures.empty() && o.temperatures.size() <= 16, "temperature",
         "temperature must be one to 16 numbers");
  for (const float t : o.temperatures)
    refuse(t >= 0 && t <= 2, "temperature", "temperature must be between 0 and 2");
  for (const auto& [value, param] : {std::pair(o.beam_size, "beam_size"), {o.best_of, "best_of"}}) {
    refuse(value >= 1 && value <= SpeechEngine::kMaxHypotheses, param,
           fmt::format("{} must be between 1 and {}, got {}", param, SpeechEngine::kMaxHypotheses,
                       value));
  }
  refuse(o.patience > 0 && o.patience <= 10, "patience", "patience must be above 0, at most 10");
  refuse(o.max_tokens >= 0, "max_tokens", "max_tokens must not be negative");
  refuse(o.max_initial_timestamp >= 0 && o.max_initial_timestamp <= 30, "max_initial_timestamp",
         "max_initial_timestamp must be between 0 and 30 seconds");
  if (!o.language.empty()) {
    const std::string code = language_code(o.language);
    refuse(!code.empty(), "language",
           fmt::format("'{}' is no language that is known here", o.language.substr(0, 64)));
    refuse(tokens.multilingual ? tokens.language_token(code).has_value() : code == "en", "language",
           fmt::format("this model does not know the language '{}'", code));
    o.language = code;
  } else if (!tokens.multilingual) {
    o.language = "en";
  }
  refuse(!o.translate || tokens.multilingual, "model",
         "this model knows English only and cannot translate");
}

}  // namespace reft
