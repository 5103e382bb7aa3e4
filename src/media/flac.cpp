// FLAC by libFLAC.
#include <FLAC/stream_decoder.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>

#include "base/check.h"
#include "media/audio_decoders.h"

namespace reft::audio {
namespace {

struct Session {
  std::span<const std::byte> bytes;
  const std::string& what;
  const AudioLimits& limits;
  size_t at = 0;
  std::optional<Mixer> mixer;
  std::vector<float> piece;
  std::exception_ptr error;  // exceptions must not cross C code
};

FLAC__StreamDecoderReadStatus on_read(const FLAC__StreamDecoder*, FLAC__byte* buffer, size_t* size,
                                      void* client) {
  auto& session = *static_cast<Session*>(client);
  const size_t n = std::min(*size, session.bytes.size() - session.at);
  std::memcpy(buffer, session.bytes.data() + session.at, n);
  session.at += n;
  *size = n;
  return n == 0 ? FLAC__STREAM_DECODER_READ_STATUS_END_OF_STREAM
                : FLAC__STREAM_DECODER_READ_STATUS_CONTINUE;
}

FLAC__StreamDecoderWriteStatus on_write(const FLAC__StreamDecoder*, const FLAC__Frame* frame,
                                        const FLAC__int32* const* buffer, void* client) {
  auto& session = *static_cast<Session*>(client);
  try {
    const FLAC__FrameHeader& head = frame->header;
    if (!session.mixer)
      session.mixer.emplace(session.what, head.sample_rate, head.channels, session.limits);
    check(head.channels == session.mixer->channels(),
          "{}: the number of channels changes within the file", session.what);
    const float scale = 1.0f / static_cast<float>(int64_t{1} << (head.bits_per_sample - 1));
    session.piece.resize(size_t{head.blocksize} * head.channels);
    for (unsigned i = 0; i < head.blocksize; ++i) {
      for (unsigned c = 0; c < head.channels; ++c)
        session.piece[size_t{i} * head.channels + c] = static_cast<float>(buffer[c][i]) * scale;
    }
    session.mixer->add(session.piece.data(), head.blocksize);
    return FLAC__STREAM_DECODER_WRITE_STATUS_CONTINUE;
  } catch (...) {
    session.error = std::current_exception();
    return FLAC__STREAM_DECODER_WRITE_STATUS_ABORT;
  }
}

// Damaged frames are skipped, as players do.
void on_error(const FLAC__StreamDecoder*, FLAC__StreamDecoderErrorStatus, void*) {}

}  // namespace

AudioClip decode_flac(std::span<const std::byte> bytes, const std::string& what,
                      const AudioLimits& limits, bool in_ogg) {
  const std::unique_ptr<FLAC__StreamDecoder, void (*)(FLAC__StreamDecoder*)> decoder(
      FLAC__stream_decoder_new(), &FLAC__stream_decoder_delete);
  check(decoder != nullptr, "{}: no memory for a FLAC decoder", what);
  Session session{bytes, what, limits};
  const auto start =
      in_ogg ? &FLAC__stream_decoder_init_ogg_stream : &FLAC__stream_decoder_init_stream;
  check(start(decoder.get(), on_read, nullptr, nullptr, nullptr, nullptr, on_write, nullptr,
              on_error, &session) == FLAC__STREAM_DECODER_INIT_STATUS_OK,
        "{}: the FLAC decoder cannot start", what);
  FLAC__stream_decoder_process_until_end_of_stream(decoder.get());
  if (session.error) std::rethrow_exception(session.error);
  check(session.mixer.has_value(), "{}: a damaged FLAC file, no frame could be decoded", what);
  return session.mixer->finish("flac");
}

}  // namespace reft::audio
