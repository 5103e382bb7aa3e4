// /v1/audio/… over the tiny Whisper of tests/golden.
#include <gtest/gtest.h>

#include <thread>

#include "base/error_of_test.h"
#include "server/multipart.h"
#include "server/server_fake.h"
#include "speech/speech_fake.h"

namespace reft {
namespace {

using fake::Client;
using fake::Reply;

std::string wav_of(const std::vector<float>& samples) {
  std::string data;
  for (const float x : samples) {
    const auto value = static_cast<int16_t>(x * 32767);
    data.append(reinterpret_cast<const char*>(&value), 2);
  }
  const auto number = [](uint32_t x) { return std::string(reinterpret_cast<const char*>(&x), 4); };
  return "RIFF" + number(36 + static_cast<uint32_t>(data.size())) + "WAVEfmt " + number(16) +
         std::string("\1\0\1\0", 4) + number(16000) + number(32000) + std::string("\2\0\x10\0", 4) +
         "data" + number(static_cast<uint32_t>(data.size())) + data;
}

struct Field {
  std::string name, value, filename;
};

std::string form_of(const std::vector<Field>& fields) {
  std::string out;
  for (const Field& field : fields) {
    out += "--xyz\r\nContent-Disposition: form-data; name=\"" + field.name + "\"";
    if (!field.filename.empty()) {
      out += "; filename=\"" + field.filename + "\"\r\nContent-Type: application/octet-stream";
    }
    out += "\r\n\r\n" + field.value + "\r\n";
  }
  return out + "--xyz--\r\n";
}

class TranscriptionServer : public testing::Test {
 protected:
  TranscriptionServer()
      : engine_(fake::tiny_speech_model(), std::make_shared<fake::SpeechTokenizer>(), {}),
        server_(engine_, std::make_shared<fake::SpeechTokenizer>(), options()),
        thread_([this] { server_.run(); }) {}
  ~TranscriptionServer() override {
    server_.stop();
    thread_.join();
  }
  static ServerOptions options() {
    ServerOptions out;
    out.host = "127.0.0.1";
    out.port = 0;
    out.handle_signals = false;
    out.served_model_names = {"whisper"};
    return out;
  }
  Reply post(const std::vector<Field>& fields, const std::string& path = "transcriptions",
             const std::string& type = "multipart/form-data; boundary=xyz") {
    return Client(server_.port())
        .request("POST", "/v1/audio/" + path, form_of(fields), {{"content-type", type}});
  }
  // With the recording and a seed-free greedy decoding.
  std::vector<Field> with(std::vector<Field> fields) const {
    fields.push_back({"file", wav_, "a.wav"});
    fields.push_back({"language", "en", ""});
    return fields;
  }

