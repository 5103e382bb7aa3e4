// TensorBoard event files: TFRecords (length, masked CRC-32C, data, masked CRC-32C) of protobuf
// Event messages. Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/util/
// event.proto, summary.proto. One thread at a time.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace reft {

// CRC with the Castagnoli polynomial, as iSCSI has it: of "123456789" it is 0xe3069283.
uint32_t crc32c(std::string_view data);

class TensorBoardWriter {
 public:
  // Makes `folder` and a new file events.out.tfevents.<time>.<host>.<pid> in it. What earlier
  // files of the folder say about steps above `start_step` is taken back. Throws Error naming the
  // file.
  TensorBoardWriter(const std::string& folder, int64_t start_step);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  void add_scalar(std::string_view tag, int64_t step, double value);
  void flush();
  const std::string& path() const { return path_; }

 private:
  void write_record(std::string_view data);

  std::string path_;
  std::FILE* file_;
};

}  // namespace reft
