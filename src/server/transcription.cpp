// /v1/audio/transcriptions and /v1/audio/translations.
#include <atomic>
#include <charconv>
#include <mutex>

#include "base/log.h"
#include "media/audio.h"
#include "media/log_mel.h"
#include "server/handlers.h"
#include "server/json_writer.h"
#include "server/multipart.h"
#include "speech/transcript_format.h"

namespace reft {
namespace {

// The fields of a form, each of which may come once but for those whose name ends with [].
class Form {
 public:
  Form(std::string_view content_type, std::string_view body)
      : parts_(parse_multipart(content_type, body)) {}

  const FormPart* find(std::string_view name) const {
    const FormPart* found = nullptr;
    for (const FormPart& part : parts_) {
      if (part.name != name) continue;
      if (found != nullptr)
        throw RequestError(fmt::format("'{}' comes twice", name), std::string(name));
      found = &part;
    }
    return found;
  }
  std::optional<std::string> text(std::string_view name) const {
    const FormPart* part = find(name);
    if (part == nullptr || part->body.empty()) return std::nullopt;
    if (part->body.size() > 100'000)
      throw RequestError(fmt::format("'{}' is too long", name), std::string(name));
    return to_valid_utf8(part->body);
  }
  // Also under the name with "[]", and comma-separated.
  std::vector<std::string> list(const std::string& name) const {
    std::vector<std::string> out;
    for (const FormPart& part : parts_) {
      if (part.name != name && part.name != name + "[]") continue;
      for (size_t at = 0; at <= part.body.size();) {
        const size_t end = std::min(part.body.find(',', at), part.body.size());
        if (end > at) out.emplace_back(part.body.substr(at, end - at));
        at = end + 1;
      }
    }
    return out;
  }
  template <class T>
  T number(const char* name, T fallback) const {
    const auto value = text(name);
    if (!value) return fallback;
    T out{};
    const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), out);
    if (error != std::errc() || end != value->data() + value->size())
      throw RequestError(fmt::format("{} must be a number, got '{}'", name, value->substr(0, 64)),
                         name);
    return out;
  }
  bool flag(const char* name, bool fallback) const {
    const auto value = text(name);
    if (!value) return fallback;
    if (*value == "true" || *value == "True" || *value == "1") return true;
    if (*value == "false" || *value == "False" || *value == "0") return false;
    throw RequestError(
        fmt::format("{} must be true or false, got '{}'", name, value->substr(0, 64)), name);
  }

 private:
  std::vector<FormPart> parts_;
};

struct SpeechRequest {
  TranscriptionOptions options;
  std::string format = "json";
  Granularities granularities;
  bool stream = false;
  std::vector<float> samples;
};

std::vector<float> read_samples(const Form& form) {
  const FormPart* file = form.find("file");
  if (file == nullptr)
    throw RequestError("'file' is missing: send the recording as a form's file", "file");
  const std::string name =
      file->filename.empty() ? "file" : to_valid_utf8(file->filename.substr(0, 200));
  try {
    const AudioClip clip = decode_audio(
        {reinterpret_cast<const std::byte*>(file->body.data()), file->body.size()}, name);
    return resample(clip.samples, clip.sample_rate, kSpeechRate);
  } catch (const RequestError&) {
    throw;
  } catch (const Error& e) {
    throw RequestError(e.what(), "file");
  }
}

SpeechRequest parse(const Form& form, bool translate) {
  SpeechRequest out;
  TranscriptionOptions& o = out.options;
  o.translate = translate;
  o.language = form.text("language").value_or("");
  o.prompt = form.text("prompt").value_or("");
  out.format = form.text("response_format").value_or("json");
  if (out.format != "json" && out.format != "text" && out.format != "srt" && out.format != "vtt" &&
      out.format != "verbose_json") {
    throw RequestError(
        fmt::format("response_format must be json, text, srt, vtt or verbose_json, got '{}'",
                    out.format.substr(0, 64)),
        "response_format");
  }
  out.stream = form.flag("stream", false);
  if (out.stream && out.format != "json" && out.format != "text")
    throw RequestError("a stream has the response_format json or text", "stream");
  const std::vector<std::string> granularities = form.list("timestamp_granularities");
  if (!granularities.empty()) out.granularities = {.segments = false, .words = false};
  for (const std::string& g : granularities) {
    if (g == "segment") {
      out.granularities.segments = true;
    } else if (g == "word") {
      out.granularities.words = true;
    } else {
      throw RequestError(
          fmt::format("timestamp_granularities are segment and word, got '{}'", g.substr(0, 64)),
          "timestamp_granularities");
    }
  }
  if (!granularities.empty() && (out.format == "json" || out.format == "text"))
    throw RequestError("timestamp_granularities need response_format verbose_json, srt or vtt",
                       "timestamp_granularities");
  o.word_timestamps = out.granularities.words;
  if (!form.list("include").empty())
    throw RequestError("include is not supported: log-probabilities are in verbose_json",
                       "include");
  // 0, OpenAI's default, means: start there and go up while the result looks wrong.
  const auto temperature = form.number<float>("temperature", 0.0f);
  if (temperature != 0) o.temperatures = {temperature};
  o.beam_size = form.number<int64_t>("beam_size", o.beam_size);
  o.best_of = form.number<int64_t>("best_of", o.best_of);
  o.patience = form.number<double>("patience", o.patience);
  if (form.text("length_penalty")) o.length_penalty = form.number<double>("length_penalty", 0);
  o.seed = form.number<uint64_t>("seed", 0);
  o.compression_ratio_threshold =
      form.number<double>("compression_ratio_threshold", o.compression_ratio_threshold);
  o.logprob_threshold = form.number<double>("logprob_threshold", o.logprob_threshold);
  o.no_speech_threshold = form.number<double>("no_speech_threshold", o.no_speech_threshold);
  o.condition_on_previous_text =
      form.flag("condition_on_previous_text", o.condition_on_previous_text);
  return out;
}

std::string next_id() {
  static std::atomic<uint64_t> counter = 0;
  return fmt::format("speech-{}", counter++);
}

// One request: brings the engine's updates to the connection's strand, aborts when the client
// leaves.
class SpeechExchange : public std::enable_shared_from_this<SpeechExchange> {
 public:
  SpeechExchange(ServeContext& context, std::shared_ptr<Exchange> exchange, SpeechRequest request)
      : context_(context),
        exchange_(std::move(exchange)),
        request_(std::move(request)),
        id_(next_id()) {
    transcript_.task = request_.options.translate ? "translate" : "transcribe";
    context_.generations.add();
  }
  ~SpeechExchange() { context_.generations.remove(); }
  SpeechExchange(const SpeechExchange&) = delete;
  SpeechExchange& operator=(const SpeechExchange&) = delete;

