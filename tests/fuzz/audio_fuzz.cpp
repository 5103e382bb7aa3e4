// Bytes as a sound file: decoding must end in a clip or an Error.
// layers: base media
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "media/audio.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace reft;
  try {
    const AudioClip clip =
        decode_audio({reinterpret_cast<const std::byte*>(data), size}, "fuzz", {.max_seconds = 30});
    if (clip.sample_rate <= 0 || clip.samples.empty()) __builtin_trap();
  } catch (const Error&) {
  }
  return 0;
}
