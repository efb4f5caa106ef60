"""Transcripts side by side: what differs is marked, what is strange is escaped."""

import re

import numpy as np

from microbudget.plotting import transcripts


def plain(html):
    return re.sub(r"<[^>]+>", "", html)


def test_differences_are_marked():
    html = transcripts.mark_differences("the cat sat down", "the hat sat right")
    assert plain(html) == "the hat sat right"
    assert html.count("<span") == 2
    missed = transcripts.mark_differences("the cat sat down", "the cat sat")
    assert "line-through" in missed
    assert plain(missed).endswith("down")
    assert transcripts.mark_differences("the cat", "The cat!") == "the cat"


def test_a_table_has_a_player_and_every_models_words():
    sound = [0.1 * np.sin(np.arange(16_000) / 9).astype("f4")] * 2
    table = transcripts.compare_transcripts(
        sound, ["one <b>", "two"], {"teacher": ["one", "two"], "A & B": ["on", ""]}
    ).data
    assert table.count("<audio") == 2
    assert "one &lt;b&gt;" in table
    assert "A &amp; B" in table
    assert table.count("<tr>") == 3
