"""What sparse operators would give any ONNX file: ``mfac-compress speed model.onnx``."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from mfac_compress.export import (
    FileSpeed,
    LayerSpeed,
    RandomInputs,
    ShapeError,
    Workload,
    confirm,
    data_files,
    data_path,
    kernel_library,
    measure_speed,
    try_file,
    write_model,
)
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import check_regular
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.quoting import printable
from mfac_compress.pipeline.recipe.schema import LatencySection
from mfac_compress.pipeline.recipe.section import MOST_THREADS
from mfac_compress.pipeline.terminal import add_row, plain_table

_LONGEST_NAME = 250  # with .data behind it, file systems take it
_LATENCY = LatencySection()  # `speed` judges as a run does that leaves this to the defaults


def speed(
    model: Path,
    console: Console,
    *,
    batch_sizes: Sequence[int] | None,
    threads: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    output: Path | None = None,
    timeout: float,
    progress: Progress | None = None,
) -> FileSpeed:
    """Measure a file and show what came of it.

    Args:
        model: ONNX file.
        console: Where it is shown.
        batch_sizes: None: the one in ``shapes`` or that the file takes, or else 1.
        threads: Of ONNX Runtime.
        shapes: Of inputs with open axes beside the batch.
        output: Where the file with sparse operators is written, if that is faster.
        timeout: Seconds in which ONNX Runtime must load the file, and end a call of it.
        progress: Shows which layer is timed.
    Returns:
        What was measured; its ``model`` is None where nothing is faster.
    Raises:
        InputError: If the file or what was asked for is wrong, or ``output`` needs kernels that
            were not built.
    """
    missing = _missing_kernels()
    if model.exists():
        check_regular(model, "MODEL")
    if max(threads) > MOST_THREADS:
        raise InputError(f"--threads must be at most {MOST_THREADS}. Got {max(threads)}.")
    if output is not None and missing:
        raise InputError(f"-o needs the sparse kernels. {missing}")
    with _as_input_errors():
        feeds_of = RandomInputs(model, shapes)
        if output is not None:
            _check_output(output, model)
        sizes = _batch_sizes(batch_sizes, feeds_of)
        feeds = [feeds_of(Workload(size, threads=1)) for size in sizes]
        try_file(model, feeds, seconds=timeout)
        workloads = [Workload(size, count) for count in threads for size in sizes]
        progress = progress or Progress()
        with progress.stage("timing"):
            found = measure_speed(
                model,
                feeds_of,
                workloads,
                kernels=not missing,
                timeout=timeout,
                progress=progress.step,
            )
            measured = confirm(
                found, model, feeds_of, workloads, warmup=_LATENCY.warmup, runs=_LATENCY.runs
            )
        _show(measured, workloads, console)
        if output is not None and measured.model is not None:
            write_model(measured.model, output)
    if output is not None and measured.model is not None:
        _say(console, f"written: {output}. It needs {kernel_library()}; see docs/deploying.md.")
    elif output is not None:
        _say(console, f"not written: {output}.")
    if missing:
        _say(console, f"Nothing was timed. {missing}")
    return measured


@contextmanager
def _as_input_errors() -> Iterator[None]:
    """Name the option that is wrong in what export/ says of a file and its inputs."""
    try:
        yield
    except ShapeError as error:
        raise InputError(f"--shape: {error}") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    except MemoryError as error:
        raise InputError(
            "The model must fit into memory several times. It does not. Give smaller numbers for "
            "--batch or --shape."
        ) from error


def _check_output(output: Path, model: Path) -> None:
    """Refuse what cannot be written, or would take the place of what MODEL consists of."""
    if output.is_dir():
        raise InputError(f"-o must be a file. {output} is a folder. Give {output}/model.onnx.")
    if output.exists() and not output.is_file():
        raise InputError(f"-o must be a file. {output} is a device, a pipe or the like.")
    if (length := len(os.fsencode(output.name))) > _LONGEST_NAME:
        raise InputError(f"-o must be a name of at most {_LONGEST_NAME} bytes. Got {length}.")
    parts = [model, *data_files(model)]
    data = output.with_name(f"{output.name}.data")  # which write_model replaces as well
    if any(_same(written, part) for written in (output, data) for part in parts):
        raise InputError(
            f"-o must be another file than MODEL and its external data files: {output} and {data} "
            "are replaced. Give another name."
        )
    if not output.parent.is_dir():
        raise InputError(f"-o must be in a folder that exists. Got {output}.")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise InputError(f"-o must be in a folder that can be written to: {error}.") from error
    try:
        data_path(output)
    except ValueError as error:
        raise InputError(f"-o: {error}") from error


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return os.path.samefile(one, other)
    return one.resolve() == other.resolve()


def _batch_sizes(asked: Sequence[int] | None, feeds_of: RandomInputs) -> Sequence[int]:
    """The batch sizes, for each of which inputs can be made."""
    given = sorted(feeds_of.given_batches)
    sizes = asked or given or (feeds_of.fixed_batch or 1,)
    other = [size for size in given if size not in sizes]
    if other or (not asked and len(given) > 1):
        raise InputError(
            f"The first number of --shape must be a batch size of --batch. Got {given} in --shape "
            f"and {list(asked) if asked else 'no --batch'}."
        )
    for size in sizes:
        try:
            feeds_of(Workload(size, threads=1))
        except ValueError as error:
            raise InputError(f"--batch, --shape: {error}") from error
    return sizes


def _missing_kernels() -> str:
    try:
        kernel_library()
    except ValueError as error:
        return str(error)
    return ""


def _show(measured: FileSpeed, workloads: Sequence[Workload], console: Console) -> None:
    heads = [str(workload) for workload in workloads]
    table = plain_table("Layers", "layer", "weight", "zeros", *heads, "sparse operator")
    for layer in measured.layers:
        times = [
            f"{time.dense_ms:.3g} → {time.sparse_ms:.3g} ms ({1 / time.ratio:.2f}x)"
            for time in layer.times
        ]
        zeros = "" if layer.sparsity is None else f"{layer.sparsity:.1%}"
        shape = " x ".join(map(str, layer.shape))
        cells = times or [""] * len(workloads)
        add_row(table, printable(layer.weight or layer.name), shape, zeros, *cells, _verdict(layer))
    console.print(table)
    dense, kept = (sum(filter(None, column)) for column in zip(*_macs(measured), strict=True))
    _say(console, f"MACs in theory: {kept:,} of {dense:,} multiply-accumulates at {workloads[0]}")
    unknown = sum(layer.macs is None for layer in measured.layers)
    if unknown:
        _say(console, f"without {unknown} layers of whose MACs nothing is known")
    tried = "whole model" if measured.model is not None else "whole model, as tried"
    for workload, dense_ms, sparse_ms, says in _whole(measured):
        _say(
            console,
            f"{tried}, {workload}: {dense_ms:.3f} ms in stock ONNX Runtime, {sparse_ms:.3f} ms "
            f"with sparse operators: {says}",
        )
    if measured.difference is not None:
        share = f"{measured.difference:.1g} of the largest"
        _say(console, f"outputs with and without sparse operators differ by {share}")
    if measured.reason:
        _say(console, f"no sparse file: {measured.reason}")


def _whole(measured: FileSpeed) -> list[tuple[Workload, float, float, str]]:
    """Workload, times of both files and what they say: as compared, else as looked through."""
    compared = [
        (
            one.workload,
            one.reference_time.by(one.clock).median_ms,
            one.time.by(one.clock).median_ms,
            one.verdict,
        )
        for one in measured.compared
    ]
    return compared or [
        (one.workload, one.dense_ms, one.sparse_ms, f"{1 / one.ratio:.2f}x")
        for one in measured.whole
    ]


def _macs(measured: FileSpeed) -> list[tuple[int | None, int | None]]:
    return [(layer.macs, layer.kept_macs) for layer in measured.layers] or [(0, 0)]


def _verdict(layer: LayerSpeed) -> str:
    return f"yes, blocks of {layer.block}: {layer.reason}" if layer.block else f"no: {layer.reason}"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
