"""Runs are put side by side exactly, and ranked only where they were measured in the same way."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from urllib.parse import unquote

import pytest
from PIL import Image
from test_page import EVIL, check_in_browser, check_structure

from diffusion_lab import comparison
from diffusion_lab.comparison import compare, find, names, page, read
from diffusion_lab.comparison.command import fold, main, parts
from diffusion_lab.comparison.run import unfinished
from diffusion_lab.page import PAGE

PROTOCOL = {"extractor": "digits", "extractor_digest": "ab" * 16, "samples": 1000}
BITS = {"data": "digits held_out", "count": 397}
FD, DIM = "fd_digits_1k", "flow_bits_per_dim"


def fd(value, better="lower", **other):
    return {"value": value, "better": better, "protocol": {**PROTOCOL, **other.pop("protocol", {})}, **other}


def bits(value, error=None):
    return {"value": value, "better": "lower", "protocol": BITS, "standard_error": error}


@pytest.fixture
def run(tmp_path):
    """Writes a run and gives it back as it is read."""

    def write(place, metrics, overrides=None, **top):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        results = {"model": "ddpm", "sampler": "ancestral (steps=100)", "seed": 0, "step": 10, **top}
        (folder / "results.json").write_text(json.dumps({**results, "metrics": metrics}))
        if overrides is not None:
            (folder / ".hydra").mkdir()
            (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in overrides) or "[]")
        return read(folder / "results.json")

    return write


def ranks(result, metric=FD):
    """Column by column, the rank of every run, "-" for a value without one, " " for no value."""
    own = [column for column in result.columns if column.metric == metric]
    return ["".join(str(c.rank or "-") if c else " " for c in column.cells) for column in own]


def test_the_table_holds_every_number_in_its_place(run):
    """Written by hand from the records: errors, ranks, an extrapolation, real data, an empty cell, costs, order."""
    infinity = {"fd_digits_infinity": fd(0.9, extrapolated=True)}
    records = [
        run("a", {FD: fd(2.0, real=1.0833, repeats=[1.9, 2.0, 2.1])}, model="ncsn", nfe=1000, training_seconds=240),
        run("b", {FD: fd(1.234567, real=1.0833), DIM: bits(2.5, 0.0141), **infinity}, nfe=99.5, training_seconds=600),
        run(
            "c", {FD: fd(12345.6), DIM: bits(math.nan, 0.1)}, model="score_sde", samples_per_second=36.14, parameters=7
        ),
    ]
    assert comparison.grid(compare(records)) == (
        ["run", f"{FD} ↓", f"{DIM} ↓", "fd_digits_infinity† ↓", "samples/s", "NFE", "training (min)", "parameters"],
        [
            ["ddpm", "1.235 #1", "2.500 ± 0.014", "0.9000†", "", "99.5", "10", ""],
            ["ncsn", "2.000 ± 0.10 #2", "", "", "", "1,000", "4", ""],
            ["score_sde", "1.235e+04 #3", "nan", "", "36.1", "", "", "7"],
            ["real data", "1.083", "", "", "", "", "", ""],
        ],
    )


def test_the_report_says_all_of_it(run):
    records = [
        run("x|y", {FD: fd(2.0, better="higher")}, revision="0f3a", weights="ema"),
        run("z", {FD: fd(3.0, better="higher")}),
    ]
    text = comparison.markdown(compare(records))
    assert text.splitlines() == [
        f"# 2 runs, sorted by {FD}",
        "",
        f"| run | {FD} ↑ |",
        "| --- | --: |",
        "| z | 3.000 #1 |",
        "| x\\|y | 2.000 #2 |",
        "",
        comparison.marks(compare(records))[0],
        "",
        "## Protocols",
        "",
        f"- {FD} ↑: extractor digits, extractor_digest abababab, samples 1000",
        "",
        "## Runs",
        "",
        f"- z: `{records[1].place}`, step 10, sampler ancestral (steps=100), seed 0",
        f"- x|y: `{records[0].place}`, step 10, weights ema, sampler ancestral (steps=100), seed 0, revision 0f3a",
    ]


def test_the_csv_is_read_back_without_loss(run):
    value = 1.2345678901234567
    records = [run("a", {FD: fd(value, nfe=60, real=0.5)}, nfe=100), run("b", {FD: fd(3, protocol={"samples": 9})})]
    first, second = csv.DictReader(io.StringIO(comparison.csv_text(compare(records))))
    assert float(first["value"]) == value and json.loads(first["protocol"]) == PROTOCOL
    assert [first[key] for key in ("run", "metric", "nfe", "real_data", "rank", "model", "protocol_group")] == [
        "a", FD, "60", "0.5", "", "ddpm", "0",
    ]  # fmt: skip
    assert second["protocol_group"] == "1" and second["nfe"] == "" and second["place"] == str(records[1].place)


def test_only_equal_protocols_are_ranked_together(run):
    records = [
        run("a", {FD: fd(1.5)}),
        run("b", {FD: fd(1.0)}),
        run("c", {FD: fd(0.1, protocol={"samples": 5000})}),
        run("d", {FD: fd(0.2, protocol={"samples": 5000})}),
    ]
    result = compare(records)
    assert result.names == ("b", "a", "c", "d") and ranks(result) == ["12  ", "  12"]
    assert [comparison.heading(column) for column in result.columns] == [
        f"{FD} ↓ (samples 1000)",
        f"{FD} ↓ (samples 5000)",
    ]
    assert result.notes == (f"{FD}: not ranked together: samples 1000 (b, a) against 5000 (c, d)",)


def test_each_difference_has_its_line_and_metrics_share_lines(run):
    other = {"samples": 5000, "extractor_digest": "cd" * 16, "pixels": "8 bits"}
    records = [
        run("a", {FD: fd(1.5), "kd": fd(1)}),
        run("b", {FD: fd(1.0, protocol=other), "kd": fd(2, protocol=other)}),
        run("c", {FD: fd(1.0, protocol={**other, "samples": 7}), "kd": fd(2, protocol=other)}),
    ]
    assert compare(records).notes == (
        f"{FD}, kd: not ranked together: extractor_digest abababab (a) against cdcdcdcd (b, c)",
        f"{FD}: not ranked together: samples 1000 (a) against 5000 (b) against 7 (c)",
        f"{FD}, kd: not ranked together: pixels not recorded (a) against 8 bits (b, c)",
        "kd: not ranked together: samples 1000 (a) against 5000 (b, c)",
    )


def test_digests_are_not_cut_where_their_heads_agree():
    same, other = "ab" * 16, "ab" * 15 + "cd"
    assert comparison.column.shown([same, other]) == [same, other]
    assert comparison.column.shown([same, "cd" * 16, 1e-5, True, {"b": 1}]) == [
        "abababab", "cdcdcdcd", "1e-05", "true", '{"b": 1}',
    ]  # fmt: skip


def test_sides_of_many_runs_are_counted(run):
    records = [run(f"r{i}", {FD: fd(i)}) for i in range(7)] + [run("z", {FD: fd(0, protocol={"samples": 1})})]
    assert compare(records).notes == (f"{FD}: not ranked together: samples 1000 (7 runs) against 1 (z)",)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"value": 1.0, "better": "lower"}, "no protocol recorded"),
        ({"value": 1.0, "better": "lower", "protocol": None}, "no protocol recorded"),
        ({"value": 1.0, "protocol": PROTOCOL}, "not recorded whether lower or higher is better"),
    ],
)
def test_values_of_unknown_protocol_or_direction_are_never_ranked(run, record, reason):
    result = compare([run("b", {FD: {**record, "value": 2.0}}), run("a", {FD: record})])
    assert result.names == ("b", "a") and ranks(result) == ["--"]  # in the order given
    assert result.notes == (f"{FD}: not ranked: {reason} (b, a)",)
    result = compare([*result.runs, run("c", {FD: fd(1)}), run("d", {FD: fd(0)})])
    assert ranks(result) == ["--  ", "  12"] and f"{FD}: not ranked: {reason} (b, a)" in result.notes
    assert len({comparison.heading(column) for column in result.columns}) == 2


def test_extrapolated_values_are_marked_and_never_ranked_with_measured_ones(run):
    records = [run("a", {FD: fd(2)}), run("b", {FD: fd(1, extrapolated=True)}), run("c", {FD: fd(3)})]
    result = compare(records)
    assert ranks(result) == ["12 ", "  -"] and comparison.grid(result)[1][2] == ["b", "", "1.000†"]
    assert result.notes == (f"{FD}: not ranked together: extrapolated false (a, c) against true (b)",)
    assert [line[0] for line in comparison.marks(result)] == ["↓", "†"]
    how = [{"extrapolated": "to infinity"}, {"extrapolated": "to 50k"}]  # a protocol may say more than that it was done
    result = compare([run(f"x{i}", {FD: fd(i, extrapolated=True, protocol=p)}) for i, p in enumerate(how)])
    assert ranks(result) == ["- ", " -"] and "extrapolated to infinity (x0) against to 50k (x1)" in result.notes[0]


def test_ranks(run):
    values = [3, 1, math.nan, 1, math.inf, 2, None]
    low = [run(f"l{i}", {FD: fd(value)}) for i, value in enumerate(values)]
    assert ranks(compare(low)) == ["1134---"]
    assert compare(low).names == ("l1", "l3", "l5", "l0", "l2", "l4", "l6")
    high = compare([run(f"h{i}", {FD: fd(value, better="higher")}) for i, value in enumerate(values)])
    assert ranks(high) == ["1233---"] and high.names[:4] == ("h0", "h5", "h1", "h3")
    assert ranks(compare([run(f"e{i}", {FD: fd(0.0)}) for i in range(3)])) == ["---"], "none is better than the others"


def test_order(run):
    """By the first metric that all have, or by the one asked for; runs without it come last."""
    records = [run("a", {DIM: bits(1), FD: fd(2)}), run("b", {FD: fd(1)}), run("c", {FD: fd(3), DIM: bits(0)})]
    assert (compare(records).by, compare(records).names) == (FD, ("b", "a", "c"))
    asked = compare(records, DIM)
    assert (asked.by, asked.names) == (DIM, ("c", "a", "b")) and asked.columns[0].metric == DIM
    nothing = compare([run("d", {DIM: bits(1)}), run("e", {FD: fd(1)})])
    assert (nothing.by, nothing.names) == (None, ("d", "e"))
    assert comparison.markdown(nothing).startswith("# 2 runs, no metric is common to all\n")


def test_seeds_are_summarised_as_mean_and_deviation(run):
    """Seeds 0, 1, 2 of two schedules: means 2 and 4, deviations 1 and sqrt(2); what else differs is not averaged."""
    records = []
    for schedule, values in (("linear", (1, 2, 3)), ("cosine", (3, 5, None))):
        for seed, value in enumerate(values):
            metrics = {DIM: bits(1), **({} if value is None else {FD: fd(value)})}
            words = [f"schedule={schedule}", f"seed={seed}", f"paths.log_dir=/{seed}"]
            records.append(run(f"{schedule}{seed}", metrics, words, seed=seed))
    records.append(run("alone", {FD: fd(9), DIM: bits(1)}, ["schedule=sigmoid", "seed=1"], seed=1))
    records.append(run("step", {FD: fd(9), DIM: bits(1)}, ["schedule=linear", "seed=3"], seed=3, step=11))
    result = compare(records, FD)
    assert comparison.seeds_grid(result) == (
        ["runs", "seeds", f"{FD} ↓", f"{DIM} ↓"],
        [
            ["schedule=linear (step 10)", "0, 1, 2", "2.000 ± 1.0", "1.000 ± 0.0"],
            ["schedule=cosine", "0, 1, 2", "4.000 ± 1.4 (2 of 3)", "1.000 ± 0.0"],
        ],
    )
    assert "## Mean ± standard deviation over seeds" in comparison.markdown(result)


def test_seeds_of_different_protocols_are_not_averaged_and_the_same_seed_counts_once(run):
    """Of the same seed the later directory counts, be it the better or the worse: (1 + 9) / 2."""
    values = [(0, 5), (0, 1), (1, 7), (1, 9)]
    records = [run(f"{place}", {FD: fd(value)}, seed=seed) for place, (seed, value) in enumerate(values)]
    records.append(run("4", {FD: fd(100, protocol={"samples": 5})}, seed=2))
    (group,) = compare(records).seeds
    assert (group.name, group.seeds) == ("all runs", (0, 1, 2))
    assert [(cell.value, cell.count) for cell in group.cells] == [(5, 2), (100, 1)]
    assert compare(records[:2]).seeds == () and compare(records[1:3]).seeds[0].cells[0].error == pytest.approx(18**0.5)


def test_files_that_do_not_tell_are_not_taken_for_seeds(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"{seed}.json").write_text(json.dumps({"seed": seed, "metrics": {FD: fd(1)}}))
    assert compare([read(path) for path in find([tmp_path / "0.json", tmp_path / "1.json"])]).seeds == ()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ([("ddpm", "a (x=1)", []), ("ncsn", "b (x=2)", [])], ["ddpm", "ncsn"]),
        ([("m", "a (eta=0, steps=5)", []), ("m", "b (eta=0, steps=5)", [])], ["a", "b"]),
        ([("m", "a (steps=5)", []), ("m", "a (steps=9)", []), ("m", "b", [])], ["a steps=5", "a steps=9", "b"]),
        ([("m", "a", []), ("m", "a", ["+schedule=cosine"])], ["m", "m schedule=cosine"]),
        ([("m", "a", ["a.lr=1", "b.lr=1"]), ("m", "a", ["a.lr=1", "b.lr=2"])], ["lr=1", "lr=2"]),
        (
            [("m", "a", ["a.lr=1", "b.lr=1"]), ("m", "a", ["a.lr=1", "b.lr=2"]), ("m", "a", ["a.lr=2", "b.lr=1"])],
            ["a.lr=1 b.lr=1", "a.lr=1 b.lr=2", "a.lr=2 b.lr=1"],
        ),
        ([("m", "a", ["paths.x=1", "ckpt_path=1"]), ("m", "a", ["paths.x=2", "ckpt_path=2"])], ["0", "1"]),
        ([("m", "a", []), ("m", "a", []), ("n", "a", [])], ["m (0)", "m (1)", "n"]),
    ],
)
def test_names_say_what_differs_and_no_more(run, message, expected):
    runs = [run(f"{i}", {}, words, model=model, sampler=sampler) for i, (model, sampler, words) in enumerate(message)]
    assert names(runs) == expected


def test_model_sde_and_labels_are_named_first_and_a_run_without_labels_is_unconditional(run):
    labels = {"labels": "drawn with the training frequencies"}
    runs = [
        run("a", {FD: fd(1.0)}, ["trainer.max_steps=1000"]),
        run("b", {FD: fd(2.0, protocol=labels)}, ["data.conditional=true", "seed=1"], **labels),
        run("c", {FD: fd(3.0)}, ["model=score_sde", "sde=ve"], model="score_sde", sde="ve"),
    ]
    assert [name.split(" max_steps")[0] for name in names(runs)] == [
        "ddpm unconditional", "ddpm conditional", "score_sde ve unconditional",
    ]  # fmt: skip
    result = compare(runs)
    assert [column.detail for column in result.columns] == [
        "labels unconditional", "labels drawn with the training frequencies",
    ]  # fmt: skip
    assert "not ranked together: labels unconditional (" in result.notes[0] and ranks(result) == ["12 ", "  -"]


def test_options_that_older_files_list_as_all_are_those_that_newer_ones_leave_out(run):
    a = run("a", {}, sampler="ddim (t_start=all, eta=0.5, steps=10, t_end=all)")
    b = run("b", {}, sampler="ddim (eta=0.5, steps=10)")
    assert a.results["sampler"] == b.results["sampler"] and names([a, b]) == ["a", "b"]


def test_no_fact_is_named_that_others_make_needless():
    """a splits nine runs best at first, yet b and c do it alone."""
    a = [[0, 0, 1], [0, 0, 2], [3, 3, 3]]
    message = [{"a": str(a[b][c]), "b": str(b), "c": str(c)} for b in range(3) for c in range(3)]
    assert comparison.distinguishing(message) == ["b", "c"] and comparison.distinguishing(message[:1]) == []
    message = [{"a": "0", "b": "0", "c": "0"}, {"a": "0", "b": "1", "c": "1"}, {"a": "1", "b": "0", "c": "2"}]
    assert comparison.distinguishing(message) == ["c"]  # one fact rather than two earlier ones


def test_names_of_one_run_of_several_steps_and_of_several_checkpoints(run):
    a, b, c = (run(x, {}, checkpoint=f"/logs/{x}/last.ckpt", step=s) for x, s in (("a", 1), ("b", 2), ("c", 2)))
    assert names([a]) == ["a"] and names([a, b]) == ["step 1", "step 2"]
    assert names([a, b, c]) == ["a/last", "b/last", "c/last"]


def test_older_files_without_a_model_are_not_called_different(run, tmp_path):
    a = run("a", {})
    path = tmp_path / "b" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"metrics": {"fd": {"value": 1, "training_images": 0.5}}}))
    assert names([a, read(path)]) == ["a", "b"]
    assert comparison.grid(compare([read(path)])) == (["run", "fd"], [["b", "1.000"], ["real data", "0.5000"]])


def test_find_takes_directories_files_and_what_lies_below_in_natural_order(run, tmp_path):
    for place in ("sweep/10", "sweep/2", "sweep/2/inner", "sweep/1"):
        run(place, {})
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert [p.parent.relative_to(tmp_path / "sweep").as_posix() for p in find([tmp_path / "sweep"])] == [
        "1", "2", "2/inner", "10",
    ]  # fmt: skip
    files = find(
        [other, tmp_path / "sweep" / "2", tmp_path / "sweep" / "10" / "results.json", tmp_path / "sweep" / "2"]
    )
    assert [p.relative_to(tmp_path).as_posix() for p in files] == [
        "other.json", "sweep/2/results.json", "sweep/10/results.json",
    ]  # fmt: skip


def test_a_run_that_is_not_finished_is_left_out_and_named(run, tmp_path, monkeypatch, capsys):
    run("sweep/0", {FD: fd(1)})
    run("sweep/2", {FD: fd(2)})
    for place, mark in (("sweep/1", "job.json"), ("sweep/10", "config.yaml"), ("alone", "config.yaml")):
        (tmp_path / place / "checkpoints").mkdir(parents=True)
        (tmp_path / place / mark).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    main(["sweep", "alone", "empty", "out=here"])
    out = capsys.readouterr().out
    assert [line.split(",")[0] for line in out.splitlines() if line.startswith("left out: ")] == [
        "left out: sweep/1",
        "left out: sweep/10",
        "left out: alone",
        "left out: empty",
    ]
    assert "# 2 runs" in (tmp_path / "here" / "comparison.md").read_text()
    with pytest.raises(SystemExit):
        main(["alone", "empty"])
    assert "no results.json in alone, empty or below" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (None, ["nowhere"], "nowhere does not exist"),
        (None, ["."], r"no results.json in . or below: .* evaluate=true"),
        ("{", ["results.json"], "results.json is damaged: it is not JSON"),
        (b"\xff\xfe\x00", ["."], "results.json is damaged: it is not JSON"),
        ("[]", ["."], "results.json is not the results.json of a run: it has no metrics"),
        ('{"metrics": 3}', ["."], "has no metrics"),
        ('{"metrics": {"fd": 3}}', ["."], "results.json is damaged: its metric fd has no value"),
        ('{"metrics": {"fd": {"value": "x"}}}', ["."], "its metric fd has no value"),
        (
            '{"metrics": {"fd_digits": {"value": 1}}}',
            [".", "by=fd_digit"],
            r"did you mean fd_digits\?\); available: fd_d",
        ),
        ('{"metrics": {"fd_digits": {"value": 1}}}', [".", "by=zzz"], "by=zzz: no run has this metric; available: fd_"),
        ('{"metrics": {}}', [".", "by=fd"], "available: none"),
        ('{"metrics": {}}', [".", "bye=fd"], r"unknown option bye=fd \(did you mean by=...\?\)"),
        ('{"metrics": {}}', [".", "--out"], r"unknown option --out \(did you mean out=...\?\)"),
        ('{"metrics": {}}', [".", "out="], "unknown option out="),
        ('{"metrics": {}}', ["by=fd"], "give at least one run"),
        ('{"metrics": {}}', [".", "out=results.json"], "File exists"),
    ],
)
def test_mistakes_are_refused_in_one_line(tmp_path, monkeypatch, capsys, content, arguments, words):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert re.search(words, err), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ([] if content is None else ["results.json"])


def test_what_hydra_leaves_in_a_run_is_no_run(run, tmp_path) -> None:
    path = run("one", {FD: fd(1.0)}, overrides=[]).path.parent
    (path / ".hydra" / "config.yaml").write_text("{}")
    assert unfinished([path]) == []


def test_a_training_that_has_results_before_its_last_step_is_named(run, tmp_path, capsys):
    for place, steps in (("half", 1000), ("done", 10), ("damaged", "x")):
        run(place, {FD: fd(1.0)})
        (tmp_path / place / "config.yaml").write_text(f"trainer:\n  max_steps: {steps}\n")
    main([str(tmp_path), f"out={tmp_path / 'out'}"])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not finished")]
    assert len(told) == 1 and told[0].endswith("half, step 10 of 1,000")


def test_the_overrides_of_a_run_are_those_of_its_configuration(run, tmp_path):
    # A refused command to resume a run leaves its own overrides in .hydra.
    run("a", {}, ["guidance=classifier_free"])
    (tmp_path / "a" / "config.yaml").write_text("overrides:\n- data=toy2d\n")
    assert read(tmp_path / "a" / "results.json").overrides == {"data": "toy2d"}


def test_damaged_overrides_are_named(run, tmp_path):
    run("a", {}, ["x"])
    (tmp_path / "a" / ".hydra" / "overrides.yaml").write_text("- [")
    with pytest.raises(ValueError, match=r"overrides.yaml is damaged"):
        read(tmp_path / "a" / "results.json")


def test_the_command_writes_three_files_and_prints_the_table(run, tmp_path, monkeypatch, capsys):
    for index, name in enumerate(("lr=1,seed=0", "b")):  # Hydra may name directories like options
        run(f"sweep/{name}", {FD: fd(1.5 + index)})
    monkeypatch.chdir(tmp_path)
    main(["sweep/lr=1,seed=0", "sweep/b", "out=here", f"by={FD}"])
    out = capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == [
        "comparison.csv",
        "comparison.md",
        PAGE,
    ]
    assert "│ lr=1,seed=0 │       1.500 #1 │" in out and "│ b           │       2.500 #2 │" in out
    assert "| lr=1,seed=0 | 1.500 #1 |" in (tmp_path / "here" / "comparison.md").read_text()
    main(["sweep"])
    (folder,) = (tmp_path / "logs" / "comparison").iterdir()
    assert "</html>" in (folder / PAGE).read_text()
    main([])
    assert "by=METRIC" in capsys.readouterr().out


def test_the_printed_table_is_split_where_it_is_too_wide(run):
    records = [{f"metric_number_{i}": fd(i + more) for i in range(9)} for more in (0, 0, 1)]
    headings, rows = comparison.grid(compare([run(name, record) for name, record in zip("abc", records, strict=True)]))
    tables = parts(headings, rows, 80)
    shown = [column.header.replace("\n", "") for table in tables for column in table.columns[1:]]
    assert shown == headings[1:] and len(tables) == 3
    assert all(table.columns[0].header == "run" and list(table.columns[0].cells) for table in tables)
    from rich.console import Console

    text = io.StringIO()
    for table in tables:
        Console(file=text, width=80).print(table)
    assert max(map(len, text.getvalue().splitlines())) <= 80 and "…" not in text.getvalue()
    assert text.getvalue().count("#1") == 18  # equal values share the rank
    assert fold("fd_digits_held_out_1k ↓ (samples 1000)") == ["fd_digits_held_", "out_1k ↓", "(samples 1000)"]


def test_the_page_plots_every_value_where_it_belongs(run):
    records = [
        run("a", {FD: fd(2.0, real=1.5, standard_error=0.25), DIM: bits(math.nan)}, nfe=10, training_seconds=7200),
        run("b", {FD: fd(1.0, real=1.5)}, nfe=20),
    ]
    (first, second, nfe, time), legend = page.panels(compare(records))
    assert [one.title for one in (first, second, nfe, time)] == [f"{FD} ↓", f"{DIM} ↓", "NFE", "training (min)"]
    low, high = 1 - 0.08 * 1.25, 2.25 + 0.08 * 1.25  # the end of the error bar, and a margin

    def percent(value):
        return pytest.approx(100 * (value - low) / (high - low), abs=0.01)

    assert first.rows == [
        ("b", "1.000 #1", percent(1), None, True),
        ("a", "2.000 ± 0.25 #2", percent(2), (percent(1.75), percent(2.25)), False),
    ]
    assert first.marks == [percent(1.5)] and second.rows == [("a", "nan", None, None, False)]
    assert [(row[0], row[2]) for row in nfe.rows] == [
        ("b", pytest.approx(100 / 1.08, abs=0.01)),
        ("a", pytest.approx(50 / 1.08, abs=0.01)),
    ]
    assert time.rows[0][:2] == ("a", "120") and legend == "orange: the best under one protocol · dotted: real data"
    (wide,), _ = page.panels(compare([run(f"x{i}", {FD: fd(10.0 ** (2 * i))}) for i in range(3)]))
    assert [row[2] for row in wide.rows] == [pytest.approx(v, abs=0.01) for v in (8 / 1.16, 50, 108 / 1.16)]


def test_the_page_has_at_most_twelve_plots(run):
    many = {f"m{i:02}": fd(1 + i * 10.0**j, extrapolated=i == 0) for j, i in enumerate(range(15))}
    plots, legend = page.panels(compare([run(f"{i}", many, nfe=1) for i in range(12)], "m01"))
    assert [one.title for one in plots] == [f"m{i:02} ↓" for i in range(1, 12)] + ["NFE"]
    assert legend.endswith("4 more columns are in the table")


def make_samples(folder, seed, name="config.yaml"):
    Image.new("L", (8, 8)).save(folder / "samples.png")
    (folder / name).write_text(f"{{callback: {{samples: {{seed: {seed}}}}}, seed: {seed}}}")


def test_samples_stand_side_by_side_and_say_their_seeds_where_they_differ(run, tmp_path):
    runs = [run(f"{EVIL} {i}".replace("/", "-"), {FD: fd(float(i), real=0.5)}, network=f"{EVIL}{i}") for i in range(3)]
    for one, seed in zip(runs, (0, 0, 1)):
        make_samples(one.path.parent, seed)
        (one.path.parent / "metrics.csv").write_text("step,train/loss\n1,2\n2,1\n")
        (one.path.parent / PAGE).touch()
    page.write_page(compare(runs[:2]), tmp_path)
    found = check_structure(tmp_path / PAGE)
    assert "All from the noise of seed 0." in found.text and "seed 1" not in found.text
    assert [image["alt"] for image in found.of("img")] == [f"{EVIL}{i}" for i in range(2)]
    assert len(found.of("polyline")) == 2 and "2 runs, sorted by" in found.text and "1.000 #2" in found.text
    assert all((tmp_path / unquote(link["href"])).is_file() for link in found.of("a")) and len(found.of("a")) == 2
    check_in_browser(tmp_path / PAGE, tmp_path, images=2)
    page.write_page(compare(runs), tmp_path)
    found = check_structure(tmp_path / PAGE)
    assert "All from" not in found.text and [image["alt"][-6:] for image in found.of("img")] == [
        "seed 0",
        "seed 0",
        "seed 1",
    ]


def test_a_sweep_without_results_has_a_page_of_its_jobs(tmp_path):
    jobs = [
        {
            "directory": str(tmp_path / f"{i}"),
            "overrides": ["data=toy2d", f"seed={i}"],
            "status": status,
            "seconds": 1.4,
            "note": note,
        }
        for i, (status, note) in enumerate([("finished", ""), ("failed", EVIL)])
    ]
    (tmp_path / "0").mkdir()
    make_samples(tmp_path / "0", 5)
    page.write_page(None, tmp_path, jobs)
    found = check_structure(tmp_path / PAGE)
    assert [image["alt"] for image in found.of("img")] == ["seed=0"] and EVIL in found.text and "failed" in found.text


def test_the_table_needs_no_torch_and_no_matplotlib():
    code = (
        "import sys; from diffusion_lab.comparison.command import main\n"
        "try: main(['nowhere'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'hydra', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
