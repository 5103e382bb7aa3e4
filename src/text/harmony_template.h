// The source of the built-in chat template of GPT-OSS, in two parts.
#pragma once

namespace reft {

extern const char* const kHarmonyTypes;
extern const char* const kHarmony;

}  // namespace reft
