"""Nothing is left in the folder of temporary files."""

import os
import subprocess
import sys

import pytest

RUN = "import mfac_compress.pipeline.compression, onnxruntime, torch._dynamo"


@pytest.mark.parametrize("chosen", [False, True])
def test_nothing_is_left_among_the_temporary_files(tmp_path, chosen):
    names = ("ORT_DISABLE_TELEMETRY", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["TMPDIR"] = str(tmp_path)
    if chosen:  # by the user, who may want it to stay
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "compiled")
    subprocess.run([sys.executable, "-c", RUN], env=environment, check=True)
    assert [path.name for path in tmp_path.iterdir()] == (["compiled"] if chosen else [])
