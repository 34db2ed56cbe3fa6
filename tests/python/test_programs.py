"""Programs of torch.export and TorchScript: the statistics that hooks see on the model, and the command."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from helpers import tensors
from mono_quant import _native
from mono_quant.calibration import Calibration, calibrate
from mono_quant.exceptions import InputError
from mono_quant.exported import calibrate_program
from mono_quant.programs import main
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=2)
        )
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.line = nn.Conv1d(8, 4, 2)
        self.back = nn.ConvTranspose1d(4, 2, 3, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.up(self.body(x))
        return self.head(x.mean((2, 3))), self.back(self.line(x.flatten(2)))


class Nested(nn.Module):
    """Inputs of three axes, transposed; no bias here and there; one module under two names, tied weights."""

    def __init__(self):
        super().__init__()
        block = lambda: nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6, bias=False)})  # noqa: E731
        self.blocks = nn.ModuleList([block(), block()])
        self.same = self.blocks[1]["b"]
        self.embed = nn.Embedding(6, 6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.embed.weight
        self.unused = nn.Linear(6, 2)

    def forward(self, x):
        x = x + self.embed(torch.arange(6, device=x.device))
        for block in self.blocks:
            x = x + torch.tanh(block["a"](x.transpose(0, 1)).transpose(0, 1))
            x = block["b"](x)
        return self.tied(self.same(x[0, 0]))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), (4, 8)),
    "convolutions": (Convolutions, (4, 3, 8, 8)),
    "nested": (Nested, (4, 6, 6)),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
        (4, 5, 16),
    ),
    "linear": (lambda: nn.Linear(8, 3), (4, 8)),
}


def save_export(model, x, path, decompose=False, dynamic=False):
    shapes = ({0: torch.export.Dim("n", min=2, max=64)},) if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if decompose else program, path)


PROGRAMS = {
    "export": save_export,
    "decomposed": lambda *a: save_export(*a, decompose=True),
    "dynamic": lambda *a: save_export(*a, dynamic=True),
    "script": lambda model, x, path: torch.jit.script(model).save(path),
    "trace": lambda model, x, path: torch.jit.trace(model, x, check_trace=False).save(path),
}
GIVEN = [(m, p) for m, p in itertools.product(MODELS, PROGRAMS) if (m, p) != ("nested", "script")]


@pytest.mark.parametrize("model, program", GIVEN)
def test_equal_to_hooks_on_the_model(model, program, tmp_path):
    make, shape = MODELS[model]
    module, path = make().eval(), tmp_path / "program.pt2"
    data = [torch.randn(shape) * scale for scale in (1, 2, 0.5)]
    PROGRAMS[program](module, data[0], path)
    hooked = calibrate(module, data, observer="histogram")
    found = calibrate_program(path, data, observer="histogram")
    assert (found.samples, found.batches) == (12, 3)
    expected, own = hooked.observers, found.observers
    if model == "nested":  # several names: hooks see modules, programs see weights, and all names of them
        assert own.pop("same").state() == own["blocks.1.b"].state()
        assert own.pop("embed").state() == own["tied"].state()
        assert found.unreached == hooked.unreached == ["unused"]
        assert "unused: never reached by the data; it gets no scale" in found.warnings
    if model == "transformer":  # attention reads this weight without calling the module: no hook sees its inputs
        for name in [n for n in own if n.endswith("out_proj")]:
            expected.pop(name), own.pop(name)
    assert list(own) == [name for name in expected if name in own] and own.keys() == expected.keys()
    for name, observer in own.items():
        if model == "transformer" or program == "decomposed":  # other operators, which round otherwise
            assert observer.facts["values"] == expected[name].facts["values"]
            if name in found.unreached:
                continue
            for ours, theirs in zip(observer.calculate_qparams(), expected[name].calculate_qparams()):
                torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-4, atol=1)
        else:
            assert observer.state() == expected[name].state(), name


def test_branches_are_looked_into(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

        def forward(self, x):
            with torch.no_grad():
                x = self.c(x)
            return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,))

    x, path = torch.randn(5, 4), tmp_path / "p.pt2"
    torch.export.save(torch.export.export(Branches().eval(), (x,)), path)
    found = calibrate_program(path, [x, -3 * x, 9 * x, -27 * x])
    assert {name: o.facts["batches"] for name, o in found.observers.items()} == {"a": 2, "b": 2, "c": 4}


def test_batches_are_cut_only_for_programs_that_take_any_size(tmp_path):
    x = torch.randn(4, 8)
    for dynamic, samples in ((False, 12), (True, 10)):
        save_export(nn.Linear(8, 2), x, tmp_path / "p.pt2", dynamic=dynamic)
        assert calibrate_program(tmp_path / "p.pt2", iter([x] * 5), num_calibration_samples=10).samples == samples


def test_what_cannot_be_seen_is_said(tmp_path):
    path = tmp_path / "program.pt"
    encoder = MODELS["transformer"][0]().eval()
    x = torch.randn(12, 5, 16)
    with torch.no_grad():
        torch.jit.trace(encoder, x, check_trace=False).save(path)
    with pytest.raises(InputError, match="go into aten::_transformer_encoder_layer_fwd; save it"):
        calibrate_program(path, x)
    torch.jit.freeze(torch.jit.script(nn.Linear(4, 4).eval())).save(path)
    with pytest.raises(InputError, match="or was frozen"):
        calibrate_program(path, torch.randn(12, 4))
    training = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    save_export(training.train(), x := torch.randn(12, 4), path)
    assert "saved in training mode" in calibrate_program(path, x).warnings[0]


# The command


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(6, 8)
    save_export(model, x, folder / "model.pt2")
    torch.jit.script(model).save(folder / "model.ts")
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.save(model, folder / "module.pt")
    torch.save([x, 2 * x], folder / "samples.pt")
    torch.save(torch.randn(200, 8), folder / "tensor.pt")
    torch.save([(x,), {"input": x}], folder / "forms.pt")
    torch.save([torch.randn(6, 7)], folder / "narrow.pt")
    torch.save([x, x * float("nan")], folder / "nan.pt")
    torch.save([1, 2], folder / "numbers.pt")
    (folder / "text.pt").write_text("not a zip archive")
    torch.save(list(x), folder / "rows.pt")
    return folder


@pytest.mark.parametrize("program", ["model.pt2", "model.ts"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_engine_takes_the_commands_file(files, program, symmetric, tmp_path, capsys):
    output = tmp_path / "statistics.json"
    arguments = ["--program", files / program, "--data", files / "samples.pt", "-o", output, "--percentile", "99"]
    assert main([*map(str, arguments), *([] if symmetric else ["--asymmetric"])]) == 0
    out, err = capsys.readouterr()
    assert out == "" and f"{output}: inputs of 2 layers from 12 samples" in err and "warning" not in err
    found = Calibration.load(output)
    call = ["quantize", "-m", files / "weights.pt", "-o", tmp_path / "q.safetensors", "--calibration", output]
    assert _native.main(["monoquant", *map(str, call), "--quiet"]) == 0
    stored = tensors(tmp_path / "q.safetensors")
    for name in ("0", "2"):
        scale, zero_point = found.observers[name].calculate_qparams(symmetric=symmetric)
        assert torch.equal(stored[f"{name}.input_scale"], scale)
        assert symmetric or torch.equal(stored[f"{name}.input_zero_point"], zero_point.to(torch.int8))


def test_options_of_the_command(files, tmp_path, capsys):
    output = tmp_path / "s.json"
    call = ["--program", str(files / "model.ts"), "-o", str(output), "--quiet", "--force"]
    for options, kind, samples in (
        (["--data", str(files / "tensor.pt")], {"histogram": {"bins": 2048}}, 150),
        (["--data", str(files / "tensor.pt"), "-n", "50", "--observer", "minmax"], "min_max", 50),
        (
            ["--data", str(files / "forms.pt"), "--observer", "moving-average"],
            {"moving_average_min_max": {"averaging_constant": 0.01}},
            12,
        ),
    ):
        assert main(call + options) == 0
        found = Calibration.load(output)
        assert found.observers["0"].state()["kind"] == kind and found.samples == samples
        assert capsys.readouterr() == ("", "")
    assert main([*call, "--data", str(files / "rows.pt")]) == 0  # samples without a first dimension of samples
    assert main([*call, "--data", str(files / "samples.pt"), "-n", "6"]) == 0
    assert capsys.readouterr().err.startswith("warning: only 6 samples were given")
    assert main(["--help"]) == 0 and "--program" in capsys.readouterr().out


REFUSED = {
    "no arguments": ([], "arguments are required"),
    "observer": (["--observer", "mean"], "invalid choice: 'mean'"),
    "percentile": (["--percentile", "20"], "percentile 20 is not accepted"),
    "percentile of another": (["--percentile", "99", "--observer", "minmax"], "leave one out"),
    "samples": (["--samples", "0"], "from 1 on"),
    "no directory": (["-o", "none/s.json"], "there is no directory none"),
    "directory": (["-o", "."], "is a directory"),
    "existing": (["-o", "weights.pt"], "weights.pt exists already; --force replaces it"),
    "missing program": (["--program", "none.pt2"], "none.pt2: no such file or directory"),
    "text program": (["--program", "text.pt"], "text.pt is no program"),
    "weights": (["--program", "weights.pt"], "weights.pt holds a checkpoint, not a program"),
    "module": (["--program", "module.pt"], "module.pt holds a checkpoint, not a program"),
    "directory program": (["--program", "."], "is a directory"),
    "missing data": (["--data", "none.pt"], "none.pt: no such file or directory"),
    "text data": (["--data", "text.pt"], "text.pt holds no samples"),
    "code as data": (["--data", "module.pt"], "module.pt holds no samples, or more than"),
    "numbers": (["--data", "numbers.pt"], "batch 0 is an int"),
    "wrong shape": (["--data", "narrow.pt"], "batch 0 ([6, 7] float32): the model raised"),
    "wrong size": (["--data", "tensor.pt"], "the program takes [6, 8]"),
    "NaN": (["--data", "nan.pt"], "batch 1 ([6, 8] float32): the input of layer '0': 48 of 48 values are NaN"),
    "script, wrong shape": (["--program", "model.ts", "--data", "narrow.pt"], "shapes cannot be multiplied (6x7 and"),
    "script, NaN": (["--program", "model.ts", "--data", "nan.pt"], "the input of layer '0': 48 of 48 values are NaN"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_refusals_of_the_command(files, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    full = ["--program", "model.pt2", "--data", "samples.pt", "-o", "new.json", *arguments] if arguments else []
    assert main(full) == 2
    out, err = capsys.readouterr()
    error = next(line for line in err.splitlines() if line.startswith("error: "))
    assert out == "" and message in error and "Traceback" not in err
    assert sorted(files.iterdir()) == before


def test_failures_of_the_command(files, monkeypatch, capsys, tmp_path):
    call = ["--program", str(files / "model.ts"), "--data", str(files / "samples.pt"), "-o", str(tmp_path / "s.json")]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(call) == 1
    assert "cannot write: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()

    code = f"import sys; sys.modules['torch'] = None; from mono_quant.programs import main; sys.exit(main({call!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: calibrate runs the model and needs torch: pip install torch\n",
    )


def test_the_monoquant_command_calibrates(files, tmp_path):
    call = ["calibrate", "--program", files / "model.ts", "--data", files / "samples.pt", "-o", tmp_path / "s.json"]
    done = subprocess.run([sys.executable, "-m", "mono_quant", *map(str, call)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Calibration.load(tmp_path / "s.json").samples == 12
