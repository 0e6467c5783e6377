"""One line a stage, bars while they run, nothing garbled where lines cannot be written over."""

import io

import pytest
from rich.console import Console

from mfac_compress.pipeline.progress import Progress


def _shown(*, terminal, verbose=False, **console):
    output = io.StringIO()
    progress = Progress(
        Console(file=output, force_terminal=terminal, width=80, **console), verbose=verbose
    )
    with progress.stage("prune"):
        for step in (1, 2):
            list(progress.track(range(3), f"calibrate, step {step}", 3))
            progress.detail(f"after step {step}")
    with progress.stage("recover") as line:
        line.reused = True
    return output.getvalue()


def test_a_log_gets_one_line_a_stage():
    prune, recover = _shown(terminal=False).splitlines()
    assert prune.split() == ["prune", "0.0", "s"]
    assert recover.split() == ["recover", "reused"]


def test_a_verbose_log_also_gets_the_steps_and_remarks():
    lines = [line.split("  ")[1] for line in _shown(terminal=False, verbose=True).splitlines()[:4]]
    assert lines == ["calibrate, step 1", "after step 1", "calibrate, step 2", "after step 2"]


def test_a_terminal_sees_bars_that_go_when_the_stage_ends():
    shown = _shown(terminal=True, color_system=None)
    assert "calibrate, step 2" in shown
    assert "0/3" in shown
    clear_line = "\x1b[2K"
    assert "━" not in shown.rpartition(clear_line)[2]


def _steps(**options):
    output = io.StringIO()
    verbose = options.pop("verbose", False)
    progress = Progress(Console(file=output, width=80, **options), verbose=verbose)
    with progress.stage("accelerate"):
        for done in range(2):
            progress.step(f"encoder.{done}.weight", done, 2)
    return output.getvalue()


def test_what_a_stage_is_at_is_seen_on_a_terminal_and_in_a_verbose_log():
    shown = _steps(force_terminal=True, color_system=None)
    assert "encoder.1.weight" in shown
    assert "1/2" in shown
    first, second, _ = _steps(force_terminal=False, verbose=True).splitlines()
    assert (first, second) == ("  encoder.0.weight (0/2)", "  encoder.1.weight (1/2)")
    assert len(_steps(force_terminal=False).splitlines()) == 1


def test_the_end_of_a_long_name_is_shown_and_the_count_beside_it():
    output = io.StringIO()
    progress = Progress(Console(file=output, width=80, force_terminal=True, color_system=None))
    with progress.stage("accelerate"):
        progress.step("bert.encoder.layer.11.attention.output.dense.weight", 100, 200)
    line = [line for line in output.getvalue().split("\r") if "dense.weight" in line][-1]
    assert "layer.11.attention.output.dense.weight ━" in line
    assert "100/200" in line


def test_a_stage_of_many_loops_is_one_bar_that_says_how_much_time_is_left():
    output = io.StringIO()
    times = iter(range(1000))
    progress = Progress(Console(file=output, width=80, force_terminal=True, color_system=None))
    with progress.stage("recover"):
        progress.plan(6)
        progress._stage._bar.get_time = lambda: next(times)
        for epoch in (1, 2):
            for _ in progress.track(range(3), f"recover, epoch {epoch}/2", 3):
                progress._stage._bar.refresh()
    lines = [line for line in output.getvalue().split("\r") if "epoch" in line]
    assert {word for line in lines for word in line.split() if "/6" in word} >= {"1/6", "4/6"}
    assert any("epoch 2/2" in line and "left" in line for line in lines)
    assert not any("/3" in line for line in lines)


def test_a_dumb_terminal_is_treated_as_a_log():
    dumb = {"TERM": "dumb"}
    assert "\x1b" not in _shown(terminal=True, _environ=dumb)
    assert len(_shown(terminal=True, _environ=dumb).splitlines()) == 2


def test_a_quiet_console_shows_nothing():
    assert _shown(terminal=True, quiet=True, verbose=True) == ""


def test_an_interrupt_gives_the_terminal_back():
    output = io.StringIO()
    progress = Progress(Console(file=output, force_terminal=True, width=80))

    def interrupted():
        with progress.stage("prune"):
            for _ in progress.track(range(3), "calibrate", 3):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert output.getvalue().rindex("\x1b[?25h") > output.getvalue().rindex("\x1b[?25l")
    assert list(progress.track(range(2), "no stage", 2)) == [0, 1]
