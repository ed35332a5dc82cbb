// A Mamba block with its gradient: the library's Mixer over parameters that Python owns.
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "python/src/bindings.h"
#include "ssm/autograd/tape.h"
#include "ssm/models/mamba1.h"
#include "ssm/models/mamba2.h"

namespace ssm::python {
namespace {

struct Parameter {
  std::string name;
  Shape shape;
  bool channels_contiguous;  // in memory
};

class ShapeReader final : public nn::Visitor {
 public:
  std::vector<Parameter> parameters;

 protected:
  void on_weight(const std::string& name, Weight&, const Shape& shape) override {
    parameters.push_back({name, shape, false});
  }
  void on_tensor(const std::string& name, Tensor&, const Shape& shape, nn::Storage storage) override {
    parameters.push_back({name, shape, storage == nn::Storage::channels_contiguous});
  }
};

// Gives a mixer its parameters, in the order it names them.
class Filler final : public nn::Visitor {
 public:
  Filler(std::span<const Tensor> values, Device device, bool watched)
      : values_(values), device_(device), watched_(watched) {}
  std::vector<Tensor> used;  // what carries the gradients

 protected:
  void on_weight(const std::string& name, Weight& weight, const Shape& shape) override {
    weight = next(name, shape);
  }
  void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, nn::Storage storage) override {
    tensor = next(name, shape, storage);
  }

 private:
  Tensor next(const std::string& name, const Shape& shape, std::optional<nn::Storage> storage = {}) {
    SSM_CHECK(used.size() < values_.size(), "{} parameters given, but {} is another", values_.size(), name);
    Tensor value = values_[used.size()];
    SSM_CHECK(value.shape() == shape && value.dtype() == DType::f32 && value.device() == device_,
              "{} is {} of {} on {}, expected f32 {} on {}, where x is", name, value.shape(),
              name_of(value.dtype()), name_of(value.device()), shape, name_of(device_));
    value = storage ? nn::stored_as(value, *storage) : value.row_major();
    value.set_tape_node(nullptr);
    if (watched_) watch(value);
    used.push_back(value);
    return value;
  }

  std::span<const Tensor> values_;
  Device device_;
  bool watched_;
};

// What one forward call leaves for its backward.
struct Recorded {
  std::unique_ptr<Mixer> mixer;
  Tape tape;
  Tensor x, y;
  std::vector<Tensor> parameters;

  nb::tuple backward(const InArray& dy) {
    const Tensor from = tensor_of(dy, "dy");
    SSM_CHECK(mixer != nullptr, "the gradient of this call was taken before");
    SSM_CHECK(from.shape() == y.shape() && from.dtype() == DType::f32, "dy is {} of {}, expected f32 {}",
              from.shape(), name_of(from.dtype()), y.shape());
    unlocked([&] {
      tape.backward(y, from.row_major());
      mixer.reset();
    });
    nb::list gradients;
    for (const Tensor& p : parameters) gradients.append(array_of(gradient_of(p)));
    return nb::make_tuple(array_of(gradient_of(x)), gradients);
  }
};

class Block {
 public:
  explicit Block(const std::string& config) : config_(nlohmann::json::parse(config)) {
    const std::unique_ptr<Mixer> mixer = make();
    ShapeReader reader;
    mixer->visit(reader);
    parameters_ = std::move(reader.parameters);
  }

  nb::list parameters() const {
    nb::list out;
    for (const Parameter& p : parameters_) {
      out.append(nb::make_tuple(p.name, std::vector<int64_t>(p.shape.begin(), p.shape.end()),
                                p.channels_contiguous));
    }
    return out;
  }

  // (y, what backward needs or None). `conv` and `ssm`: states that are read and written. On a card
  // parameters lie as the kernels read them (`channels_contiguous`).
  nb::tuple forward(const InArray& x, const std::vector<InArray>& parameters,
                    const std::vector<int64_t>& lengths, bool gradient, const std::optional<InOutArray>& conv,
                    const std::optional<InOutArray>& ssm) const {
    std::vector<Tensor> values;
    for (const InArray& p : parameters) values.push_back(tensor_of(p, "a parameter"));
    SSM_CHECK(values.size() == parameters_.size(), "{} parameters, expected {}", values.size(),
              parameters_.size());
    auto recorded = std::make_unique<Recorded>();
    recorded->x = tensor_of(x, "x");
    MixerState state;
    if (conv) state.conv = tensor_of(*conv, "conv_state");
    if (ssm) state.ssm = tensor_of(*ssm, "ssm_state");
    unlocked([&] { run(*recorded, values, lengths, gradient, state); });
    const nb::object y = array_of(recorded->y);
    return gradient ? nb::make_tuple(y, nb::cast(std::move(recorded))) : nb::make_tuple(y, nb::none());
  }

 private:
  std::unique_ptr<Mixer> make() const {
    const std::string type = config_.at("model_type");
    return type == "mamba2" ? make_mamba2(config_, DType::f32) : make_mamba1(config_, DType::f32);
  }

  void run(Recorded& r, std::span<const Tensor> values, const std::vector<int64_t>& lengths, bool gradient,
           const MixerState& state) const {
    r.mixer = make();
    Filler filler(values, r.x.device(), gradient);
    r.mixer->visit(filler);
    r.parameters = std::move(filler.used);
    if (gradient) watch(r.x);
    std::vector<int32_t> slots(lengths.size());
    std::iota(slots.begin(), slots.end(), 0);
    const RecordScope recording(gradient ? &r.tape : nullptr);
    r.mixer->prepare();
    r.y = r.mixer->forward(r.x, SequenceBatch(lengths, slots), state);
  }

  nlohmann::json config_;
  std::vector<Parameter> parameters_;
};

}  // namespace

void bind_blocks(nb::module_& m) {
  nb::class_<Recorded>(m, "Recorded")
      .def("backward", &Recorded::backward, nb::arg("dy"), "(dx, the parameters' gradients), once");
  nb::class_<Block>(m, "Block")
      .def(nb::init<const std::string&>(), nb::arg("config"))
      .def_prop_ro(
          "parameters", &Block::parameters,
          "(name, shape, whether dimension 0 is the innermost in memory) of each, in the order of forward's")
      .def("forward", &Block::forward, nb::arg("x"), nb::arg("parameters"), nb::arg("lengths"),
           nb::arg("gradient") = false, nb::arg("conv") = nb::none(), nb::arg("ssm") = nb::none(),
           "(y [T, M], a Recorded or None)");
}

}  // namespace ssm::python
