"""The table of a GPU check, from made-up results."""

from typing import Any

import pytest

from benchmarks.gpu_check import table
from benchmarks.gpu_check.record import Check, Part
from benchmarks.gpu_check.table import Line, extrapolated, machine_line, markdown
from benchmarks.harness.result_json import environment_from_json


def run(seconds: float, *, epochs: int = 1, **more: Any) -> dict[str, Any]:
    """A training run's summary."""
    return {
        "epochs": epochs,
        "seconds": seconds,
        "views": None,
        "loader": "resident",
        "images_per_second": 10_000.0,
        "data_wait": 0.012,
        "val_top1": 0.9512,
        "last_val_top1": 0.95,
        "best_epoch": 18,
        "val_seen": 10_000,
        "train_images": 50_000,
        **more,
    }


BLOG = run(30, loader="baseline", recipe="classic", precision="fp32", last_images_per_second=500.0, train_images=6_400)


def figures(lines: list[Line]) -> dict[str, str]:
    return {line.what: line.figure for line in lines}


def test_saturation_has_ceiling_shares_every_loader_and_the_augmentation() -> None:
    def row(name: str, rate: float, **more: float) -> dict[str, Any]:
        return {"name": f"feature: {name}", "images_per_second": rate, **more}

    def fed(name: str, rate: float, saturation: float) -> dict[str, Any]:
        spread = {"saturation_low": saturation - 0.01, "saturation_high": saturation + 0.01}
        return row(f"fed by {name}", rate, saturation=saturation, **spread)

    shares = {"arithmetic_share": 0.21, "memory_share": 0.83, "augmentation_share": 0.047}
    result = {
        "theme": "saturation",
        "modes": {"feature": shares | {"size": 224, "batch_size": 256, "precision": "bf16"}},
        "rows": [
            row("ceiling", 60_000),
            fed("streamed", 54_000, 0.9),
            row("streamed alone", 70_000),
            fed("resident", 58_500, 0.975),
        ],
    }
    lines = table.saturation_lines("s", "feature", {"s": result})
    title = "feature extraction"
    assert lines == [
        Line(
            f"{title}: ceiling",
            "60,000 images/s",
            "21 % of the GPU's arithmetic; 83 % of the GPU's memory bandwidth; 224 px, batches of 256, bf16",
        ),
        Line(f"{title}: end to end", "58,500 images/s", "resident, the fastest here; no features kept"),
        Line(f"{title}: saturation, resident", "97.5 %", "58,500 images/s; turns from 96.5 % to 98.5 %"),
        Line(f"{title}: saturation, streamed", "90.0 %", "54,000 images/s; turns from 89.0 % to 91.0 %"),
        Line(f"{title}: augmentation on the device", "4.7 %", "of the time of a step"),
    ]
    shares |= {"arithmetic_share": None, "memory_share": None}  # of a GPU that is not known
    result["modes"]["feature"] |= shares
    assert table.saturation_lines("s", "feature", {"s": result})[0].note == "224 px, batches of 256, bf16"


def test_compiling_is_what_an_empty_cache_adds() -> None:
    results = {"finetune-cold": run(70), "finetune-warm": run(25), "finetune": run(130, epochs=20)}
    assert figures(table.cold_lines("finetune", results)) == {"fine-tuning, 1 epoch, compile cache empty": "70.0 s"}
    assert table.warm_lines("finetune", results)[0].note == "so compiling takes 45.0 s"
    whole = table.run_lines("finetune", "imagenet", results)
    assert figures(whole) == {
        "fine-tuning, 20 epochs, with evaluation": "130 s",
        "fine-tuning, 20 epochs, compile cache empty": "175 s",
        "fine-tuning, 20 epochs, top-1": "95.1 %",
    }
    assert "by reckoning" in whole[1].note
    assert "weights: imagenet" in whole[2].note


def test_without_the_cold_run_nothing_is_said_of_compiling() -> None:
    results = {"feature-warm": run(25, views=4), "feature": run(30, epochs=20, views=4)}
    assert "the run before, which was to compile all, has no result" in table.warm_lines("feature", results)[0].note
    assert list(figures(table.run_lines("feature", "none", results))) == [
        "feature extraction, 20 epochs, 4 views kept, with evaluation",
        "feature extraction, 20 epochs, 4 views kept, top-1",
    ]


