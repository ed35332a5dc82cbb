"""Makes `lm_eval --model ssm` work without naming this package: lm-eval-harness 0.4 looks for models in its own
table alone. ssm_cpp_lm_eval.pth imports this at start; it waits for lm_eval.models and adds a line to the table."""

import sys


class _Waiter:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "lm_eval.models":
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(_Waiter)
        spec = find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            from lm_eval.api.registry import model_registry

            if "ssm" not in model_registry:
                model_registry.register("ssm", target="ssm_cpp.lm_eval_model:SsmLM")

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Waiter)
