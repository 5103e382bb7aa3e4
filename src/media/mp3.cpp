// MP3 by the decoder that comes with miniaudio (dr_mp3).
#define MA_NO_DEVICE_IO
#define MA_NO_THREADING
#include <miniaudio.h>

#include <memory>

#include "base/check.h"
#include "media/audio_decoders.h"

namespace reft::audio {

AudioClip decode_mp3(std::span<const std::byte> bytes, const std::string& what,
                     const AudioLimits& limits) {
  const auto decoder = std::make_unique<ma_decoder>();
  ma_decoder_config config = ma_decoder_config_init(ma_format_f32, 0, 0);  // the file's own rate
  config.encodingFormat = ma_encoding_format_mp3;
  check(ma_decoder_init_memory(bytes.data(), bytes.size(), &config, decoder.get()) == MA_SUCCESS,
        "{}: a damaged MP3 file, no frame could be decoded", what);
  struct Close {
    ma_decoder* decoder;
    ~Close() { ma_decoder_uninit(decoder); }
  } const close{decoder.get()};
  Mixer mixer(what, decoder->outputSampleRate, decoder->outputChannels, limits);
  constexpr int64_t kPiece = 4096;
  std::vector<float> piece(static_cast<size_t>(kPiece * mixer.channels()));
  for (;;) {
    ma_uint64 frames = 0;
    const ma_result result =
        ma_decoder_read_pcm_frames(decoder.get(), piece.data(), kPiece, &frames);
    if (frames > 0) mixer.add(piece.data(), static_cast<int64_t>(frames));
    if (result != MA_SUCCESS || frames == 0) break;
  }
  return mixer.finish("mp3");
}

}  // namespace reft::audio