  void start() {
    exchange_->on_disconnect([&engine = *context_.speech, id = id_] { engine.abort(id); });
    TranscriptionRequest request;
    request.id = id_;
    request.samples = std::move(request_.samples);
    request.options = request_.options;
    if (context_.options.log_requests) {
      log_info("Serve",
               "request {}: {:.1f} s of sound, task {}, language {}, beam size {}, stream {}", id_,
               static_cast<double>(request.samples.size()) / kSpeechRate, transcript_.task,
               request.options.language.empty() ? "detected" : request.options.language,
               request.options.beam_size, request_.stream);
    }
    // The engine may keep the function longer than the request: the last update lets go.
    request.on_update = [self = shared_from_this()](TranscriptionUpdate&& update) mutable {
      if (self == nullptr) return;
      const bool last = update.done;
      self->push(std::move(update));
      if (last) self.reset();
    };
    context_.speech->submit(std::move(request));
    if (request_.stream) exchange_->expect_stream();
    // The client may have left before there was something to abort.
    if (exchange_->disconnected()) context_.speech->abort(id_);
  }

 private:
  void push(TranscriptionUpdate&& update) {
    auto shared = std::make_shared<TranscriptionUpdate>(std::move(update));
    exchange_->post([self = shared_from_this(), shared] { self->take(*shared); });
  }

  void take(TranscriptionUpdate& update) {
    transcript_.language = update.language;
    transcript_.duration = update.duration;
    if (!update.error.empty())
      return exchange_->respond(error_response(500, update.error, "", "transcription_failed"));
    if (update.aborted)
      return exchange_->respond(error_response(503, "the server is shutting down", "", "aborted"));
    std::string delta;
    for (Segment& segment : update.segments) {
      delta += segment.text;
      transcript_.segments.push_back(std::move(segment));
    }
    if (request_.stream) return stream(delta, update.done);
    if (!update.done) return;
    HttpResponse response;
    response.body = format_transcript(transcript_, request_.format, request_.granularities);
    if (request_.format == "text" || request_.format == "srt")
      response.content_type = "text/plain; charset=utf-8";
    if (request_.format == "vtt") response.content_type = "text/vtt; charset=utf-8";
    exchange_->respond(std::move(response));
  }

  void stream(std::string_view delta, bool done) {
    std::string events;
    // The deltas together are the text of the last event.
    if (first_ && !delta.empty())
      delta.remove_prefix(std::min(delta.find_first_not_of(' '), delta.size()));
    if (!delta.empty()) {
      first_ = false;
      events += R"(data: {"type":"transcript.text.delta","delta":)";
      append_json_string(events, delta);
      events += "}\n\n";
    }
    if (done) {
      const Json whole = parse_json(format_transcript(transcript_, "json"), "transcript");
      events += R"(data: {"type":"transcript.text.done","text":)";
      append_json_string(events, transcript_text(transcript_.segments));
      events += R"(,"usage":)" + whole["usage"].dump() + "}\n\n";
    }
    if (!events.empty()) exchange_->write(events);
    if (done) exchange_->finish_stream();
  }

  ServeContext& context_;
  const std::shared_ptr<Exchange> exchange_;
  SpeechRequest request_;
  const std::string id_;
  Transcript transcript_;
  bool first_ = true;
};

void handle(ServeContext& context, const std::shared_ptr<Exchange>& exchange, bool translate) {
  if (context.speech == nullptr)
    throw RequestError(
        "this server's model writes text and does not hear: serve a Whisper model for this",
        "model", 400, "model_not_supported");
  const HttpRequest& http = exchange->request();
  const Form form(http.header("content-type"), http.body);
  context.request.resolve_model(form.text("model"));
  SpeechRequest request = parse(form, translate);
  request.samples = read_samples(form);
  std::make_shared<SpeechExchange>(context, exchange, std::move(request))->start();
}

}  // namespace

void handle_transcriptions(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  handle(context, exchange, false);
}
void handle_translations(ServeContext& context, const std::shared_ptr<Exchange>& exchange) {
  handle(context, exchange, true);
}

}  // namespace reft
