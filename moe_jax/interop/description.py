"""A config.json, of which every field is either used or known to change nothing that we compute."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_jax.config.rules import ConfigError

# Fields that do not change the logits of a sequence. Attention dropout and the losses act in training alone.
WITHOUT_EFFECT = frozenset(
    {
        *("_attn_implementation", "_name_or_path", "architectures", "auto_map", "dtype", "experts_implementation"),
        *("fsdp_config", "id2label", "label2id", "model_type", "problem_type", "quantization_config", "torch_dtype"),
        *("transformers_version", "unsloth_fixed", "use_cache", "use_return_dict", "return_dict", "pretraining_tp"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "initializer_range", "ep_size"),
        *("attention_dropout", "hidden_dropout", "router_jitter_noise", "chunk_size_feed_forward"),
        *("aux_loss_alpha", "output_router_logits", "router_aux_loss_coef", "seq_aux", "num_nextn_predict_layers"),
        *("max_position_embeddings", "initial_context_length", "rope_ratio", "is_encoder_decoder"),
    }
)
_MISSING = object()


class Description:
    """The fields of a config.json. What is not asked for by the time of `finish` is an error, unless it is off."""

    def __init__(self, fields: Mapping[str, Any], place: str):
        """`place` is where they come from, for messages."""
        self._fields, self.place = dict(fields), place
        self._used: set[str] = set()

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """A field's value; with a `default`, that also where it is null."""
        self._used.add(name)
        value = self._fields.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise ConfigError(f"{self.place} has no {name}, without which this model is unknown: add it")
        return default

    def number(self, name: str, default: Any = _MISSING) -> Any:
        """A whole number that is not negative, or the default."""
        value = self.take(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{self.place}: {name}={value!r} is no size: give a whole number, 0 or more")
        return value

    def real(self, name: str, default: Any = _MISSING) -> Any:
        """A number, as a float, or the default."""
        value = self.take(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self.place}: {name}={value!r} is no number: give one")
        return float(value)

    def need(self, name: str, *known: Any) -> Any:
        """A field that has to be one of `known`; if it is missing, the first one."""
        value = self.take(name, known[0])
        if value not in known:
            listed = " or ".join(map(repr, known))
            raise ConfigError(f"{self.place}: {name}={value!r} is not supported for this family, only {listed} is")
        return value

    def say_one_of(self, *names: str) -> None:
        """Raises ConfigError unless a field is there whose default in this family is not the usual one."""
        if all(self._fields.get(name) is None for name in names):
            raise ConfigError(f"{self.place} has no {' or '.join(names)}, without which this model is unknown: add it")

    def ignore(self, names: Iterable[str]) -> None:
        """Fields without effect here."""
        self._used.update(names)

    def finish(self) -> None:
        """Raises ConfigError where a field that is on has not been asked for: it might change what is computed."""
        for name, value in self._fields.items():
            if name not in self._used | WITHOUT_EFFECT and value not in (None, False, 0, "", [], {}):
                raise ConfigError(
                    f"{self.place}: {name}={value!r} is not known for this family and may change its outputs: take it "
                    "out if you know that it does not"
                )
