"""report.html: one file with everything about a run, which loads nothing and which nothing in it can break."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
import zygote
from PIL import Image
from printed import paste

from diffusion_lab.comparison.column import Cell, Column
from diffusion_lab.comparison.report import digits, value_text
from diffusion_lab.errors import ConfigError
from diffusion_lab.page import PAGE, Chart, picture, plus_minus, read_columns, run_page
from diffusion_lab.page.chart import BOTTOM, LEFT, MOST, RIGHT, TOP, number, round_numbers
from diffusion_lab.page.metrics_log import charts
from diffusion_lab.page.setting import groups
from diffusion_lab.run.compare import write_page
from diffusion_lab.run.page import RunPage, recipe_of

EVIL = "<script>alert(1)</script>\"'><img src=http://example.org/x.png>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def make_run(folder: Path, name: str = "digits") -> Path:
    """A directory like that of a training, with settings and names that must be escaped."""
    (folder / "samples").mkdir(parents=True)
    for file in (
        "samples.png",
        "schedule.png",
        "trajectory.png",
        "samples/step_00000010.png",
        "samples/step_00000020.png",
    ):
        Image.effect_noise((80, 60), 50).save(folder / file)
    frames = [Image.new("L", (16, 16), shade) for shade in (0, 128)]
    frames[0].save(folder / "trajectory.gif", save_all=True, append_images=frames[1:])
    settings = {
        "data": {"_target_": "x.Digits", "path": EVIL}, "model": {"_target_": "x.DDPM", "sampler": {}, "levels": 1000},
        "metric": {"samples": 20}, "trainer": {"max_steps": 40}, "seed": 3,
        "choices": {"model": "ddpm", "data": name}, "overrides": ["seed=3", f"data.path={EVIL}"],
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [f"{step},{1 / step},0.1,nan" for step in range(1, 31)]
    (folder / "metrics.csv").write_text("step,train/loss,train/learning_rate,val/loss\n" + "\n".join(rows) + "\n30,\n")
    record = {"value": 1.25, "standard_error": 0.5, "better": "lower", "real": 0.5, "protocol": {"reference": EVIL}}
    bound = {"value": None, "terms": {"prior": 1.0}, "protocol": {"method": "bound"}}
    results = {
        "step": 30,
        "weights": "ema",
        "parameters": 160777,
        "training_seconds": 480,
        "metrics": {f"fd_{EVIL}": record, "bound": bound},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


class Structure(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def of(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def check_structure(file: Path) -> Structure:
    """What holds for every page: it is whole, every picture is in it and is described, and nothing is loaded."""
    text = file.read_text(encoding="utf-8")
    found = Structure(text)
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert len(found.of("script")) == len(found.of("style")) == len(found.of("h1")) == 1
    for attributes in [attributes for _, attributes in found.elements]:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data"):
            assert re.match(r"data:|(?!\w+:|//)", attributes.get(name, "")), attributes
    for image in found.of("img"):
        head, data = image["src"].split(",", 1)
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as opened:
            assert head == f"data:image/{opened.format.lower()};base64" and image["alt"].strip()
            assert opened.size == (int(image["width"]), int(image["height"]))
    assert not re.search("<wbr>|{{|{%", found.text)
    assert not re.search(r"url\(|@import", text)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    return found


def test_a_page_holds_the_run_and_escapes_what_the_user_named(tmp_path):
    folder = make_run(tmp_path / EVIL.replace("/", "-"), name=EVIL)
    assert RunPage(folder).write()
    found = check_structure(folder / PAGE)
    assert len(found.of("img")) == 6 and len(found.of("polyline")) == 2  # a metric without a finite value has no chart
    for words in (
        EVIL,
        "30 of 40",
        "160,777",
        "1.25 ± 0.5",
        "not finite",
        "L_T: KL to the prior",
        "Samples at step 20",
    ):
        assert words in found.text, words
    assert next(one["aria-label"] for one in found.of("svg")) == "loss from 1 at step 1 to 0.0333 at step 30"


def test_a_run_without_anything_has_a_page_too(tmp_path):
    (tmp_path / "config.yaml").write_text("{model: {}, overrides: []}")
    (tmp_path / "metrics.csv").write_text("")
    (tmp_path / "results.json").write_text("{half a fi")
    (tmp_path / "samples.png").write_text("not a picture")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/step_last.png").write_text("not ours")
    assert RunPage(tmp_path).write()
    assert not check_structure(tmp_path / PAGE).of("img", "svg")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="is damaged: config.yaml holds no settings"):
        RunPage(tmp_path)


def test_rows_of_metrics_that_are_cut_short_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,train/loss,val/loss\n1,0.5,\n,7,\n2,0.25,1e\n3,1,2,4\nst\0ep,\xff,1\n4,1e")
    assert read_columns(path) == {"train/loss": [(1, 0.5), (2, 0.25), (3, 1)], "val/loss": [(3, 2)]}
    path.write_text("epoch,train/loss\n1,2\n")
    assert read_columns(path) == {}
    columns = {key: [(1, 1.0), (2, 0.5)] for key in ("train/grad_norm", "val/loss", "train/loss")}
    assert [chart.title for chart in charts(columns)] == ["loss", "validation loss", "gradient norm"]


def test_a_sampler_and_its_steps_stay_on_one_line_of_a_comparison(tmp_path):
    record = {"metric": "fd", "value": 1.0, "nfe": 9, "samples_per_second": 2.0, "protocol": {}}
    records = [{"sampler": "heun", "steps": 5, **record}, {"sampler": "ode", "steps": None, **record}]
    assert write_page(records, "RUN", tmp_path)
    found = check_structure(tmp_path / PAGE)
    assert "sampler, steps" in found.text and "heun\N{NO-BREAK SPACE}5" in found.text and "ode\n" not in found.text


def test_a_large_error_is_written_out():
    assert [plus_minus(error) for error in (None, 0.00268, 0.1, 17.2, 131.8)] == ["", *(
        f" ± {text}" for text in ("0.0027", "0.1", "17", "130")
    )]  # fmt: skip
    cell = Cell(1039.2, 171.0)
    assert (
        value_text(cell, Column("kd", {}, "lower", False, (cell,))) == "1039 ± 170"
        and digits(60594.0) == "6.059e+04"
        and digits(2e-5) == "2.000e-05"
    )


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / PAGE).mkdir()
    assert not RunPage(folder).write()
    (folder / PAGE).rmdir()
    (folder / "results.json").write_text('{"metrics": [1]}')
    assert not RunPage(folder).write() and not (folder / PAGE).exists()
    assert [line.count("is not written: ") for line in capsys.readouterr().out.splitlines()] == [1, 1]


def test_settings_other_than_those_of_the_recipe_stand_out():
    recipe = {
        "seed": 0,
        "network": {"channels": 8, "heads": [1, 2]},
        "model": {"network": {"channels": 8}, "levels": 10},
    }
    mine = {
        "seed": 0,
        "network": {"channels": 16, "heads": [1, 2]},
        "model": {"network": {"channels": 16}, "levels": 10},
    }
    found = groups({**mine, "paths": {"log_dir": "."}, "extra": None}, recipe)
    shown = {name: [(s.key, s.value, s.recipe, s.differs) for s in group] for name, group in found.items()}
    assert shown == {
        "general": [("seed", "0", "", False), ("extra", "null", "not set", True)],
        "network": [("network.channels", "16", "8", True), ("network.heads", "[1, 2]", "", False)],
        "model": [("model.levels", "10", "", False)],
    }
    assert not any(one.differs for group in groups(mine, None).values() for one in group)


def test_the_recipe_of_a_student_has_the_teacher_that_it_requires():
    words = ["data=toy2d", "loss=progressive", "loss.teacher.ckpt_path=a.ckpt", "trainer.max_steps=7", "seed=3"]
    found = recipe_of([], words)
    assert found["loss"]["teacher"]["ckpt_path"] == "a.ckpt" and found["seed"] == 0
    assert found["choices"]["data"] == "toy2d" and found["trainer"]["max_steps"] != 7
    labelled = {"model": {"labels": {"counts": [1]}, "network": {"classes": 10, "part": {"outputs": 3}}, "levels": 9}}
    differing = [one.key for group in groups(labelled, {}).values() for one in group if one.differs]
    assert differing == ["model.levels"]


def test_charts_place_points_and_ticks_where_they_belong():
    line = Chart("loss", {"loss": [(0, 0.0), (10, 1.0), (20, float("nan")), (40, 2.0)], "none": [(0, float("nan"))]})
    low, high = -0.1, 2.1
    for x, y in ((0, 0.0), (10, 1.0), (40, 2.0)):
        exact = LEFT + x / 40 * (RIGHT - LEFT), BOTTOM - (y - low) / (high - low) * (BOTTOM - TOP)
        assert line.place(x, y) == pytest.approx(exact, abs=0.06)
    assert [label for _, label in line.x_ticks] == ["0", "10", "20", "30", "40"]
    assert [label for _, label in line.y_ticks] == ["0", "1", "2"]
    ((name, points),) = line.polylines
    assert name == "loss" and points.split()[0] == f"{LEFT},{line.place(0, 0)[1]:g}" and len(points.split()) == 3
    steep = Chart("loss", {"a": [(1, 1000.0), (2, 0.1)], "b": [(1, 1.0), (2, 10.0)]})
    assert [label for _, label in steep.y_ticks] == ["0.1", "1", "10", "100", "1,000"]
    heights = [y for y, _ in steep.y_ticks]
    assert all(a - b == pytest.approx(heights[0] - heights[1]) for a, b in itertools.pairwise(heights))
    assert steep.summary == "a from 1,000 at step 1 to 0.1 at step 2; b from 1 at step 1 to 10 at step 2"
    long = Chart("loss", {"loss": [(step, float(step)) for step in range(4 * MOST)]}).finite["loss"]
    assert len(long) == MOST and long[0] == (1.5, 1.5)
    assert Chart("lr", {"lr": [(0, 0.0), (1, 0.0)]}).place(0, 0.0)[1] == pytest.approx((TOP + BOTTOM) / 2)
    assert round_numbers(0.11, 0.52, 4) == pytest.approx([0.2, 0.4])
    assert [number(v) for v in (20000, 1500, 0.1, 2e6)] == ["20k", "1,500", "0.1", "2M"]


def test_large_pictures_become_smaller_and_long_trainings_show_some(tmp_path):
    Image.effect_noise((2000, 1000), 90).save(tmp_path / "large.png")
    made = picture(tmp_path / "large.png", "large")
    assert (made.width, made.height) == (1600, 800) and made.source.startswith("data:image/jpeg")
    (tmp_path / "samples").mkdir()
    for step in range(1, 101):
        Image.new("L", (4, 4)).save(tmp_path / f"samples/step_{step:08d}.png")
    shown = [one.caption for one in run_page(tmp_path, {}, None, [])["steps"]]
    assert len(shown) == 24 and (shown[0], shown[-1]) == ("Samples at step 1", "Samples at step 100")


def test_writing_does_not_take_long(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.csv").write_text("step,train/loss\n" + "\n".join(f"{step},0.5" for step in range(20_000)))
    made = RunPage(folder)
    made.write()
    since = time.process_time()
    assert made.write() and time.process_time() - since < 1


def test_every_command_of_a_page_works_where_it_is_pasted(tmp_path):
    words = ("data=toy2d", "network=mlp", "debug=fast", "logger=csv", "trainer.accelerator=cpu", "seed=7")
    folder = tmp_path / "a run"
    script = Path(__file__).resolve().parents[1] / "train.py"
    done = zygote.run(script, *words, "metric.samples=20", "hydra.run.dir=a run", cwd=tmp_path)
    assert done.returncode == 0 and PAGE in done.stdout, done.stderr
    found = check_structure(folder / PAGE)
    assert "step 4" in found.text and len(found.of("polyline")) >= 4
    differs = re.findall(r'"differs"><th scope="row">(.+?)</th><td>(.+?)</td><td>(.+?)<', (folder / PAGE).read_text())
    assert ("seed", "7", "0") in differs
    resume, _, evaluate, compare, report = [one.line for one in RunPage(folder).commands()]
    (folder / PAGE).unlink()
    for line, *more in ((resume, "report=false"), (evaluate, f"out={tmp_path / 'samples'}"), (compare,), (report,)):
        done = paste(line, *more, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        assert (folder / PAGE).exists() == (line == report)
    assert len(check_structure(tmp_path / "samples" / PAGE).of("img")) == 1
    (folder / PAGE).unlink()
    (tmp_path / "logs").mkdir(exist_ok=True)
    folder = folder.rename(tmp_path / "logs/a run")
    assert zygote.run("-m", "diffusion_lab.report", "last", cwd=tmp_path).returncode == 0 and (folder / PAGE).exists()
    compared = zygote.run("-m", "diffusion_lab.compare", "last", "out=compared", cwd=tmp_path)
    assert compared.returncode == 0 and (tmp_path / "compared" / PAGE).exists(), compared.stderr
    refused = zygote.run("-m", "diffusion_lab.report", ".", cwd=tmp_path)
    assert refused.returncode == 2 and "neither config.yaml nor request.json" in refused.stderr


PROBE = """<script>
const bad = [];
addEventListener("error", e => bad.push(e.message || e.target.outerHTML.slice(0, 80)), true);
addEventListener("securitypolicyviolation", e => bad.push(e.violatedDirective + " " + e.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const hidden = [...document.images].filter(image => !image.naturalWidth).map(image => image.alt);
  const sliders = [...document.querySelectorAll("input[type=range]")];
  const steps = sliders.map(slider => [slider.max, slider.min].map(value => {
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    return [...document.querySelectorAll(".strip figure")].filter(one => one.offsetWidth).map(one => one.innerText.trim());
  }));
  const requests = performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:"));
  const wide = document.documentElement.scrollWidth - innerWidth;
  parent.postMessage({bad, hidden, requests, wide, steps, width: innerWidth, images: document.images.length}, "*");
}, 100));
</script>"""


def in_browser(file: Path, folder: Path) -> list[dict]:
    """What a browser finds at 1280 and 390 pixels: errors, requests, pictures that are not shown, the slider's steps."""
    if BROWSER is None:
        pytest.skip("no browser: apt-get install chromium")
    inner = html.escape(file.read_text().replace("<head>", f"<head>{PROBE}", 1))
    frames = "".join(f'<iframe srcdoc="{inner}" width={width} height=800></iframe>' for width in (1280, 390))
    outer = folder / "outer.html"
    outer.write_text(
        "<pre></pre><script>addEventListener('message', e => "
        f"document.querySelector('pre').append(JSON.stringify(e.data), '\\n'))</script>{frames}"
    )
    words = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom")
    command = [BROWSER, *words, "--virtual-time-budget=10000", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1].splitlines()
    return sorted((json.loads(html.unescape(line)) for line in lines), key=lambda found: -found["width"])


def check_in_browser(file: Path, folder: Path, images: int) -> list[dict]:
    found = in_browser(file, folder)
    assert [one["width"] for one in found] == [1280, 390]
    for one in found:
        assert one["bad"] == one["hidden"] == one["requests"] == [] and one["wide"] <= 0, one
        assert one["images"] == images
    return found


def test_a_browser_shows_a_run_without_errors_or_requests(tmp_path):
    folder = make_run(tmp_path / "run")
    assert RunPage(folder).write()
    found = check_in_browser(folder / PAGE, tmp_path, images=6)
    assert found[0]["steps"] == [[["Samples at step 30"], ["Samples at step 10"]]]
