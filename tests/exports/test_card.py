from __future__ import annotations

from typing import Any

import msgspec

from appliance.exports import card
from appliance.exports.provenance import Provenance, Written
from appliance.records import ImportanceUse
from tests.exports.records import PARITY, continued, likeness, provenance, written


def text_of(known: Provenance, files: list[Written] | None = None) -> str:
    return card.markdown(known, written(known) if files is None else files)


def test_says_where_everything_came_from() -> None:
    known = provenance()
    text = text_of(known)
    for expected in (
        known.base.sha256,
        f"| file-1 | ftjob-abc | training | 120 | 4,000 | {known.data[0].sha256} |",
        "| qlora |",
        "| 0.0002 |",
        "| 12,345 |",
        "| 0.2500 |",
        f"| adapter.gguf | 9 | {'a' * 64} |",
        f"| model-Q4\\_K\\_M.gguf | 1,000 | {'0' * 64} |",
        "| model-Q4\\_K\\_M.gguf | 0.0091 | 0.0832 | 0.0727 | 0.98 | 7 of 8 | none |",
        "| torch | 2.13.0 |",
        "Not looked at",
    ):
        assert expected in text, expected
    # Nobody compared it, so no figure is told.
    assert text.count("model-Q8\\_0.gguf") == 1


def test_front_matter_is_what_hubs_read() -> None:
    lines = text_of(provenance()).splitlines()
    assert lines[0] == "---"
    head = lines[1 : lines.index("---", 1)]
    assert head == [
        'base_model: "tiny-base"',
        'license: "Apache-2.0"',
        "pipeline_tag: text-generation",
        "tags: [fine-tuned, lora]",
    ]


def test_words_from_outside_break_no_table_and_are_no_markup() -> None:
    base = msgspec.structs.replace(
        provenance().base, source="a | b\n# c <script>", licence='x"\nlicense: mit'
    )
    text = text_of(provenance(base=base))
    assert "| source | a \\| b \\# c \\<script\\> |" in text
    assert text.splitlines()[2] == 'license: "x\\"\\nlicense: mit"'


def test_without_held_out_rows_there_is_no_loss_of_them() -> None:
    training = msgspec.structs.replace(provenance().training, validation_loss=None)
    assert "| loss in validation | no rows were held out |" in text_of(
        provenance(training=training)
    )


def test_a_model_that_goes_on_from_another_names_it_and_its_data() -> None:
    text = text_of(continued())
    assert "It goes on from ft:tiny-base::old, made by job ftjob-old." in text
    assert "| file-0 | ftjob-old | training | no longer here | | |" in text


def test_files_that_nobody_compared_are_called_so() -> None:
    merged = Written(name="merged/model.safetensors", bytes=5, sha256="e" * 64)
    text = text_of(provenance(), [merged])
    assert f"| merged/model.safetensors | 5 | {'e' * 64} |" in text
    assert "None of these files was compared" in text
    assert "gguf" not in text


def test_a_comparison_from_before_there_was_one_is_no_figure() -> None:
    known = provenance()
    changes: dict[str, Any] = {"unmerged": msgspec.structs.replace(likeness(0.0), positions=0)}
    before = msgspec.structs.replace(PARITY, **changes)
    file = written(known)[1]
    assert file.released is not None
    old = msgspec.structs.replace(
        file, released=msgspec.structs.replace(file.released, parity=before)
    )
    assert "| not compared | 0.98 | 7 of 8 | none |" in text_of(known, [old])
    untold = msgspec.structs.replace(before, strength=None)
    for used, told in ((True, "of 900 tokens ("), (False, "not used (")):
        use = ImportanceUse(used=used, tokens=900, kl_with=0.25, kl_without=0.5)
        released = msgspec.structs.replace(file.released, parity=untold, importance=use)
        text = text_of(known, [msgspec.structs.replace(file, released=released)])
        assert f"| not told | 7 of 8 | {told}0.2500 with it, 0.5000 without) |" in text
