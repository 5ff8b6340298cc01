from __future__ import annotations

import msgspec

from appliance.exports import card
from tests.exports.records import provenance


def test_says_where_everything_came_from() -> None:
    text = card.markdown(provenance())
    known = provenance()
    for expected in (
        known.base.sha256,
        known.data[0].sha256,
        "| file-1 | training | 120 | 4,000 |",
        "| qlora |",
        "| 0.0002 |",
        "| 12,345 |",
        "| 0.2500 |",
        "| Q4\\_K\\_M | 1,000 | 0.0091 | 0.0832 | 0.0727 | 7 of 8 |".replace("\\", ""),
        "| Q8_0 | 1,001 | not compared | | | |",
        "| torch | 2.13.0 |",
        "Not looked at",
    ):
        assert expected in text, expected


def test_front_matter_is_what_hubs_read() -> None:
    lines = card.markdown(provenance()).splitlines()
    assert lines[0] == "---"
    head = lines[1 : lines.index("---", 1)]
    assert head == [
        'base_model: "tiny-base"',
        'license: "Apache-2.0"',
        "pipeline_tag: text-generation",
        "tags: [fine-tuned, lora, gguf]",
    ]


def test_words_from_outside_break_no_table_and_are_no_markup() -> None:
    base = msgspec.structs.replace(
        provenance().base, source="a | b\n# c <script>", licence='x"\nlicense: mit'
    )
    text = card.markdown(provenance(base=base))
    assert "| source | a \\| b \\# c \\<script\\> |" in text
    assert text.splitlines()[2] == 'license: "x\\"\\nlicense: mit"'


def test_without_held_out_rows_there_is_no_loss_of_them() -> None:
    training = msgspec.structs.replace(provenance().training, validation_loss=None)
    assert "| loss in validation | no rows were held out |" in card.markdown(
        provenance(training=training)
    )
