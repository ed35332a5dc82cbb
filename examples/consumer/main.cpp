// Loads a model folder and continues a text:  consumer MODEL "Once upon a time"
#include <iostream>

#include "ssm/core/error.h"
#include "ssm/runtime/generate.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: consumer MODEL TEXT\n";
    return 2;
  }
  try {
    const ssm::LoadedModel model = ssm::load_model(argv[1]);
    ssm::Generator generator(model, 1);
    generator.add(model.need_tokenizer().encode(argv[2]));
    generator.run({.sampling = {.temperature = 0}, .max_new_tokens = 16, .stop = {}},
                  [](size_t, int32_t, std::string_view text) {
                    std::cout << text << std::flush;
                    return true;
                  });
    std::cout << '\n';
  } catch (const ssm::Error& e) {
    std::cerr << "consumer: " << e.what() << '\n';
    return 1;
  }
}
