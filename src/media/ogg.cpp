// Ogg Vorbis by libvorbisfile, Ogg Opus by libopusfile.
#include <opusfile.h>
#define OV_EXCLUDE_STATIC_CALLBACKS
#include <vorbis/vorbisfile.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "media/audio_decoders.h"

namespace reft::audio {
namespace {

struct Source {
  std::span<const std::byte> bytes;
  size_t at = 0;
};

size_t read_vorbis(void* to, size_t size, size_t count, void* source) {
  auto& from = *static_cast<Source*>(source);
  const size_t n = std::min(size * count, from.bytes.size() - from.at);
  std::memcpy(to, from.bytes.data() + from.at, n);
  from.at += n;
  return size == 0 ? 0 : n / size;
}

// Whole frames that a decoder could not make sense of in a row, before the file is given up.
constexpr int kMaxHoles = 1000;

}  // namespace

AudioClip decode_vorbis(std::span<const std::byte> bytes, const std::string& what,
                        const AudioLimits& limits) {
  Source source{bytes};
  OggVorbis_File file{};
  // Without seeking the file is read once, front to back.
  const ov_callbacks callbacks{&read_vorbis, nullptr, nullptr, nullptr};
  check(ov_open_callbacks(&source, &file, nullptr, 0, callbacks) == 0,
        "{}: an Ogg file without a readable Vorbis, Opus or FLAC stream", what);
  struct Close {
    OggVorbis_File* file;
    ~Close() { ov_clear(file); }
  } const close{&file};
  std::optional<Mixer> mixer;
  std::vector<float> piece;
  int holes = 0, section = -1;
  for (;;) {
    float** channels = nullptr;
    int current = 0;
    const long frames = ov_read_float(&file, &channels, 4096, &current);
    if (frames == 0) break;
    if (frames < 0) {
      if (++holes > kMaxHoles) break;
      continue;
    }
    holes = 0;
    const vorbis_info* info = ov_info(&file, -1);
    check(info != nullptr, "{}: a Vorbis stream without its header", what);
    if (!mixer) mixer.emplace(what, info->rate, info->channels, limits);
    check(section == current || section < 0 || info->channels == mixer->channels(),
          "{}: the number of channels changes within the file", what);
    section = current;
    const auto width = static_cast<size_t>(info->channels);
    check(info->channels == mixer->channels(), "{}: the number of channels changes within the file",
          what);
    piece.resize(static_cast<size_t>(frames) * width);
    for (size_t i = 0; i < static_cast<size_t>(frames); ++i) {
      for (size_t c = 0; c < width; ++c) piece[i * width + c] = channels[c][i];
    }
    mixer->add(piece.data(), frames);
  }
  check(mixer.has_value(), "{}: a damaged Vorbis file, nothing could be decoded", what);
  return mixer->finish("vorbis");
}

AudioClip decode_opus(std::span<const std::byte> bytes, const std::string& what,
                      const AudioLimits& limits) {
  int error = 0;
  OggOpusFile* file =
      op_open_memory(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), &error);
  check(file != nullptr, "{}: a damaged Opus file (error {})", what, error);
  struct Close {
    OggOpusFile* file;
    ~Close() { op_free(file); }
  } const close{file};
  constexpr int64_t kOpusRate = 48'000;
  Mixer mixer(what, kOpusRate, 2, limits);  // always decoded to stereo at this rate
  std::vector<float> piece(5760 * 2);
  for (int holes = 0; holes < kMaxHoles;) {
    const int frames = op_read_float_stereo(file, piece.data(), static_cast<int>(piece.size()));
    if (frames == 0) break;
    if (frames < 0) {
      if (frames != OP_HOLE) break;
      ++holes;
      continue;
    }
    holes = 0;
    mixer.add(piece.data(), frames);
  }
  return mixer.finish("opus");
}

}  // namespace reft::audio