  const std::string wav_ = wav_of(fake::noise(2));
  SpeechEngine engine_;
  Server server_;
  std::thread thread_;
};

TEST_F(TranscriptionServer, EveryFormat) {
  const Json json = post(with({{"model", "whisper", ""}})).json();
  const std::string text = json["text"];
  EXPECT_FALSE(text.empty());
  EXPECT_EQ(json["usage"].dump(), R"({"type":"duration","seconds":2})");
  EXPECT_EQ(post(with({{"response_format", "text", ""}})).body, text + "\n");
  EXPECT_TRUE(post(with({{"response_format", "srt", ""}})).body.starts_with("1\n00:00:0"));
  const Reply vtt = post(with({{"response_format", "vtt", ""}}));
  EXPECT_TRUE(vtt.body.starts_with("WEBVTT\n\n00:0"));
  EXPECT_EQ(vtt.headers.at("content-type"), "text/vtt; charset=utf-8");
  const Json verbose = post(with({{"response_format", "verbose_json", ""},
                                  {"timestamp_granularities[]", "word", ""},
                                  {"timestamp_granularities[]", "segment", ""}}))
                           .json();
  EXPECT_EQ(verbose["task"], "transcribe");
  EXPECT_EQ(verbose["language"], "english");
  EXPECT_EQ(verbose["duration"], 2.0);
  EXPECT_FALSE(verbose["segments"].empty());
  EXPECT_FALSE(verbose["words"].empty());
  const Json words =
      post(with({{"response_format", "verbose_json", ""}, {"timestamp_granularities", "word", ""}}))
          .json();
  EXPECT_FALSE(words.contains("segments"));
  EXPECT_EQ(post(with({{"response_format", "verbose_json", ""}}), "translations").json()["task"],
            "translate");
}

TEST_F(TranscriptionServer, StreamIsTheWhole) {
  const std::string text = post(with({})).json()["text"];
  const Reply reply = post(with({{"stream", "true", ""}}));
  EXPECT_EQ(reply.headers.at("content-type").substr(0, 17), "text/event-stream");
  std::string joined, last;
  for (size_t at = 0; (at = reply.body.find("data: ", at)) != std::string::npos; at += 6) {
    const Json event =
        parse_json(reply.body.substr(at + 6, reply.body.find("\n\n", at) - at - 6), "event");
    if (event["type"] == "transcript.text.delta") joined += event["delta"].get<std::string>();
    last = event["type"].get<std::string>();
    if (event.contains("text")) {
      EXPECT_EQ(event["text"], text);
    }
  }
  EXPECT_EQ(joined, text);
  EXPECT_EQ(last, "transcript.text.done");
}

TEST_F(TranscriptionServer, BadRequestsNameTheField) {
  const auto refused = [&](std::vector<Field> fields) {
    const Reply reply = post(std::move(fields));
    EXPECT_EQ(reply.status, 400) << reply.body;
    return reply.error("param");
  };
  EXPECT_EQ(refused({{"model", "whisper", ""}}), "file");
  EXPECT_EQ(refused({{"file", "no sound", "a.wav"}}), "file");
  EXPECT_EQ(refused({{"file", "", "a.wav"}}), "file");
  EXPECT_EQ(refused(with({{"file", wav_, "b.wav"}})), "file");
  EXPECT_EQ(refused(with({{"response_format", "docx", ""}})), "response_format");
  EXPECT_EQ(refused(with({{"temperature", "hot", ""}})), "temperature");
  EXPECT_EQ(refused(with({{"temperature", "7", ""}})), "temperature");
  EXPECT_EQ(refused(with({{"stream", "perhaps", ""}})), "stream");
  EXPECT_EQ(refused(with({{"stream", "true", ""}, {"response_format", "srt", ""}})), "stream");
  EXPECT_EQ(refused(with({{"timestamp_granularities[]", "word", ""}})), "timestamp_granularities");
  EXPECT_EQ(refused({{"file", wav_, "a.wav"}, {"language", "klingon", ""}}), "language");
  EXPECT_EQ(refused(with({{"include[]", "logprobs", ""}})), "include");
  EXPECT_EQ(refused(with({{"beam_size", "99", ""}})), "beam_size");
  EXPECT_EQ(post(with({{"model", "gpt-4", ""}})).status, 404);
  EXPECT_EQ(post(with({}), "transcriptions", "application/json").status, 415);
  EXPECT_EQ(post(with({}), "transcriptions", "multipart/form-data").status, 400);
}

TEST_F(TranscriptionServer, TextRoutesSayWhatIsServed) {
  Client client(server_.port());
  const Reply chat =
      client.post("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "hi"}}}}});
  EXPECT_EQ(chat.status, 400);
  EXPECT_NE(chat.error("message").find("/v1/audio/transcriptions"), std::string::npos);
  EXPECT_EQ(client.post("/v1/completions", {{"prompt", "hi"}}).status, 400);
  const Json models = client.request("GET", "/v1/models").json();
  EXPECT_EQ(models["data"][0]["architecture"]["input_modalities"][0], "audio");
  EXPECT_EQ(client.request("GET", "/health").status, 200);
  post(with({}));
  const std::string metrics = client.request("GET", "/metrics").body;
  EXPECT_NE(metrics.find("reft:audio_seconds_total"), std::string::npos);
  EXPECT_NE(metrics.find("vllm:num_requests_running"), std::string::npos);
}

TEST_F(TranscriptionServer, AClientThatLeavesAborts) {
  const std::string body =
      form_of({{"file", wav_of(fake::noise(600)), "long.wav"}, {"language", "en", ""}});
  {
    Client client(server_.port());
    client.send(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: a\r\ncontent-type: "
        "multipart/form-data; boundary=xyz\r\ncontent-length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body);
    while (engine_.stats().num_requests_running == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (int i = 0; i < 4000 && engine_.stats().aborted == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(engine_.stats().aborted, 1u);
}

TEST(Multipart, PartsAndErrors) {
  const std::string type = "multipart/form-data; boundary=\"a b\"";
  const std::string body =
      "preamble\r\n--a b\r\ncontent-disposition: form-data; name=x; filename=\"q\\\"; "
      "name=z.wav\"\r\n"
      "x-other: y\r\n\r\n--a\r\n--a b \r\nContent-Disposition: form-data; "
      "name=\"e\"\r\n\r\n\r\n--a b--";
  const std::vector<FormPart> parts = parse_multipart(type, body);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].name, "x");
  EXPECT_EQ(parts[0].filename, "q\"; name=z.wav");
  EXPECT_EQ(parts[0].body, "--a");
  EXPECT_EQ(parts[1].name, "e");
  EXPECT_EQ(parts[1].body, "");
  for (size_t i = 0; i < body.size() - 2; ++i)
    EXPECT_NE(error_of([&] { parse_multipart(type, body.substr(0, i)); }), "") << i;
  EXPECT_NE(error_of([&] { parse_multipart("multipart/form-data", body); }), "");
  EXPECT_NE(error_of([&] { parse_multipart(type, "--a b\r\n\r\n\r\n--a b--"); }), "");
}

TEST(TextServer, SaysThatItDoesNotHear) {
  fake::TestServer server;
  const Reply reply =
      Client(server.port())
          .request("POST", "/v1/audio/transcriptions", form_of({{"file", "x", "a.wav"}}),
                   {{"content-type", "multipart/form-data; boundary=xyz"}});
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("code"), "model_not_supported");
}

}  // namespace
}  // namespace reft
