"""The registered model's code: MLflow stores this file and the package beside the export and runs it on loading.

No pickle: the weights are safetensors, checked against their recorded hashes. `predict` takes texts and returns their
continuations; all that it needs is in the model's folder or comes from pip.
"""

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from foundry.config.prediction import PREDICTION
from foundry.tokenizers.chat import Message


class FoundryLM(PythonModel):
    """The model as MLflow loads it.

    Parameters of `predict`: max_tokens, temperature (0 = greedy), top_k (0 = off), top_p (1 = off), seed (none = a new
    one for each call).

    It runs on CUDA or MPS if the machine that loads it has such a device, else on the CPU; `load_model(address,
    model_config={"device": "cpu"})` chooses. `runtime.device` is for the machine that trained it, not for the one that
    serves it.
    """

    def load_context(self, context):
        from foundry.export.huggingface import import_huggingface
        from foundry.export.manifest import verify_export
        from foundry.inference import Generator

        folder = context.artifacts["export"]
        self.chat = verify_export(folder).chat is not None
        self.generator = Generator(
            *import_huggingface(f"{folder}/hf"), (context.model_config or {}).get("device", "auto")
        )

    def predict(self, context, model_input, params=None):  # type hints would be taken for the signature and drop params
        """Continuations, in the order of the texts: a list of strings, or a data frame with one column of them.

        A model that was trained to answer takes each text as what a user says, and gives its answers.

        Raises:
            MlflowException: (a server answers 400) for anything but strings, or an invalid value of a parameter.
        """
        texts = _texts(model_input)
        if unknown := sorted(set(params or {}) - set(PREDICTION)):
            raise _refused(f"unknown parameter {unknown[0]!r}; known: {', '.join(PREDICTION)}")
        options = {**{name: default for name, (_, default) in PREDICTION.items()}, **(params or {})}
        options["max_new_tokens"] = options.pop("max_tokens")
        try:
            prompts = [[Message("user", text)] if self.chat else text for text in texts]
            return [self.generator.generate_text(prompt=prompt, **options) for prompt in prompts]
        except ValueError as e:
            raise _refused(str(e)) from None


def _texts(model_input):
    if hasattr(model_input, "columns"):
        if len(model_input.columns) != 1:
            raise _refused(f"the input must have one column of texts, got {list(model_input.columns)[:5]}")
        model_input = model_input.iloc[:, 0]
    texts = [model_input] if isinstance(model_input, str) else list(model_input)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise _refused(f"the input must be texts, number {number} is {type(text).__name__}: {text!r:.60}")
    return [str(text) for text in texts]


def _refused(message):
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(FoundryLM())
