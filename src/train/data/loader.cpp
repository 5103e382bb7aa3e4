#include "train/data/loader.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "train/data/batch_stream.h"

namespace reft {

// The producer makes batches while it holds `work`, and puts each into the queue before it lets go,
// so that who holds `work` sees the stream and the queue belong together.
struct DataLoader::State {
  struct Item {
    bool is_batch = false;  // else: the end of the epoch
    int64_t epoch = 0;
    TrainBatch batch;
    std::vector<RowCounts> counts;  // by data set

    Json to_json() const;
    static Item from_json(const Json& json);
  };

  State(LoaderOptions o, const ExampleEncoder& encoder)
      : options(std::move(o)), stream(options, encoder) {}

  LoaderOptions options;
  std::mutex work;  // guards stream
  BatchStream stream;
  std::mutex mutex;  // guards what follows; taken after `work`
  std::condition_variable changed;
  std::deque<Item> queue;
  std::exception_ptr error;
  bool stop = false;
  std::thread producer;
  Item last;  // without its batch; of the owner

  void produce() {
    for (;;) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] {
          return stop ||
                 static_cast<int64_t>(queue.size()) < std::max<int64_t>(options.prefetch, 1);
        });
        if (stop) return;
      }
      std::lock_guard working(work);
      Item item;
      std::exception_ptr failure;
      try {
        item.is_batch = stream.next(&item.batch);
        item.epoch = stream.epoch();
        item.counts = stream.counts();
      } catch (...) {
        failure = std::current_exception();
      }
      std::lock_guard lock(mutex);
      if (failure) {
        error = failure;
      } else {
        queue.push_back(std::move(item));
      }
      changed.notify_all();
      if (failure) return;
    }
  }
};

Json DataLoader::State::Item::to_json() const {
  Json list = Json::array();
  for (const RowCounts& c : counts) list.push_back(c.to_json());
  return {{"is_batch", is_batch},
          {"epoch", epoch},
          {"batch", batch.num_rows > 0 ? batch.to_json() : Json()},
          {"counts", std::move(list)}};
}

DataLoader::State::Item DataLoader::State::Item::from_json(const Json& json) {
  Item out;
  out.is_batch = json.at("is_batch").get<bool>();
  out.epoch = json.at("epoch").get<int64_t>();
  if (!json.at("batch").is_null()) out.batch = TrainBatch::from_json(json.at("batch"));
  for (const Json& c : json.at("counts")) out.counts.push_back(RowCounts::from_json(c));
  return out;
}

DataLoader::DataLoader(LoaderOptions options, const ExampleEncoder& encoder)
    : state_(std::make_unique<State>(std::move(options), encoder)) {}

DataLoader::~DataLoader() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_all();
  if (state_->producer.joinable()) state_->producer.join();
}

bool DataLoader::next(TrainBatch* batch) {
  State& s = *state_;
  if (!s.producer.joinable()) s.producer = std::thread([&s] { s.produce(); });
  std::unique_lock lock(s.mutex);
  s.changed.wait(lock, [&] { return !s.queue.empty() || s.error; });
  if (s.queue.empty()) std::rethrow_exception(s.error);
  State::Item item = std::move(s.queue.front());
  s.queue.pop_front();
  lock.unlock();
  s.changed.notify_all();
  *batch = std::move(item.batch);
  s.last = std::move(item);
  return s.last.is_batch;
}

int64_t DataLoader::epoch() const { return state_->last.epoch; }

std::vector<std::pair<std::string, RowCounts>> DataLoader::counts() const {
  const State& s = *state_;
  std::vector<std::pair<std::string, RowCounts>> out;
  for (size_t i = 0; i < s.options.mix.datasets.size(); ++i) {
    out.emplace_back(s.options.mix.datasets[i].name,
                     s.last.counts.empty() ? RowCounts() : s.last.counts[i]);
  }
  return out;
}

Json DataLoader::state() const {
  State& s = *state_;
  std::lock_guard working(s.work);
  std::lock_guard lock(s.mutex);
  Json queue = Json::array();
  for (const State::Item& item : s.queue) queue.push_back(item.to_json());
  return {{"stream", s.stream.state()}, {"queue", std::move(queue)}, {"last", s.last.to_json()}};
}

void DataLoader::restore(const Json& state) {
  State& s = *state_;
  check(!s.producer.joinable(), "the data loader is already running");
  try {
    s.stream.restore(state.at("stream"));
    s.queue.clear();
    for (const Json& item : state.at("queue")) s.queue.push_back(State::Item::from_json(item));
    s.last = State::Item::from_json(state.at("last"));
  } catch (const nlohmann::json::exception& e) {
    fail("the saved state of the data is damaged: {}", e.what());
  }
}

EpochSize measure_epoch(const LoaderOptions& options, const ExampleEncoder& encoder) {
  BatchStream stream(options, encoder);
  EpochSize size;
  TrainBatch batch;
  while (stream.next(&batch)) {
    ++size.batches;
    size.sequences += batch.num_sequences();
    size.tokens += batch.num_tokens();
    size.trained_tokens += batch.num_trained;
  }
  return size;
}

std::string describe_counts(const std::vector<std::pair<std::string, RowCounts>>& counts) {
  std::string out;
  for (const auto& [name, c] : counts) {
    out +=
        fmt::format("{}{}: {} rows read, {} kept ({} truncated), {} dropped, {} bad",
                    out.empty() ? "" : "\n", name, c.read, c.kept, c.truncated, c.dropped, c.bad);
  }
  return out;
}

}  // namespace reft
