// What each file of the binding adds to the module.
#pragma once

#include "python/src/arrays.h"

namespace ssm::python {

void bind_ops(nb::module_& m);
void bind_blocks(nb::module_& m);
void bind_tokenizer(nb::module_& m);
void bind_state(nb::module_& m);  // after the model
void bind_model(nb::module_& m);
void bind_generate(nb::module_& m);
void bind_train(nb::module_& m);

}  // namespace ssm::python
