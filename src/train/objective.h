// What a run minimises: the loss of a micro-batch, and its gradients through a tape.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "models/model.h"
#include "tensor/safetensors_writer.h"
#include "train/data/train_batch.h"
#include "train/optimizer.h"
#include "train/preference_loss.h"

namespace reft {

// −log p of the trained tokens under the model that preferences are measured against: a frozen copy
// (load_reference), or, while adapters are trained, the same model with them off. Called without a
// tape.
using ReferenceModel = std::function<Tensor(const Batch& batch, const Tensor& labels)>;

// A second model, of which nothing is trained. Throws what load_model throws, and where it has
// another vocabulary than `info`.
ReferenceModel load_reference(const std::string& path, const LoadOptions& options,
                              const ModelInfo& info);

// One thread at a time.
class Objective {
 public:
  virtual ~Objective() = default;
  // The sum of the losses of a micro-batch (its `gradient` is left empty). With `backward`, adds
  // its gradients to those of all trained parameters. A batch without anything to learn has no
  // units.
  virtual LossSum run(const TrainBatch& batch, const TrainingForward& forward, bool backward) = 0;
  // The sum of the losses that run() has left on the device since the last call, where it did: to
  // read them waits for the device. They are not in run()'s sums.
  virtual double settle() { return 0; }
  // What is trained beside the model's own parameters.
  virtual std::vector<TrainParameter> parameters() const { return {}; }
  // File that holds these beside the model, without ".safetensors", and its tensors.
  virtual std::pair<std::string, NamedTensors> extra_file() const { return {}; }
};

// The model must outlive the objective. `reference` may be empty where needs_reference() is false.
// `source`: the folder that the weights came from, for stage rm's value head; empty, or without
// one: random ones, by `seed`. Throws Error naming the file.
std::unique_ptr<Objective> make_objective(Stage stage, const PreferenceOptions& options,
                                          CausalLmModel& model, Device device,
                                          ReferenceModel reference, const std::string& source,
                                          uint64_t seed);
bool needs_reference(Stage stage, const PreferenceOptions& options);
// Throws Error naming flags that exclude each other.
void check_preferences(Stage stage, const PreferenceOptions& options, bool load_pretrained,
                       const std::string& ref_model);
// The inverse of parse_stage.
const char* stage_name(Stage stage);

// Stage rm's file, as LLaMA-Factory and TRL name it: "v_head.summary.weight" [1, D] and
// "v_head.summary.bias" [1], float32. The score of a conversation is their product with the final
// norm's result at its last token.
inline constexpr const char* kValueHeadStem = "value_head";

}  // namespace reft
