// Whether a model can do what a request wants.
#pragma once

#include "speech/speech_tokens.h"
#include "speech/transcription.h"

namespace reft {

// Throws RequestError naming the option at fault. Languages become codes; English-only models get
// theirs.
void check_options(TranscriptionOptions& options, const SpeechTokens& tokens);

}  // namespace reft
