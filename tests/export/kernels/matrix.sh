#!/bin/sh
# Run the kernels' tests with several releases of ONNX Runtime.
#     matrix.sh PYTHON RELEASE...      (a release, or: latest)
# Each release gets a virtual environment of its own. What else the tests import comes from PYTHON's.
set -eu
python=$1
shift
site=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
for release in "$@"; do
    folder=build/matrix/$release
    rm -rf "$folder"
    "$python" -m venv "$folder"
    case $release in
    latest) wanted=onnxruntime ;;
    *) wanted=onnxruntime==$release ;;
    esac
    "$folder/bin/pip" install --quiet --disable-pip-version-check "$wanted"
    # Behind the environment's own folder: its ONNX Runtime is found first.
    own=$("$folder/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    echo "import site; site.addsitedir('$site')" >"$own/others.pth"
    "$folder/bin/python" -c "import onnxruntime; print('ONNX Runtime', onnxruntime.__version__)"
    "$folder/bin/python" -m pytest -q tests/export/kernels --deselect tests/export/kernels/test_fuzz.py
done
