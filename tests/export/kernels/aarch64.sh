#!/usr/bin/env bash
# The tests of the sparse kernels on aarch64, emulated: builds the library with a cross compiler and
# runs the tests in an arm64 Python with ONNX Runtime's own wheel for it.
#
#     tests/export/kernels/aarch64.sh PYTHON [ONNXRUNTIME]
#
# Needs g++-aarch64-linux-gnu, qemu-user-static and debootstrap of Debian. Emulated, newer releases of
# ONNX Runtime than 1.24.1 were seen to end in a segmentation fault when they are imported.
set -euo pipefail
python=$1
release=${2:-1.24.1}
root=$(cd "$(dirname "$0")/../../.." && pwd)
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT

# An arm64 Python: its packages are only unpacked, nothing of them is run to set them up.
debootstrap --arch=arm64 --foreign --variant=minbase --include=python3 bookworm "$work/system" >"$work/log" ||
  { cat "$work/log"; exit 1; }
for package in "$work"/system/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$work/system"; done
tag=$(cd "$work/system/usr/bin" && echo python3.*[0-9])
version=${tag#python}
"$python" -m pip download --quiet --only-binary=:all: --python-version "$version" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux2014_aarch64 --dest "$work/wheels" numpy onnx pytest "onnxruntime==$release"
for wheel in "$work"/wheels/*.whl; do unzip -qo "$wheel" -d "$work/site"; done

# Of the package what the tests import: the whole would bring PyTorch along.
package="$work/site/mfac_compress/export"
mkdir -p "$package/kernels"
touch "$work/site/mfac_compress/__init__.py"
cp "$root"/export/*.py "$package"
cp -r "$root/export/sparse" "$package"
: >"$package/__init__.py"
flags=$(sed -n 's/^FLAGS +\?= \[//p' "$root/setup.py" | tr -d '",]')
# shellcheck disable=SC2086
aarch64-linux-gnu-g++ $flags -shared "$root"/export/kernels/*.cpp -o "$package/kernels/libmfac_sparse.so"

mkdir "$work/tests"
cp "$root"/tests/export/kernels/*.py "$work/tests"
rm "$work/tests/test_fuzz.py" # compiles for the machine that it runs on
cd "$work/tests"
PYTHONHOME="$work/system/usr" PYTHONPATH="$work/site" qemu-aarch64-static -cpu cortex-a72 \
  -L "$work/system" "$work/system/usr/bin/$tag" -m pytest -q -p no:cacheprovider \
  --import-mode=importlib .
