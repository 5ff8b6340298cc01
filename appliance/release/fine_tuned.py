"""Base and adapter: merged and quantized tensor by tensor, the adapter alone beside it, and each file held
against the model that was trained.

With an importance matrix each type is written twice in the same pass, with it and without, and one is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from appliance import batch, durable
from appliance.child_records import CONFIGURATION, ReleaseSpec, Trained, TrainedBehaviour
from appliance.records import IMPORTANCE_TYPES, ImportanceUse, Quantization
from appliance.release import (
    adapter,
    adapter_conversion,
    converter,
    importance,
    making,
    parity,
    streaming,
    strength,
    unmerged,
)
from appliance.release.gguf_writer import Layout
from appliance.release.making import Made
from appliance.release.streaming import Destination
from appliance.release.strength import Reference
from appliance.release.unmerged import Unmerged

ADAPTER_FILE = "adapter.gguf"
# How often the merge says how far it has come.
_TENTHS = 10


def make(
    spec: ReleaseSpec, trained: Trained, work: Path, reporter: batch.Reporter
) -> dict[Quantization, Made]:
    """Write and check every file in `work`; raises ApplianceError if any check fails."""
    release = _FineTuned(spec, trained, work, reporter)
    release.write()
    beside = release.ask_unmerged()
    tokenizer = making.load_tokenizer(spec)
    return {each: release.check(each, beside, tokenizer) for each in spec.quantizations}


class _FineTuned:
    """A release that is being made."""

    def __init__(
        self, spec: ReleaseSpec, trained: Trained, work: Path, reporter: batch.Reporter
    ) -> None:
        self._spec = spec
        self._trained = trained
        self._work = work
        self._reporter = reporter
        self._steps = making.Steps(3 + 2 * len(spec.quantizations), reporter)
        self._behaviour = durable.read_json(Path(trained.behaviour_file), TrainedBehaviour)
        # Read first: what is wrong with it fails early.
        file = trained.importance_file
        self._references: list[Reference] = []
        self._importance = None if file is None else importance.read(Path(file))

    def write(self) -> None:
        """Merge and quantize, and convert the adapter alone."""
        spec, directory = self._spec, Path(self._trained.adapter_directory)
        sources = streaming.Sources(
            base=Path(spec.base_directory),
            pairs=adapter.read(directory),
            converter_directory=Path(spec.converter_directory),
        )
        parity.check_adapter(sources.pairs, self._behaviour)
        base_file = Path(self._trained.base_file)
        layouts = streaming.layouts(base_file, spec.quantizations, spec.model_name)
        needed = sum(layouts[each].file_bytes for each in (*layouts, *self._weighed()))
        making.check_space(self._work, needed + adapter_conversion.bytes_needed(directory))
        with converter.configured(sources.converter_directory, base_file.with_name(CONFIGURATION)):
            # Before the long work, since it is cheap: what it refuses fails early.
            self._steps.begin("adapter", "converting the adapter alone")
            adapter_conversion.convert(
                directory,
                sources.pairs,
                sources.base,
                self._work / ADAPTER_FILE,
                sources.converter_directory,
            )
            self._steps.begin(
                "merge", f"merging the adapter and quantizing to {', '.join(layouts)}"
            )
            tensors = len(next(iter(layouts.values())).tensors)
            streaming.write(
                sources,
                self._destinations(sources, layouts),
                threads=spec.threads,
                on_tensor=_tells_tenths(tensors, self._reporter),
            )
            self._references = strength.references(
                sources.converter_directory, sources.base, sources.pairs
            )
        pairs = len(sources.pairs)
        self._reporter.report("merged", f"merged {pairs} LoRA pairs", data={"lora_pairs": pairs})

    def ask_unmerged(self) -> Unmerged:
        """What the base's file and the adapter do side by side."""
        self._steps.begin("unmerged", "asking the base with the adapter attached")
        return unmerged.of(
            Path(self._trained.base_file),
            self._work / ADAPTER_FILE,
            self._behaviour.answers,
            threads=self._spec.threads,
            alive=self._reporter.alive,
        )

    def check(self, quantization: Quantization, beside: Unmerged, tokenizer: Any) -> Made:
        """Settle which file it is, and hold it against base, training and unmerged adapter."""
        use, path = self._settle(quantization), self._path(quantization)
        making.check(self._spec, quantization, path, tokenizer, self._steps)
        self._steps.begin(
            f"compare:{quantization}", f"comparing {path.name} with the trained model"
        )
        found = parity.check(
            path,
            self._behaviour,
            beside,
            quantization,
            tokenizer,
            strength.measure(path, self._references),
            threads=self._spec.threads,
            alive=self._reporter.alive,
        )
        self._reporter.report(
            f"parity:{quantization}",
            parity.describe(found, quantization, self._behaviour, beside),
            data=msgspec.to_builtins(found),
        )
        if parity.blames_adapter(found, quantization, beside):
            self._reporter.report(
                f"adapter:{quantization}",
                "The release does as trained, and base and adapter side by side do not: llama.cpp applies "
                "adapters to this architecture in part only. There will be none to attach",
                level="warn",
            )
            (self._work / ADAPTER_FILE).unlink(missing_ok=True)
        return Made(path, found, use)

    def _weighed(self) -> list[Quantization]:
        """The types that are written with an importance matrix, too."""
        asked = self._spec.quantizations if self._importance is not None else ()
        return [each for each in asked if each in IMPORTANCE_TYPES]

    def _destinations(
        self, sources: streaming.Sources, layouts: Mapping[Quantization, Layout]
    ) -> dict[Path, Destination]:
        found = {self._path(each): Destination(layout) for each, layout in layouts.items()}
        if self._importance is not None:
            weights = self._importance.by_weight
            names = converter.tensor_names(sources.converter_directory, sources.base, weights)
            matters = importance.by_tensor(self._importance, names)
            for each in self._weighed():
                found[self._weighted_path(each)] = Destination(layouts[each], matters)
        return found

    def _settle(self, quantization: Quantization) -> ImportanceUse | None:
        if self._importance is None or quantization not in self._weighed():
            return None
        plain, weighted = self._path(quantization), self._weighted_path(quantization)
        plain_keeps, weighted_keeps = (
            strength.keeps(strength.measure(path, self._references)) for path in (plain, weighted)
        )
        use = importance.settle(
            plain,
            weighted,
            self._trained.importance_matrix,
            self._importance.tokens,
            self._behaviour.answers,
            keeps_adapter=(plain_keeps, weighted_keeps),
            threads=self._spec.threads,
            alive=self._reporter.alive,
        )
        self._reporter.report(
            f"importance:{quantization}",
            importance.describe(use, quantization),
            data=msgspec.to_builtins(use),
        )
        return use

    def _path(self, quantization: Quantization) -> Path:
        return self._work / making.file_name(quantization)

    def _weighted_path(self, quantization: Quantization) -> Path:
        return self._work / f"weighted-{making.file_name(quantization)}"


def _tells_tenths(total: int, reporter: batch.Reporter) -> Callable[[str], None]:
    """Called for each of `total` tensors, it shows life, and at each tenth says so."""
    done = itertools.count(1)

    def on_tensor(name: str) -> None:
        reporter.alive()
        count = next(done)
        if count * _TENTHS // total > (count - 1) * _TENTHS // total:
            reporter.report(
                f"merge:{count}", f"{count} of {total} tensors are merged and quantized"
            )

    return on_tensor