def test_the_blogs_time_is_extrapolated_and_says_so() -> None:
    assert extrapolated(20, 50_000, 500.0) == 2000
    lines = table.blog_lines("finetune", {"blog-finetune": BLOG, "finetune": run(100, epochs=20)})
    assert lines == [
        Line(
            "the blog's loop, fine-tuning",
            "500 images/s",
            "the last epoch, of 6,400 images: baseline, classic, fp32, not compiled",
        ),
        Line(
            "the blog's loop, fine-tuning, 20 epochs",
            "2,000 s",
            "extrapolated: 20 × 50,000 images at 500 images/s; evaluation left out",
        ),
        Line("fine-tuning, 20 epochs, against the blog's loop", "20.0 ×", "2,000 s without evaluation ÷ 100 s with it"),
    ]
    assert len(table.blog_lines("finetune", {"blog-finetune": BLOG})) == 1  # nothing to compare it with


def test_steps_name_the_gain_of_each_rung_that_was_measured() -> None:
    shared = {"group": "fine-tuning", "switch": "a switch", "beside": False}
    result = {
        "theme": "steps",
        "rows": [
            shared | {"name": "plain", "images_per_second": 100.0, "times_before": None},
            shared | {"name": "+ TF32", "images_per_second": None, "times_before": None},
            shared | {"name": "+ compile", "images_per_second": 150.0, "times_before": 1.5},
            shared | {"name": "pure", "images_per_second": 300.0, "times_before": 2.0, "beside": True},
        ],
    }
    assert table.steps_lines({"steps": result}) == [
        Line("fine-tuning, step: plain", "100 images/s", "a switch"),
        Line("fine-tuning, step: + compile", "150 images/s", "1.50 × the rung before; a switch"),
        Line("fine-tuning, step: pure", "300 images/s", "2.00 × the compiled one; a switch"),
    ]


def test_profiles_loaders_and_tests_have_their_lines() -> None:
    profile = {
        "theme": "profile",
        "rows": [{"name": "fed by resident", "images_per_second": 9_000.0}],
        "diagnosis": {"sentence": "the step limits"},
    }
    lines = table.profile_lines("finetune", {"profile-finetune": profile})
    assert lines == [Line("fine-tuning, profiled", "9,000 images/s", "the step limits")]
    rows = [
        {"group": "finished batches", "name": "fast", "images_per_second": 900.0, "times_baseline": 9.0},
        {"group": "finished batches; pixels decoded beforehand", "name": "slow", "images_per_second": 100.0}
        | {"times_baseline": 1.0},
        {"group": "one part alone", "name": "copy", "images_per_second": 1e6, "times_baseline": 1e4},
    ]
    found = table.loaders_lines({"loaders": {"theme": "loaders", "rows": rows}})
    assert [(line.what, line.note) for line in found] == [
        ("loader alone: slow", "1.00 × the baseline"),
        ("loader alone: fast", "9.00 × the baseline"),
    ]
    said = {"tests": "==== 55 passed in 9.1s ===="}
    assert table.log_lines("tests", "GPU tests", said) == [Line("GPU tests", "55 passed in 9.1s", "")]


@pytest.mark.parametrize("cpu", [False, True])
def test_the_machine_is_named_and_a_trial_run_says_that_it_is_one(cpu: bool) -> None:
    environment = {"gpus": ["H100"], "usable_cores": 16, "processor": "a CPU"}
    commits = ("0123456789abcdef", "0123456789abcdef", "abcdef0123456789+", None)
    check = Check(
        environment=environment_from_json(environment | {"versions": {"torch": "2.14"}}),
        options={"data": "cifar10", "cpu": cpu},
        parts=tuple(Part(name=str(place), state="done", seconds=1.0, commit=c) for place, c in enumerate(commits)),
    )
    line = machine_line(check)
    assert (line.what, line.figure) == ("machine", "H100, 16 cores of a CPU")
    assert line.note.startswith("torch 2.14, commit 0123456789 and abcdef0123-changed and unknown, data cifar10")
    assert ("no figure means anything" in line.note) is cpu


def test_the_table_is_markdown() -> None:
    assert markdown([Line("a rate", "1,000 images/s", "of two"), Line("b", "2 s", "")]).splitlines() == [
        "| what   |         figure | note |",
        "| ------ | -------------: | --- |",
        "| a rate | 1,000 images/s | of two |",
        "| b      |            2 s |  |",
    ]
