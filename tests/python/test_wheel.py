"""The built wheel: the package, its engine, its licence and what it was built from, and nothing else."""

import json
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = sorted((ROOT / "target" / "wheels").glob("mono_quant-*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else():
    assert WHEELS, "target/wheels is empty; tests/run has the command that builds the wheel"
    sources = {path.relative_to(ROOT / "python").as_posix()
               for pattern in ("*.py", "*.pyi", "py.typed") for path in (ROOT / "python").rglob(pattern)}
    with zipfile.ZipFile(WHEELS[-1]) as wheel:
        files = {info.filename: info.file_size for info in wheel.infolist()}
        native = [name for name in files if name.startswith("mono_quant/_native.abi3.")]
        info = {name.split("/", 1)[1] for name in files if name.split("/")[0].endswith(".dist-info")}
        [sbom] = [name for name in files if name.endswith(".cyclonedx.json")]
        bom = json.loads(wheel.read(sbom))
    print(f"{WHEELS[-1].name}: {WHEELS[-1].stat().st_size / 1e6:.1f} MB, {len(files)} files")
    assert len(native) == 1
    assert {name for name in files if ".dist-info/" not in name} == sources | set(native)
    assert info == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE", "sboms/" + sbom.rsplit("/", 1)[1]}
    # every crate that is in the engine, with its version and licence
    parts = {part["name"]: part for part in bom["components"]}
    assert {"wgpu", "safetensors", "pyo3", "tracing"} <= parts.keys()
    assert all(part["version"] and part["licenses"] for part in parts.values())
